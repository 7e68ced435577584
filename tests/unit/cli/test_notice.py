"""The line about a newer release: when it is there, and when a check is begun."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from kars_router._version import __version__
from kars_router.cli import main as cli
from kars_router.cli import notice
from kars_router.cli.output import Output, output_option
from kars_router.update import background, state
from kars_router.update.state import DAY, FILE, Seen

NOW = 2_000_000_000
NEWER = Seen(NOW, NOW, 0, "99.0", "Faster starts", sys.prefix)
QUIET = dict.fromkeys(("KARS_NO_UPDATE_CHECK", *notice._CI), "")


class Scene:
    """A state directory at a moment, and the checks that were begun."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.now = NOW
        self.checks = 0

    def environ(self, **more: str) -> dict[str, str]:
        return {"KARS_STATE_DIR": str(self.place), **more}

    def seen(self) -> Seen:
        return state.read(self.place, self.now)

    def begin_check(self) -> int:
        self.checks += 1
        return 0


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(tmp_path / "state")
    scene.place.mkdir()
    monkeypatch.setattr(time, "time", lambda: scene.now)
    monkeypatch.setattr(background, "leave_alone", scene.begin_check)
    return scene


def told(scene: Scene, capsys: pytest.CaptureFixture[str], **variables: str) -> str:
    notice.after_command(scene.environ(**variables))
    out, err = capsys.readouterr()
    assert out == ""
    return err


LINE = f"kars 99.0 is out, this is {__version__}; 'kars update' installs it. New: Faster starts\n"


