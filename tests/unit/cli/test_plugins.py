"""`kars plugins`, and what `kars check` says of plugins."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest

from kars_router.cli.main import main
from kars_router.plugins import BUILTINS

TO_DO = "install it, or take it out of plugins.required"
SERVERS = "servers: {box: {url: 'http://h/'}}\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KARS_CONFIG", raising=False)
    return tmp_path


def test_the_built_in_plugins_come_last(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "-o", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [p["name"] for p in listed if p["builtin"]] == [*reversed(BUILTINS)]
    assert all(p["builtin"] for p in listed[-len(BUILTINS) :])
    hooks = {p["name"]: p["hooks"] for p in listed}
    assert hooks["loss"] == ["kars_classify_loss"]


def test_a_blocked_plugin_is_not_listed(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "my.yaml").write_text(SERVERS + "plugins: {blocked: [loss]}\n")
    assert main(["plugins", "-c", "my.yaml"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()].count("loss") == 0


def test_a_broken_plugin_is_listed_with_its_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Point:
        name = "mine"
        dist = None

        def load(self) -> object:
            raise ImportError("no module named x")

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_: [Point()])
    assert main(["plugins"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("mine")
    assert last.endswith("broken: ImportError('no module named x')")


def test_a_file_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "-c", "none.yaml"]) == 1
    assert capsys.readouterr().err == "kars: there is no file none.yaml\n"


@pytest.mark.parametrize(
    ("plugins", "sentence"),
    [
        (
            "{required: [nope]}",
            f"plugin nope is required but not installed; {TO_DO}",
        ),
        ("{options: {nope: {a: 1}}}", "plugins.options names nope, which is not installed"),
    ],
)
@pytest.mark.parametrize("command", [["check", "my.yaml"], ["plugins", "-c", "my.yaml"]])
def test_plugins_that_are_not_there(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    plugins: str,
    sentence: str,
) -> None:
    (place / "my.yaml").write_text(f"{SERVERS}plugins: {plugins}\n")
    assert main(command) == 1
    assert capsys.readouterr().err == f"kars: {sentence}\n"


def test_run_without_any_server_says_what_to_give(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 1
    assert capsys.readouterr().err == (
        "kars: there is no kars.yaml here; name one with -c or KARS_CONFIG, or give --upstream "
        "NAME=URL\n"
    )
