"""The regression gate: ratios of this run against those that were kept. Never times.

Pure but for reading and writing the file. A bar that was met when the figures were kept has to be
met still, or nearly; and no ratio may have become worse by more than half, met or not. Runs on busy
machines differ by a fifth or more, and a gate that cries wolf is opened by hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from bench.bars import Verdict

KEPT: Final = Path(__file__).with_name("kept.json")
TOLERANCE: Final = 1.5
_NEARLY: Final = 1.1
# Other programs change without us.
_OTHERS: Final = "peers"
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
    now = {key(each): round(each.value, 3) for each in _ours(judged) if each.value is not None}
    path.write_text(json.dumps({**before, **now}, indent=1, sort_keys=True) + "\n")


def complaints(judged: Sequence[Verdict], kept: dict[str, float]) -> Iterator[str]:
    """One sentence for each bar that is missed although it was met, or that has become worse."""
    for verdict in _ours(judged):
        bar, value = verdict.bar, verdict.value
        if value is None:
            continue
        what = f"{bar.subject}, {bar.name}, {bar.work}"
        before = kept.get(key(verdict))
        low = bar.direction == "at least"
        was_met = before is None or _meets(before, bar.limit, low=low)
        if verdict.met is False and was_met and _worse(value, before, _NEARLY, low=low):
            yield f"{what}: {value:.3g} {verdict.unit}; it has to be {bar.direction} {bar.limit:g}"
        # What is no ratio depends on the machine.
        elif bar.over and before is not None and _worse(value, before, TOLERANCE, low=low):
            yield f"{what}: {value:.3g} {verdict.unit}; it was {before:.3g}"


def _ours(judged: Sequence[Verdict]) -> list[Verdict]:
    return [verdict for verdict in judged if verdict.bar.suite != _OTHERS]


def _meets(value: float, limit: float, *, low: bool) -> bool:
    return value >= limit if low else value <= limit


def _worse(value: float, before: float | None, times: float, *, low: bool) -> bool:
    if before is None:
        return True
    if low:
        return value * times < before
    return value > max(before * times, before + _LEAST)
