"""The process that looks for a newer release, and that nothing can make last.

    python -P -m kars_router.update note UNTIL        remembers what it finds
    python -P -m kars_router.update answer SECONDS    prints what it finds, line by line
    python -P -m kars_router.update notes SINCE UNTIL SECONDS
                                                      likewise, what is written about releases

UNTIL is a time of the monotonic clock, which all processes of a system share: the start of this one
counts.

A timer of the system ends it, wherever it may be: in a resolver that does not answer, in a read
from a server that sends an octet a second, in a regular expression.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from typing import Final

_RESERVE: Final = 0.1  # of the time, for what is ours


def main(arguments: Sequence[str]) -> int:
    """Looks once. Whatever goes wrong ends the process, and nobody hears of it."""
    match arguments:
        case ["note", until]:
            seconds = float(until) - time.monotonic()
            _end_after(seconds)
            return _note(seconds)
        case ["answer", given]:
            _end_after(float(given))
            return _answer(float(given))
        case ["notes", since, until, given]:
            _end_after(float(given))
            return _notes(since, until, float(given))
        case _:
            return 2


def _end_after(seconds: float) -> None:
    # Whoever started us may have had it ignored, or held back.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _note(seconds: float) -> int:
    from kars_router.update import state
    from kars_router.update.installation import find
    from kars_router.update.look import look

    place = state.directory(os.environ)
    for found in look(find(), os.environ, seconds=seconds * (1 - _RESERVE), every=False):
        if found.newest:
            with state.hold(place, wait=True):
                now = time.time()
                seen = state.read(place, now)
                state.write(
                    place,
                    seen._replace(
                        checked_at=int(now),
                        latest=found.newest,
                        summary=found.summary,
                        prefix=sys.prefix,
                    ),
                )
    return 0


def _answer(seconds: float) -> int:
    from kars_router.update.findings import dump
    from kars_router.update.installation import find
    from kars_router.update.look import look

    for found in look(find(), os.environ, seconds=seconds * (1 - _RESERVE), every=True):
        sys.stdout.buffer.write(dump(found))
        sys.stdout.buffer.flush()
    return 0


def _notes(since: str, until: str, seconds: float) -> int:
    from kars_router.update.findings import dump
    from kars_router.update.installation import find
    from kars_router.update.look import notes_between

    found = notes_between(find(), since, until, seconds=seconds * (1 - _RESERVE))
    sys.stdout.buffer.write(dump(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
