"""How much is to be measured."""

from __future__ import annotations

import sys
from pathlib import Path

from attrs import frozen

from bench.subjects import Subject


@frozen(kw_only=True)
class Context:
    """What every suite is told.

    Attributes:
        subjects: what is measured besides the upstream itself.
        rounds: how often each is measured, in turns.
        seconds: how long a load lasts.
        quick: leave out what takes long; the bars that need it are not judged.
        out: where profiles go.
    """

    subjects: tuple[Subject, ...]
    rounds: int
    seconds: float
    quick: bool
    out: Path

    def say(self, text: str) -> None:
        """Tells who is waiting what is going on."""
        print(text, file=sys.stderr, flush=True)
