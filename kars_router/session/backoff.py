"""Growing delays between attempts. Pure; the randomness is the caller's."""

from __future__ import annotations

from collections.abc import Callable

from attrs import define, field


@define
class Backoff:
    """Delays that double up to a cap, each with jitter.

    Args:
        base: the first delay, in seconds.
        cap: the longest delay, in seconds.
        random: returns a float in [0, 1).
    """

    base: float
    cap: float
    random: Callable[[], float]
    failures: int = field(default=0)

    def next(self, floor: float | None = None) -> float:
        """The next delay in seconds.

        Args:
            floor: what the server asked for; never undercut.
        """
        delay = min(self.cap, self.base * 2.0 ** min(self.failures, 30))
        self.failures += 1
        # Half fixed, half random: spreads clients out, yet never retries at once.
        delay = delay * (0.5 + self.random() / 2)
        return delay if floor is None else max(delay, floor)

    def reset(self) -> None:
        """Starts over after a success."""
        self.failures = 0
