"""Finding commands, exit codes, and what is said of errors."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from kars_router.cli import main as cli
from kars_router.errors import (
    ConfigError,
    HandshakeError,
    PluginError,
    UndeterminedError,
    UserError,
)
from kars_router.model import Failure, Phase

Raises = Callable[[BaseException], int]
KARS = [sys.executable, "-m", "kars_router"]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> Raises:
    """Runs `kars boom`, a command that raises what it is given."""

    def run(error: BaseException, *args: str) -> int:
        @click.command("boom")
        def command() -> None:
            raise error

        module = types.ModuleType("kars_router.cli.boom")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "boom", "Fail.")
        return cli.main(args or ["boom"])

    return run


def stderr(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    return err


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("mend this"), 1, "kars: mend this\n"),
        (UndeterminedError("no network"), 3, "kars: no network\n"),
        (PluginError("plugin x is not installed"), 1, "kars: plugin x is not installed\n"),
        (
            HandshakeError(Failure(server="web", phase=Phase.CONNECT, detail="refused")),
            3,
            "kars: web: refused\n",
        ),
        (ConfigError(["a: b", "c: d"], "k.yaml"), 1, "k.yaml: a: b\nk.yaml: c: d\n"),
        (ConfigError(["--listen: b", "c: d"], "k.yaml"), 1, "kars: --listen: b\nk.yaml: c: d\n"),
        (ConfigError(["servers: none"]), 1, "kars: servers: none\n"),
        (click.ClickException("cannot open"), 1, "kars: cannot open\n"),
        (click.Abort(), 130, ""),
        (KeyboardInterrupt(), 130, "\n"),
        (BrokenPipeError(), 1, ""),
        (
            ValueError("first\nsecond"),
            3,
            "kars: an error in kars itself (ValueError: first); add --debug to see where\n",
        ),
        (
            ZeroDivisionError(),
            3,
            "kars: an error in kars itself (ZeroDivisionError); add --debug to see where\n",
        ),
        (
            OSError(28, "No space left on device"),
            3,
            (
                "kars: the system refused (OSError: [Errno 28] No space left on device);"
                " add --debug to see where\n"
            ),
        ),
        # Nurseries wrap what comes out of them.
        (ExceptionGroup("", [UserError("mend this")]), 1, "kars: mend this\n"),
        (
            ExceptionGroup("", [UserError("one"), ExceptionGroup("", [UndeterminedError("two")])]),
            3,
            "kars: one\nkars: two\n",
        ),
        (BaseExceptionGroup("", [KeyboardInterrupt(), ValueError("late")]), 130, ""),
        (
            ExceptionGroup("", [UserError("mend this"), ValueError("bug")]),
            3,
            "kars: an error in kars itself (ValueError: bug); add --debug to see where\n",
        ),
    ],
)
def test_errors_become_sentences_and_exit_codes(
    raising: Raises,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: str,
) -> None:
    assert raising(error) == status
    assert stderr(capsys) == said


@pytest.mark.parametrize("words", [["--debug", "boom"], ["boom", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    raising: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    assert raising(ValueError("bug"), *words) == 3
    said = stderr(capsys)
    assert said.startswith("Traceback (most recent call last):")
    assert "test_main.py" in said
    assert said.endswith("add --debug to see where\n")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["chek"], "No such command 'chek'"),
        (["--bogus"], "No such option '--bogus'"),
        (["check", "-o", "xml"], "'xml' is not one of 'table', 'json', 'yaml'"),
        (["check", "a", "b"], "unexpected extra argument"),
        ([], "Usage: kars"),
    ],
)
def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str], args: list[str], said: str) -> None:
    assert cli.main(args) == 2
    assert said in stderr(capsys)


def test_the_status_of_a_command_is_that_of_the_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command("three")
    @click.pass_context
    def command(context: click.Context) -> None:
        context.exit(3)

    module = types.ModuleType("kars_router.cli.three")
    module.command = command  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "three", "Exit with 3.")
    assert cli.main(["three"]) == 3
    assert stderr(capsys) == ""


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert name == "kars"
    assert version[0].isdigit()


def test_help_lists_every_command_and_imports_none() -> None:
    program = (
        "import sys\n"
        "from kars_router.cli.main import COMMANDS, main\n"
        "assert main(['--help']) == 0\n"
        "heavy = {'trio', 'httpx', 'cattrs', 'ruamel', 'msgspec', 'rich', 'hypercorn'}\n"
        "print('loaded:', sorted(heavy & {name.split('.')[0] for name in sys.modules}))\n"
        "ours = {f'kars_router.cli.{name}' for name in COMMANDS} | {'kars_router.config'}\n"
        "print('ours:', sorted(ours & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("loaded: []\nours: []\n")
    for name, summary in cli.COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert summary.split()[0] in done.stdout


def test_help_fits_a_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 24
    assert [line for line in lines if len(line) > 80] == []


def test_every_command_is_in_one_group() -> None:
    members = [name for group in cli.GROUPS.values() for name in group]
    assert members == list(cli.COMMANDS)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_is_there_and_explains_itself(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"Usage: kars {name} ")
    assert said.count("--debug") == 1


def test_debug_is_offered_once_however_often_a_command_is_looked_up() -> None:
    context = click.Context(cli.kars)
    for _ in range(2):
        command = cli.kars.get_command(context, "check")
        assert command is not None
        assert [each.name for each in command.params].count("debug") == 1


# What only a process shows


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "kars.yaml").write_text("servers: {web: {url: 'http://h/'}}")
    child = subprocess.Popen(
        [*KARS, "check", "-o", "json"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
    assert (said, child.returncode) == ("", 1)


def test_a_reader_that_goes_away_while_a_nursery_is_open() -> None:
    # What is left in the buffer would be written, and complained about, as the process ends.
    program = (
        "import sys\n"
        "from kars_router.cli.errors import Boundary\n"
        "with Boundary() as boundary:\n"
        "    sys.stdin.read()\n"
        "    sys.stdout.write('x')\n"
        "    try:\n"
        "        sys.stdout.flush()\n"
        "    except BrokenPipeError as error:\n"
        "        raise ExceptionGroup('', [error])\n"
        "sys.exit(boundary.status)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": ":".join(sys.path)},  # and so with a buffer
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        child.stdin.close()
        said = child.stderr.read()
    assert (said, child.returncode) == ("", 1)


def test_no_stdout_at_all_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "kars.yaml").write_text("servers: {web: {url: 'http://h/'}}")
    done = subprocess.run(
        ["sh", "-c", '"$@" check >&-', "sh", *KARS],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.returncode) == ("", 0)


def test_no_room_on_stderr_still_leaves_an_exit_code(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" --bogus 2>/dev/full', "sh", *KARS],
        cwd=tmp_path,
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == (b"", 2)


def test_a_shell_can_complete_commands() -> None:
    done = subprocess.run(
        KARS,
        env={
            "PYTHONPATH": ":".join(sys.path),
            "_KARS_COMPLETE": "bash_complete",
            "COMP_WORDS": "kars ch",
            "COMP_CWORD": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "plain,check\n"


def test_a_terminal_without_unicode_gets_escapes(tmp_path: Path) -> None:
    (tmp_path / "日.yaml").write_text("servers: {web: {url: 'http://h/'}}")
    done = subprocess.run(
        [*KARS, "check", "日.yaml"],
        cwd=tmp_path,
        env={"PYTHONIOENCODING": "latin-1", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("\\u65e5.yaml: valid, 1 server\n", 0)


def test_an_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    done = subprocess.run(
        [*KARS, "check", "none.yaml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "none.yaml: cannot be read: No such file or directory\n"
