"""`kars completion`: keys are typed into the shells themselves, at a terminal.

A shell that is not installed is a named skip; in CI it is a failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from kars_router._version import __version__
from kars_router.cli import main as cli

SHELLS = ("bash", "zsh", "fish")
PROMPT = b"ready> "
SECONDS = 60.0

# What a user has in the shell's own file. Zsh inserts a tab as such if more keys are waiting
# already, unless it is told otherwise.
SETUP = {
    "bash": 'PS1="rea""dy> "\neval "$(kars completion bash)"\n',
    "zsh": (
        "unsetopt zle_bracketed_paste\n"
        "autoload -Uz compinit && compinit -u -D\n"
        "zstyle ':completion:*' insert-tab false\n"
        'eval "$(kars completion zsh)"\n'
        "PROMPT='rea''dy> '\n"
    ),
    "fish": (
        "function fish_prompt; echo -n 'rea''dy> '; end\n"
        "function fish_greeting; end\n"
        "kars completion fish | source\n"
    ),
}
# A session's first terminal is the one that keys such as Ctrl-C come from; a shell wants one.
AT_A_TERMINAL = (
    "import os, sys; os.close(os.open(os.ttyname(0), os.O_RDWR));"
    "os.execvp(sys.argv[1], sys.argv[1:])"
)


def command_of(shell: str, home: Path) -> Sequence[str]:
    """An interactive shell that reads `SETUP` and nothing else."""
    if shutil.which(shell) is None:
        assert not os.environ.get("CI"), f"{shell} is not installed"
        pytest.skip(f"{shell} is not installed")
    setup = home / (".zshrc" if shell == "zsh" else "setup")
    setup.write_text(SETUP[shell], encoding="utf-8")
    return {
        "bash": ["bash", "--noprofile", "--rcfile", str(setup), "-i"],
        "zsh": ["zsh", "-o", "NO_GLOBAL_RCS", "-i"],
        "fish": ["fish", "--no-config", "-i", "-C", f"source {setup}"],
    }[shell]


@contextlib.contextmanager
def terminal(command: Sequence[str], home: Path) -> Iterator[int]:
    """Runs a shell at a terminal of its own, which is given."""
    environ = {
        "HOME": str(home),
        "ZDOTDIR": str(home),
        "LC_ALL": "C.UTF-8",
        "TERM": "dumb",
        "KARS_NO_UPDATE_CHECK": "1",
        # Where `kars` is, as in an environment that is active.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    keys, theirs = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, *command],
        cwd=home,
        env=environ,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            yield keys
        finally:
            process.kill()
            os.close(keys)


def read_until(keys: int, wanted: bytes | None) -> bytes:
    """Reads what a terminal shows until something is there, or until its end."""
    shown = b""
    until = time.monotonic() + SECONDS
    while wanted is None or wanted not in shown:
        ready, _, _ = select.select([keys], [], [], until - time.monotonic())
        assert ready, shown
        try:
            piece = os.read(keys, 65_536)
        except OSError:  # how Linux says that nobody is at the other side any more
            piece = b""
        if not piece:
            assert wanted is None, shown
            break
        shown += piece
    return shown


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_options_values_and_files(shell: str, tmp_path: Path) -> None:
    (tmp_path / "unlikely.yaml").write_text("servers: {}", encoding="utf-8")
    with terminal(command_of(shell, tmp_path), tmp_path) as keys:
        read_until(keys, PROMPT)
        os.write(keys, b"kars vers\t--outp\tjs\t> version.json\n")
        read_until(keys, PROMPT)
        os.write(keys, b"kars approvals appr\t--he\t> approve.txt\n")
        read_until(keys, PROMPT)
        os.write(keys, b"kars check unl\t> check.txt 2>&1\n")
        read_until(keys, PROMPT)
        os.write(keys, b"exit\n")
        shown = read_until(keys, None)
    assert json.loads((tmp_path / "version.json").read_text())["version"] == __version__, shown
    assert (tmp_path / "approve.txt").read_text().startswith("Usage: kars approvals approve ")
    assert (tmp_path / "check.txt").read_text().startswith("unlikely.yaml: ")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_all_that_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["completion", shell]) == 0
    out, err = capsys.readouterr()
    assert "_KARS_COMPLETE" in out
    assert err == ""


def test_names_of_commands_come_without_an_import_of_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "checkers", "Has no module.")
    monkeypatch.setenv("_KARS_COMPLETE", "zsh_complete")
    monkeypatch.setenv("COMP_WORDS", "kars check")
    monkeypatch.setenv("COMP_CWORD", "1")
    with pytest.raises(SystemExit):
        cli.main([])
    said = capsys.readouterr().out.splitlines()
    assert said == ["plain", "check", cli.COMMANDS["check"], "plain", "checkers", "Has no module."]
