"""`kars update`: what is said, asked and done, by what was found out."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from attrs import evolve

from kars_router._version import __version__
from kars_router.cli import main as cli
from kars_router.cli import update
from kars_router.update import state
from kars_router.update.findings import Findings
from kars_router.update.installation import Installation, Manner

NEWER = Findings(
    newer=("98.0", "99.0"),
    newest="99.0",
    page="https://notes.test/",
    summaries={"99.0": "Faster starts", "98.0": "Fewer surprises"},
)
CURRENT = Findings(newest=__version__)

Run = Callable[..., int]


@pytest.fixture
def copy(tmp_path: Path) -> Installation:
    """One in which `python -m pip` and `kars` are scripts."""
    (tmp_path / "python").write_text("#!/bin/sh\necho 'pip speaks'\nexit ${PIP_EXIT:-0}\n", "utf-8")
    (tmp_path / "kars").write_text("#!/bin/sh\necho kars ${KARS_RUNS:-99.0}\n", "utf-8")
    for name in ("python", "kars"):
        (tmp_path / name).chmod(0o755)
    return Installation(Manner.PIP, tmp_path, str(tmp_path / "python"))


@pytest.fixture
def run(copy: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `kars update` with what was found out, in a copy that was installed somehow."""
    monkeypatch.setenv("KARS_STATE_DIR", str(tmp_path / "state"))

    def main(
        *args: str,
        found: Findings = NEWER,
        installation: Installation | None = copy,
        isatty: bool = False,
        answer: bool = False,
    ) -> int:
        def confirm(text: str) -> bool:
            click.echo(f"{text} {answer}")
            return answer

        monkeypatch.setattr(update, "ask", lambda *_, **__: found)
        monkeypatch.setattr(update, "find", lambda: installation)
        monkeypatch.setattr(click, "confirm", confirm)
        for stream in (sys.stdin, sys.stdout):
            monkeypatch.setattr(stream, "isatty", lambda: isatty)
        return cli.main(["update", *args])

    return main


def lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return capfd.readouterr().out.splitlines()


def command(copy: Installation) -> str:
    return f"{copy.python} -P -m pip install kars-router==99.0"


