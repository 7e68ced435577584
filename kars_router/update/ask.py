"""Looks for a newer release and waits for the answer, in a process that a timer ends."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

from kars_router.update import LOOK
from kars_router.update.findings import Findings, load

_GRACE: Final = 5.0  # seconds beyond its own limit, for a machine too busy to start it


def ask(seconds: float, *, debug: bool = False) -> Findings:
    """Looks for a newer release.

    Args:
        seconds: how long that may take.
        debug: whether what goes wrong in the process is shown on stderr.
    """
    return _answer(("answer", str(seconds)), seconds, debug=debug)


def ask_notes(since: str, until: str, seconds: float) -> Findings:
    """Asks for the lines about the releases after one and up to another; there may be none.

    Args:
        since: the version after which it begins.
        until: the last one.
        seconds: how long that may take.
    """
    return _answer(("notes", since, until, str(seconds)), seconds)


def _answer(words: tuple[str, ...], seconds: float, *, debug: bool = False) -> Findings:
    with subprocess.Popen(  # noqa: S603 (our own interpreter)
        [sys.executable, *LOOK, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=None if debug else subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds + _GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        except KeyboardInterrupt:
            process.kill()
            raise
    found = load(output)
    if found is not None:
        return found
    if process.returncode < 0:
        return Findings(problem=f"there was no answer within {seconds:g} seconds")
    return Findings(problem="the process that looks for it failed; --debug shows how")
