"""How a copy was installed, by what its installer has left behind."""

from __future__ import annotations

import json
import shlex
import site
import sys
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from kars_router.update import installation as module
from kars_router.update.installation import Installation, Manner, find, of

Given = dict[str, Any]


def installed(
    place: Path,
    *,
    installer: str = "pip",
    direct: object = None,
    pipx: object = None,
    receipt: bool = False,
    lock: bool = False,
    system: bool = False,
    metadata: str = "",
) -> Installation:
    info = place / "env" / "kars_router-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Name: kars-router\nVersion: 0.1.0\n{metadata}", "utf-8")
    if installer:
        (info / "INSTALLER").write_text(f"{installer}\n", "utf-8")
    if direct is not None:
        (info / "direct_url.json").write_text(_text(direct), "utf-8")
    prefix = place / "env"
    if pipx is not None:
        (prefix / "pipx_metadata.json").write_text(_text(pipx), "utf-8")
    if receipt:
        (prefix / "uv-receipt.toml").touch()
    if lock:
        (place / "uv.lock").touch()
    return of(Distribution.at(info), prefix, prefix if system else place / "base")


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


EDITABLE = {"url": "file:///src/kars%20x", "dir_info": {"editable": True}}
PLAIN = {"url": "file:///src/kars", "dir_info": {}}


@pytest.mark.parametrize(
    ("given", "manner", "uses_uv"),
    [
        ({}, Manner.PIP, False),
        ({"installer": ""}, Manner.PIP, False),
        ({"direct": PLAIN}, Manner.PIP, False),
        ({"installer": "uv"}, Manner.UV, True),
        ({"installer": "uv", "lock": True}, Manner.UV_PROJECT, True),
        ({"installer": "poetry 2.0"}, Manner.OTHER, False),
        ({"system": True}, Manner.SYSTEM, False),
        ({"system": True, "installer": "uv"}, Manner.SYSTEM, True),
        ({"system": True, "installer": "dpkg"}, Manner.SYSTEM, False),
        ({"direct": EDITABLE}, Manner.EDITABLE, False),
        ({"direct": EDITABLE, "system": True}, Manner.EDITABLE, False),
        ({"direct": EDITABLE, "pipx": {"x": 1}}, Manner.EDITABLE, False),
        ({"pipx": {"backend": "pip"}}, Manner.PIPX, False),
        ({"pipx": {"main_package": {}}}, Manner.PIPX, False),
        ({"pipx": {"backend": "uv"}, "installer": "uv"}, Manner.PIPX, True),
        ({"receipt": True, "installer": "uv"}, Manner.UV_TOOL, True),
        # What cannot be read is as good as not there.
        ({"pipx": "{"}, Manner.PIP, False),
        ({"pipx": "[" * 100_000}, Manner.PIP, False),
        ({"pipx": "[1]"}, Manner.PIP, False),
        ({"direct": "nonsense"}, Manner.PIP, False),
        ({"direct": {"dir_info": 1}}, Manner.PIP, False),
    ],
    ids=str,
)
def test_manners(given: Given, manner: Manner, uses_uv: bool, tmp_path: Path) -> None:
    found = installed(tmp_path, **given)
    assert (found.manner, found.uses_uv) == (manner, uses_uv)


def test_a_copy_that_an_environment_lets_through_from_outside(tmp_path: Path) -> None:
    info = tmp_path / "lib" / "kars_router-0.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: kars-router\nVersion: 0.1.0\n", "utf-8")
    found = of(Distribution.at(info), tmp_path / "env", tmp_path / "base")
    assert (found.manner, found.offered()) == (Manner.SYSTEM, False)


def test_what_else_is_noted(tmp_path: Path) -> None:
    found = installed(
        tmp_path,
        installer="evil\x1b[31m\N{RIGHT-TO-LEFT OVERRIDE}" + "x" * 100,
        direct=EDITABLE,
        metadata="Project-URL: Source, https://x.test/\nProject-URL: Changelog, https://y.test/\n",
    )
    assert found.source == "/src/kars x"
    assert found.urls == ("Source, https://x.test/", "Changelog, https://y.test/")
    assert found.installer.isprintable()
    assert len(found.installer) == 30


@pytest.mark.parametrize("url", [None, 1, "git+https://x.test/", "file:relative"])
def test_an_editable_source_that_is_no_directory(url: object, tmp_path: Path) -> None:
    found = installed(tmp_path, direct={"url": url, "dir_info": {"editable": True}})
    assert (found.manner, found.source) == (Manner.EDITABLE, "")


@pytest.mark.parametrize(
    ("kept", "arguments"),
    [
        (["-i", "https://u:secret@x.test/"], ("-i", "https://u:secret@x.test/")),
        ([1], ()),
        ("x", ()),
    ],
)
def test_arguments_that_pipx_has_kept(
    kept: object, arguments: tuple[str, ...], tmp_path: Path
) -> None:
    found = installed(tmp_path, pipx={"main_package": {"pip_args": kept}})
    assert found.arguments == arguments
    assert "secret" not in repr(found)


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("pipx", "uv"):
        (place / name).write_text("#!/bin/sh\n", "utf-8")
        (place / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(place))
    return place


@pytest.mark.parametrize(
    ("given", "offered", "command"),
    [
        ({}, True, "{python} -P -m pip install kars-router==1.0"),
        (
            {"installer": "uv"},
            True,
            "{bin}/uv pip install --python {python} --refresh-package kars-router kars-router==1.0",
        ),
        ({"pipx": {"x": 1}}, True, "{bin}/pipx upgrade env"),
        ({"receipt": True}, True, "{bin}/uv tool upgrade env"),
        ({"pipx": {"x": 1}, "direct": PLAIN}, False, "pipx install --force kars-router==1.0"),
        ({"receipt": True, "direct": PLAIN}, False, "uv tool install --force kars-router==1.0"),
        ({"installer": "uv", "lock": True}, False, "uv sync --upgrade-package kars-router==1.0"),
        ({"system": True}, False, "{python} -P -m pip install kars-router==1.0"),
        ({"system": True, "installer": "dpkg"}, False, ""),
        ({"installer": "poetry"}, False, ""),
        ({"direct": EDITABLE}, False, ""),
    ],
    ids=str,
)
def test_commands(given: Given, offered: bool, command: str, tools: Path, tmp_path: Path) -> None:
    found = installed(tmp_path, **given)
    assert found.offered() is offered
    assert shlex.join(found.command("1.0")) == command.format(python=sys.executable, bin=tools)


@pytest.mark.parametrize("manner", [Manner.PIPX, Manner.UV_TOOL, Manner.UV])
def test_without_its_tool_it_is_only_told(
    manner: Manner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = Installation(manner, tmp_path, sys.executable)
    assert not found.offered()
    assert found.command("1.0")[0] in {"pipx", "uv"}


def test_a_copy_in_the_directory_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "USER_SITE", str(Path(module.__file__).parents[2]))
    found = Installation(Manner.SYSTEM, tmp_path, "python3")
    assert found.command("1.0")[-2:] == ("--user", "kars-router==1.0")
    assert evolve(found, installer="rpm").command("1.0") == ()


def test_the_running_copy_is_installed_somehow() -> None:
    found = find()
    assert found is not None
    assert found.prefix == Path(sys.prefix)


def test_a_copy_without_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DISTRIBUTION", "kars-router-that-nobody-installed")
    assert find() is None