def test_the_newest(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(found=CURRENT) == 0
    assert lines(capfd) == [f"kars {__version__} is the newest release"]


def test_newer_than_the_newest(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--check", found=Findings(newest="0.0.1")) == 0
    assert lines(capfd) == [f"kars {__version__} is newer than the newest release, 0.0.1"]


@pytest.mark.parametrize("args", [["--check"], []])
def test_a_newer_one_and_what_is_new(
    args: list[str], run: Run, copy: Installation, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == 1
    assert lines(capfd) == [
        f"kars 99.0 is out, this is {__version__}",
        "",
        "  99.0  Faster starts",
        "  98.0  Fewer surprises",
        "",
        "Release notes: https://notes.test/",
        f"Update with: {command(copy)}",
    ]


def test_without_notes(run: Run, copy: Installation, capfd: pytest.CaptureFixture[str]) -> None:
    found = Findings(newer=("99.0",), newest="99.0", notes_problem="nobody wrote any")
    assert run("--check", found=found) == 1
    assert lines(capfd) == [
        f"kars 99.0 is out, this is {__version__}",
        "What is new in it is not known: nobody wrote any",
        f"Update with: {command(copy)}",
    ]
    assert run("--check", found=evolve(found, notes_problem="")) == 1
    assert len(lines(capfd)) == 2


def test_many(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    newer = tuple(f"{number}.0" for number in range(50, 70))
    found = Findings(newer=newer, newest="69.0", summaries={"69.0": "x"})
    assert run("--check", found=found) == 1
    said = lines(capfd)
    assert said[2] == "  69.0  x"
    assert said[11:13] == ["  60.0", "  and 10 before these"]


@pytest.mark.parametrize("found", [Findings(problem="no network"), CURRENT])
def test_not_known(found: Findings, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    installation = None if found is CURRENT else Installation(Manner.PIP, Path("/"), "python")
    assert run(found=found, installation=installation) == 3
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("kars: whether there is a newer release is not known: ")
    assert found.problem in err


def test_check_and_yes_exclude_each_other(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--check", "--yes") == 2


# Installing


def test_yes(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--yes") == 0
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == "kars 99.0 is installed"
    assert err == "pip speaks\n"


def test_yes_with_nothing_to_do(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--yes", found=CURRENT) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("answer", "status"), [(True, 0), (False, 1)])
def test_asking(answer: bool, status: int, run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(isatty=True, answer=answer) == status
    out, err = capfd.readouterr()
    assert f"Install it now? {answer}" in out
    assert ("kars 99.0 is installed" in out) is answer
    assert ("pip speaks" in err) is answer


@pytest.mark.parametrize(
    ("args", "isatty"), [([], False), (["-o", "json"], True), (["--check"], True)]
)
def test_nobody_is_asked(
    args: list[str], isatty: bool, run: Run, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(*args, isatty=isatty, answer=True) == 1
    out, err = capfd.readouterr()
    assert "Install it now?" not in out
    assert err == ""


def test_a_failed_installation(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_EXIT", "2")
    assert run("--yes") == 1
    out, err = capfd.readouterr()
    assert "installed" not in out
    assert err == (
        "pip speaks\n"
        "kars: 99.0 was not installed: pip failed with exit status 2; what it said is above\n"
    )


def test_an_installation_that_changes_nothing(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KARS_RUNS", "0.1.0")
    assert run("--yes") == 1
    assert capfd.readouterr().err.endswith("but `kars --version` says 0.1.0\n")


# Only told


@pytest.mark.parametrize(
    ("manner", "more", "said"),
    [
        (
            Manner.EDITABLE,
            {"source": "/src/my kars"},
            "This copy runs from '/src/my kars'; update that, for example with git pull",
        ),
        (
            Manner.EDITABLE,
            {},
            "This copy runs from 'its source tree'; update that, for example with git pull",
        ),
        (Manner.SYSTEM, {}, "Update with: {python} -P -m pip install kars-router==99.0"),
        (
            Manner.SYSTEM,
            {"installer": "dpkg"},
            "This copy is part of the system's Python; update it with dpkg",
        ),
        (
            Manner.OTHER,
            {"installer": "poetry"},
            "This copy was installed by poetry; update it with that",
        ),
        (Manner.UV_PROJECT, {}, "Update with: uv sync --upgrade-package kars-router==99.0"),
    ],
)
def test_what_is_not_ours_to_touch(
    manner: Manner,
    more: dict[str, Any],
    said: str,
    run: Run,
    copy: Installation,
    capfd: pytest.CaptureFixture[str],
) -> None:
    told = evolve(copy, manner=manner, **more)
    said = said.format(python=copy.python)
    assert run(installation=told, isatty=True, answer=True) == 1
    out, err = capfd.readouterr()
    assert out.splitlines()[-1] == said
    assert err == ""
    assert run("--yes", installation=told) == 1
    assert capfd.readouterr().err.lower() == f"kars: nothing was installed; {said}\n".lower()


# For programs


def test_json(run: Run, copy: Installation, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("--check", "-o", "json") == 1
    assert json.loads(capfd.readouterr().out) == {
        "installed": __version__,
        "newest": "99.0",
        "newer": True,
        "releases": [
            {"version": "99.0", "summary": "Faster starts"},
            {"version": "98.0", "summary": "Fewer surprises"},
        ],
        "releaseNotes": "https://notes.test/",
        "installedBy": "pip in a virtual environment",
        "command": command(copy).split(),
        "updated": False,
    }


def test_json_of_an_installation(
    run: Run, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--yes", "-o", "json") == 0
    assert json.loads(capfd.readouterr().out)["updated"] is True
    monkeypatch.setenv("PIP_EXIT", "1")
    assert run("--yes", "-o", "json") == 1
    assert json.loads(capfd.readouterr().out)["updated"] is False


def test_yaml_of_the_newest(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    assert run("-o", "yaml", found=CURRENT) == 0
    assert "newer: false\n" in capfd.readouterr().out


# What is remembered


@pytest.mark.parametrize(
    ("args", "isatty", "told"),
    [(["--check"], True, True), (["--check"], False, False), (["-o", "json"], True, False)],
)
def test_the_notice_is_spared_whoever_was_told(
    args: list[str], isatty: bool, told: bool, run: Run, tmp_path: Path
) -> None:
    run(*args, isatty=isatty)
    now = time.time()
    seen = state.read(tmp_path / "state", now)
    assert (seen.latest, seen.summary, seen.prefix) == ("99.0", "Faster starts", sys.prefix)
    assert seen.may_notify(now) is not told
    assert not seen.wants_check(now)


def test_nothing_is_remembered_of_what_is_not_known(run: Run, tmp_path: Path) -> None:
    run(found=Findings(problem="no network"))
    assert not (tmp_path / "state").exists()


def test_a_state_directory_that_cannot_be_used(run: Run, tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    assert run("--check") == 1


# With nothing replaced


def test_as_a_user_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in {
        "KARS_STATE_DIR": str(tmp_path / "state"),
        "HOME": str(tmp_path),
        "PIP_NO_INDEX": "1",
        "UV_NO_INDEX": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["update", "--check"]) == 3
    said = capfd.readouterr().err
    assert said.startswith("kars: whether there is a newer release is not known: ")
    assert said.endswith("is set to use no index\n")
    assert not any(tmp_path.iterdir())
