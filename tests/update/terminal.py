"""A terminal of one's own: commands that believe somebody sits there, and what they show."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

LIMIT: Final = 240.0


@frozen
class Shown:
    """What a command showed, and how it ended."""

    status: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


def run(
    command: Sequence[str | Path],
    environ: Mapping[str, str],
    *,
    answers: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Shown:
    """Runs a command on a terminal.

    Args:
        command: with its arguments.
        environ: all of its variables.
        answers: what is typed when the text of a question was shown; each once.
        cwd: where it runs.
    """
    ours, theirs = os.openpty()
    waiting = dict(answers or {})
    shown = b""
    with subprocess.Popen(
        command,
        env=dict(environ),
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        try:
            until = time.monotonic() + LIMIT
            while piece := _read(ours, until):
                shown += piece
                for question in [each for each in waiting if each.encode() in shown]:
                    os.write(ours, waiting.pop(question).encode())
            status = process.wait(LIMIT)
        finally:
            process.kill()
            os.close(ours)
    assert not waiting, f"never asked: {waiting}; shown: {shown.decode()}"
    return Shown(status, shown.decode().replace("\r\n", "\n"))


def _read(terminal: int, until: float) -> bytes:
    """What was shown next; nothing once all who could show something have closed it."""
    ready, _, _ = select.select([terminal], [], [], max(until - time.monotonic(), 0))
    assert ready, "the command does not end"
    try:
        return os.read(terminal, 65_536)
    except OSError:  # how Linux says that the other side is closed
        return b""


def wait_true(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Returns once something that another process does has happened."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not happen"
        select.select([], [], [], 0.02)
