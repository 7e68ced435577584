"""What can go wrong on the way to a server, chosen per request.

A `FaultPlan` numbers the requests that pass an `AsgiBridge` and says which of them fails and
how; `each_operation` turns that into a loop that fails the first request of a scenario, then
the second, and so on until the scenario has no n-th request. The idea is SQLite's: every place
where an operation can fail is visited once, and the same invariant is checked after each.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import httpx
from attrs import frozen

Matcher: TypeAlias = Callable[[httpx.Request], bool]


class Stage(enum.StrEnum):
    """How far a request gets before its fault strikes."""

    CONNECT = "connect"
    SEND = "send"
    RESPONSE = "response"
    BODY = "body"


@frozen(kw_only=True)
class Fault:
    """One way for one request to go wrong. Use the constructors below.

    Attributes:
        stage: where it strikes.
        error: the class that the client sees; None if the request is only delayed.
        after: for `SEND` and `BODY`, how many bytes pass first.
        delivered: for `RESPONSE`, whether the application gets to see the request.
        seconds: how long to wait at `stage` first.
    """

    stage: Stage
    error: type[httpx.TransportError] | None
    after: int = 0
    delivered: bool = True
    seconds: float = 0.0

    @classmethod
    def connect(cls, error: type[httpx.TransportError] = httpx.ConnectError) -> Fault:
        """No connection: nothing of the request is sent."""
        return cls(stage=Stage.CONNECT, error=error)

    @classmethod
    def send(cls, after: int = 0, error: type[httpx.TransportError] = httpx.WriteError) -> Fault:
        """The connection breaks once `after` bytes of the request were accepted.

        The application never sees the request. Never all bytes: at least the last is refused.
        """
        return cls(stage=Stage.SEND, error=error, after=after)

    @classmethod
    def drop(
        cls, *, delivered: bool = True, error: type[httpx.TransportError] = httpx.ReadError
    ) -> Fault:
        """The whole request is sent and no response comes.

        Args:
            delivered: True if the application acts on the request (its answer is lost), False
                if it never sees it. A client cannot tell the two apart.
            error: `httpx.ReadError` for a reset, `httpx.RemoteProtocolError` for a clean end.
        """
        return cls(stage=Stage.RESPONSE, error=error, delivered=delivered)

    @classmethod
    def cut(cls, after: int = 0, error: type[httpx.TransportError] = httpx.ReadError) -> Fault:
        """The response breaks off after `after` bytes of its body, even if those are all."""
        return cls(stage=Stage.BODY, error=error, after=after)

    @classmethod
    def delay(cls, seconds: float, stage: Stage = Stage.RESPONSE) -> Fault:
        """The connection (`CONNECT`) or the response head (`RESPONSE`) comes late, unharmed.

        The client's own connect and read time-outs apply to the wait.
        """
        return cls(stage=stage, error=None, seconds=seconds)


class FaultPlan:
    """Which requests fail.

    Args:
        faults: fault by number of the request, counted from 1.
        always_from: number of the first request that fails by `fault`, with all after it.
        fault: see `always_from`.
        matching: counts only the requests for which it is true; all by default.

    Attributes:
        seen: how many requests were counted so far.
        taken: how many of them were given a fault.
        fired: how many faults were felt. A cut beyond the end of a short body is taken and
            not felt.
    """

    def __init__(
        self,
        faults: Mapping[int, Fault] | None = None,
        *,
        always_from: int | None = None,
        fault: Fault | None = None,
        matching: Matcher | None = None,
    ) -> None:
        self._faults = dict(faults or {})
        self._always_from = always_from
        self._always = fault
        self._matching = matching
        self.seen = 0
        self.taken = 0
        self.fired = 0

    @classmethod
    def nth(
        cls, n: int, fault: Fault, *, persistent: bool = False, matching: Matcher | None = None
    ) -> FaultPlan:
        """Fail the n-th request (from 1), or with `persistent` that one and all after it."""
        if persistent:
            return cls(always_from=n, fault=fault, matching=matching)
        return cls({n: fault}, matching=matching)

    def take(self, request: httpx.Request) -> Fault | None:
        """Count `request` and return its fault, if it has one."""
        if self._matching is not None and not self._matching(request):
            return None
        self.seen += 1
        fault = self._faults.get(self.seen)
        if fault is None and self._always_from is not None and self.seen >= self._always_from:
            fault = self._always
        if fault is not None:
            self.taken += 1
        return fault


def each_operation(
    fault: Fault,
    *,
    persistent: bool = False,
    matching: Matcher | None = None,
    limit: int = 1000,
) -> Iterator[FaultPlan]:
    """Yield plans that fail the 1st, the 2nd, ... request, until a scenario has no n-th.

    Run the whole scenario anew with each plan. The loop ends after the first plan that the
    scenario did not get as far as, so the last round is one without a fault.

    Raises:
        RuntimeError: `limit` plans were used up: the scenario makes more requests the more
            of them fail.
    """
    for n in range(1, limit + 1):
        plan = FaultPlan.nth(n, fault, persistent=persistent, matching=matching)
        yield plan
        if not plan.taken:
            return
    raise RuntimeError(f"the scenario still had a request to fail after {limit} rounds")
