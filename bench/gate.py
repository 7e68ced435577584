"""The regression gate: ratios of this run against those that were kept. Never times.

Pure but for reading and writing the file. A bar that was met when the figures were kept has to be
met; and none may have become worse by more than a quarter, met or not, since runs on a busy machine
differ by about as much.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.bars import Verdict

KEPT: Final = Path(__file__).with_name("kept.json")
TOLERANCE: Final = 1.25
# What is next to nothing may double without meaning anything.
_LEAST: Final = 0.05


def key(verdict: Verdict) -> str:
    """What a bar is called in the file."""
    bar = verdict.bar
    return " / ".join((bar.suite, bar.subject, bar.work, bar.metric, bar.over or "alone"))


def load(path: Path = KEPT) -> dict[str, float]:
    """The values that were kept."""
    kept: dict[str, float] = json.loads(path.read_text())
    return kept


def keep(judged: Sequence[Verdict], path: Path = KEPT) -> None:
    """Keeps what was measured for later runs, beside what this run did not measure."""
    before = load(path) if path.exists() else {}
    now = {key(each): round(each.value, 3) for each in judged if each.value is not None}
    path.write_text(json.dumps({**before, **now}, indent=1, sort_keys=True) + "\n")


def complaints(judged: Sequence[Verdict], kept: dict[str, float]) -> Iterator[str]:
    """One sentence for each bar that is missed although it was met, or that has become worse."""
    for verdict in judged:
        bar, value = verdict.bar, verdict.value
        if value is None:
            continue
        what = f"{bar.subject}, {bar.name}, {bar.work}"
        before = kept.get(key(verdict))
        low = bar.direction == "at least"
        if verdict.met is False and (before is None or _meets(before, bar.limit, low=low)):
            yield f"{what}: {value:.3g} {verdict.unit}; it has to be {bar.direction} {bar.limit:g}"
        elif before is not None and _worse(value, before, low=low):
            yield f"{what}: {value:.3g} {verdict.unit}; it was {before:.3g}"


def _meets(value: float, limit: float, *, low: bool) -> bool:
    return value >= limit if low else value <= limit


def _worse(value: float, before: float, *, low: bool) -> bool:
    if low:
        return value * TOLERANCE < before
    return value > max(before * TOLERANCE, before + _LEAST)
