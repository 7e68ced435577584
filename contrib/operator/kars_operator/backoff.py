"""Growing delays between attempts. Pure; the randomness is the caller's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from attrs import frozen

from kars_router.kube.errors import ApiError

_LONGEST_ASKED: Final = 300.0


@frozen
class Growth:
    """How delays grow: they double up to a cap, each with jitter.

    Attributes:
        base: the first delay, in seconds.
        cap: the longest delay, in seconds.
    """

    base: float
    cap: float

    def delay(self, failures: int, random: Callable[[], float], *, floor: float = 0.0) -> float:
        """The delay after so many failures in a row, in seconds.

        Args:
            failures: at least one.
            random: returns a float in [0, 1).
            floor: what the server asked for; never undercut.
        """
        grown = min(self.cap, self.base * 2.0 ** min(failures - 1, 30))
        # Half fixed, half random: spreads many clients out, yet never retries at once. Those that
        # were all told the same delay must not come back together either.
        return max(grown * (0.5 + random() / 2), floor * (1 + random() / 4))


def asked_delay(error: BaseException | None) -> float:
    """The seconds that the server asked us to wait, within reason; 0 if it did not ask."""
    if isinstance(error, ApiError) and error.retry_after is not None:
        return min(error.retry_after, _LONGEST_ASKED)
    return 0.0
