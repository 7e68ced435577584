"""The arithmetic of a token bucket.

Pure: knows neither clock nor storage. What is kept is how much is *missing* from a full bucket, so
that a bucket which nobody touched needs no memory, and one whose size was changed by a new policy
goes on from what had been taken.
"""

from __future__ import annotations

import math

from attrs import frozen


@frozen
class Bucket:
    """A bucket's measures.

    Attributes:
        capacity: tokens in a full one: the calls that may come at once; at least 1.
        rate: tokens that come back each second; above 0.
    """

    capacity: float
    rate: float

    def missing(self, before: float, since: float) -> float:
        """How much is missing from a full one now.

        Args:
            before: how much was missing then; more than `capacity` where that has shrunk.
            since: seconds between then and now. Negative if the clock was set back, which gives
                nothing and takes nothing.
        """
        return max(0.0, min(before, self.capacity) - self.rate * max(0.0, since))

    def wait(self, missing: float) -> float:
        """Seconds until a token can be taken; 0 if one can be taken now."""
        # The tolerance is for sums of floats: a bucket that refills by thirds has its token.
        short = missing + 1 - self.capacity
        return 0.0 if short <= 1e-6 else short / self.rate

    def full_in(self, missing: float) -> float:
        """Seconds until nothing is missing."""
        return missing / self.rate


def bucket(calls: int, window: float, burst: int | None) -> Bucket:
    """The bucket of a limit.

    Args:
        calls: calls in a window.
        window: seconds, above 0.
        burst: calls that may come at once; None for `calls`.
    """
    return Bucket(float(burst or calls), calls / window)


def simple_bucket(rps: int, window: float, burst: int | None) -> Bucket:
    """The bucket of kars' own `rateLimit`.

    Args:
        rps: calls in a second.
        window: seconds over which that average is taken, so that a whole window may come at once.
        burst: calls that may come at once, whatever the window.
    """
    return Bucket(float(burst or max(1, math.ceil(rps * window))), float(rps))
