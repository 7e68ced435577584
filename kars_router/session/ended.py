"""Which agent sessions have ended, in no more room than those that have not.

Owns the names of agent sessions, since that is what makes this small: each process counts its
sessions, so that the ended ones are a few ranges of numbers, with a gap for each that lives. Pure
but for the randomness of a series' name.
"""

from __future__ import annotations

import re
import secrets
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final

from attrs import define, field

_NAME: Final = re.compile(r"[0-9a-f]{20}")
_SERIES: Final = 12  # of its digits; two routers with one file must not meet, nor two starts
# Names of other kinds, as earlier releases made them, take room each.
_MOST_OTHERS: Final = 100_000


def new_names() -> Iterator[str]:
    """The names of one process's agent sessions, 20 hexadecimal digits each; without end."""
    series = secrets.token_hex(_SERIES // 2)
    number = 0
    while True:
        yield f"{series}{number:08x}"
        number += 1


@define(eq=False)
class _Ranges:
    """Numbers of one series. Two ranges never touch.

    Attributes:
        firsts: the first number of each range, ascending.
        lasts: the last one of each.
        latest: when the last of them was added, in seconds of the wall clock.
    """

    firsts: list[int] = field(factory=list)
    lasts: list[int] = field(factory=list)
    latest: float = 0.0

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self.firsts, number) - 1
        return at >= 0 and number <= self.lasts[at]

    def add(self, first: int, last: int) -> None:
        """Adds numbers."""
        at = bisect_right(self.firsts, first)
        if at and self.lasts[at - 1] >= first - 1:
            at -= 1
            first = self.firsts[at]
        end = at
        while end < len(self.firsts) and self.firsts[end] <= last + 1:
            last = max(last, self.lasts[end])
            end += 1
        self.firsts[at:end] = [first]
        self.lasts[at:end] = [last]


class Ended:
    """The agent sessions that have ended, of this process and of earlier ones.

    Args:
        lifetime: seconds after which nobody may ask any more (an agent session's longest life).
    """

    def __init__(self, lifetime: float) -> None:
        self._lifetime = lifetime
        self._series: dict[str, _Ranges] = {}
        self._others: dict[str, float] = {}

    def __contains__(self, agent: str) -> bool:
        if _NAME.fullmatch(agent):
            ranges = self._series.get(agent[:_SERIES])
            return ranges is not None and int(agent[_SERIES:], 16) in ranges
        return agent in self._others

    def add(self, agent: str, at: float) -> None:
        """Notes that a session ended at a time of the wall clock, in seconds."""
        if _NAME.fullmatch(agent):
            number = int(agent[_SERIES:], 16)
            self._add(agent[:_SERIES], number, number, at)
        else:
            self._others[agent] = at

    def forget(self, now: float) -> None:
        """Lets go of what is of no use any more."""
        horizon = now - self._lifetime
        for series in [s for s, ranges in self._series.items() if ranges.latest <= horizon]:
            del self._series[series]
        while self._others:  # in the order of their end, so the stale ones come first
            agent, at = next(iter(self._others.items()))
            if at > horizon and len(self._others) <= _MOST_OTHERS:
                return
            del self._others[agent]

    def rows(self) -> Iterator[dict[str, Any]]:
        """All of it, as JSON objects that `take` understands."""
        for series, ranges in self._series.items():
            pairs = [list(pair) for pair in zip(ranges.firsts, ranges.lasts, strict=True)]
            yield {"series": series, "ended": pairs, "at": ranges.latest}
        for agent, at in self._others.items():
            yield {"agent": agent, "ended": True, "at": at}

    def take(self, row: dict[str, Any]) -> bool:
        """Takes a row that `rows` gave; False if it is another one, or of no use."""
        series, pairs, at = row.get("series"), row.get("ended"), row.get("at")
        if not isinstance(at, int | float):
            return False
        if isinstance(agent := row.get("agent"), str) and pairs is True:
            self.add(agent, at)
            return True
        if not isinstance(series, str) or not isinstance(pairs, list):
            return False
        for pair in pairs:
            match pair:
                case [int(first), int(last)] if 0 <= first <= last:
                    self._add(series, first, last, at)
                case _:
                    return False
        return True

    def _add(self, series: str, first: int, last: int, at: float) -> None:
        ranges = self._series.setdefault(series, _Ranges())
        ranges.add(first, last)
        ranges.latest = max(ranges.latest, at)