def test_the_first_command_begins_a_check_and_says_nothing(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(scene, capsys) == ""
    assert scene.checks == 1
    assert scene.seen() == Seen(attempted_at=NOW)
    assert told(scene, capsys) == ""
    assert scene.checks == 1


def test_a_later_one_tells_what_was_found_and_only_once_a_day(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    state.write(scene.place, NEWER)
    assert told(scene, capsys) == LINE
    assert told(scene, capsys) == ""
    assert scene.checks == 0
    scene.now += DAY - 1
    assert told(scene, capsys) == ""
    scene.now += 1
    assert told(scene, capsys) == LINE
    assert scene.checks == 1
    assert scene.seen() == NEWER._replace(attempted_at=scene.now, notified_at=scene.now)


def test_a_check_that_fails_counts_as_one(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    for hour in range(48):
        scene.now = NOW + hour * 3600
        assert told(scene, capsys) == ""
    assert scene.checks == 2


def test_without_a_summary() -> None:
    said = f"kars 99.0 is out, this is {__version__}; 'kars update' installs it"
    assert notice.line(NEWER._replace(summary="")) == said


@pytest.mark.parametrize(
    "seen",
    [
        NEWER._replace(latest=""),
        NEWER._replace(latest=__version__),
        NEWER._replace(latest="0.0.1"),
        NEWER._replace(prefix="/another/environment"),
        NEWER._replace(notified_at=NOW),
    ],
)
def test_there_is_nothing_to_tell(
    seen: Seen, scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    state.write(scene.place, seen)
    assert told(scene, capsys) == ""
    assert scene.checks == 0
    assert scene.seen() == seen


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KARS_NO_UPDATE_CHECK", "1"),
        ("KARS_NO_UPDATE_CHECK", "true"),
        ("CI", "1"),
        ("CI", "true"),
        ("TF_BUILD", "True"),
        ("JENKINS_URL", "http://x"),
        ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
    ],
)
def test_silence(name: str, value: str, scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    state.write(scene.place, NEWER._replace(attempted_at=0))
    assert told(scene, capsys, **{name: value}) == ""
    assert scene.checks == 0
    assert scene.seen().notified_at == 0


@pytest.mark.parametrize("value", ["", "0", "false", "No", "OFF"])
def test_variables_that_say_no(value: str) -> None:
    assert not notice.is_silent({"CI": value, "KARS_NO_UPDATE_CHECK": value})


# What cannot be remembered is not done


def test_a_directory_that_cannot_be_written(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    state.write(scene.place, NEWER)
    (scene.place / "update-check.lock").mkdir()
    with pytest.raises(OSError, match="directory"):
        told(scene, capsys)
    assert scene.checks == 0
    assert capsys.readouterr().err == ""


def test_a_directory_in_the_place_of_the_file(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    (scene.place / FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        told(scene, capsys)
    assert scene.checks == 0


def test_another_command_is_at_it(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    state.write(scene.place, NEWER._replace(attempted_at=0))
    with state.hold(scene.place, wait=False), pytest.raises(BlockingIOError):
        told(scene, capsys)
    assert (scene.checks, capsys.readouterr().err) == (0, "")


def test_another_command_was_quicker(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state.write(scene.place, NEWER)
    read = state.read
    answers = [NEWER, NEWER._replace(notified_at=NOW)]
    monkeypatch.setattr(state, "read", lambda *_: answers.pop(0))
    assert told(scene, capsys) == ""
    monkeypatch.setattr(state, "read", read)
    assert scene.seen() == NEWER


def test_of_many_at_once_one_begins_a_check(scene: Scene) -> None:
    barrier = threading.Barrier(16)

    def run() -> None:
        barrier.wait()
        with contextlib.suppress(BlockingIOError):  # as in a command, where nothing is said of it
            notice.after_command(scene.environ())

    threads = [threading.Thread(target=run) for _ in range(16)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert scene.checks == 1


# Which commands


@pytest.fixture
def terminal(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """Takes away all that would call for silence; `run` adds the terminal."""
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KARS_STATE_DIR", str(scene.place))
    state.write(scene.place, NEWER)
    return scene


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs `kars`, with a terminal for stderr unless that is not wanted."""

    def main(*args: str, isatty: bool = True) -> int:
        if sys.stderr is not None:  # the one of this moment: pytest has several
            monkeypatch.setattr(sys.stderr, "isatty", lambda: isatty)
        return cli.main(args)

    return main


@pytest.fixture
def command(run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command that raises what it is given, or does nothing."""

    def with_command(
        *args: str, name: str = "thing", error: BaseException | None = None, isatty: bool = True
    ) -> int:
        @click.command(name)
        @output_option
        def made(*, output: Output) -> None:
            if error is not None:
                raise error

        module = types.ModuleType(f"kars_router.cli.{name}")
        module.command = made  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, name, "Do nothing.")
        return run(name, *args, isatty=isatty)

    return with_command


def test_a_command_ends_with_it(
    terminal: Scene, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0
    assert capsys.readouterr() == ("", LINE)
    assert command() == 0
    assert capsys.readouterr() == ("", "")


def test_also_one_that_fails(
    terminal: Scene, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(error=click.ClickException("no")) == 1
    assert capsys.readouterr().err == f"kars: no\n{LINE}"


@pytest.mark.parametrize(
    "args", [["-o", "json"], ["-oyaml"], ["--output=json"], ["--help"], ["-h"]]
)
def test_not_for_programs_and_not_with_help(
    args: list[str],
    terminal: Scene,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(*args) == 0
    assert capsys.readouterr().err == ""
    assert terminal.seen() == NEWER


@pytest.mark.parametrize("name", sorted(cli._WITHOUT_NOTICE))
def test_not_after_these(
    name: str, terminal: Scene, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(name=name) == 0
    assert capsys.readouterr().err == ""


def test_not_when_interrupted(
    terminal: Scene, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(error=KeyboardInterrupt()) == 130
    assert "99.0" not in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--version"], ["--help"], [], ["nothing-of-the-kind"]])
def test_not_without_a_command(
    args: list[str],
    terminal: Scene,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(*args)
    assert "99.0" not in capsys.readouterr().err
    assert terminal.seen() == NEWER


def test_not_without_a_terminal(
    terminal: Scene,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(isatty=False) == 0
    assert capsys.readouterr().err == ""
    assert terminal.seen() == NEWER


@pytest.mark.parametrize(
    "error", [OSError(28, "No space"), ValueError("a bug"), KeyError("x"), KeyboardInterrupt()]
)
def test_whatever_goes_wrong_with_it_is_nobodys_business(
    error: BaseException,
    terminal: Scene,
    command: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(notice, "after_command", fail)
    assert command() == 0
    assert capsys.readouterr() == ("", "")


def test_nor_that_stderr_is_gone(
    terminal: Scene, command: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert command() == 0


def test_next_to_nothing_is_imported_for_it() -> None:
    program = (
        "import sys\n"
        "import kars_router.cli.main\n"
        "before = set(sys.modules)\n"
        "import kars_router.cli.notice\n"
        "heavy = {'attrs', 'msgspec', 'packaging', 'subprocess', 'tempfile', 'ssl', 'http'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in set(sys.modules) - before}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"
