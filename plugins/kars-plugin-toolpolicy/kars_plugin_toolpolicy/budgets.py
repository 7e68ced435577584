"""The arithmetic of budgets: which period it is, and what was spent in it.

Pure: knows neither clock nor storage. Days are those of UTC.
"""

from __future__ import annotations

import math
from typing import Final

from attrs import frozen

DAY: Final = 86_400.0


@frozen
class Spent:
    """What was spent of a budget in one period.

    Attributes:
        amount: calls or bytes.
        day: the day, counted from 1970-01-01; 0 for a budget of a session.
    """

    amount: float
    day: int


def day_of(now: float) -> int:
    """The day of a moment of Unix time."""
    return math.floor(now / DAY)


def today(spent: Spent | None, now: float) -> Spent:
    """What counts now of what was spent.

    A new day begins with nothing spent. A clock that is set back over midnight does not begin the
    old day anew: what was spent on the later day still counts, and goes on counting until that day
    is over. A day further ahead was never real; its amount counts for today.

    Args:
        spent: as it was recorded; None for nothing.
        now: Unix time in seconds.
    """
    day = day_of(now)
    if spent is None or spent.day < day:
        return Spent(0.0, day)
    if spent.day > day + 1:
        return Spent(spent.amount, day)
    return spent


def ends(day: int) -> float:
    """When a day is over, in Unix time."""
    return (day + 1) * DAY
