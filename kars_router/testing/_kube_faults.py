"""What goes wrong at a fake cluster: on demand, or at random from a seed. Knows no objects."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Final

import httpx
from attrs import define, field, frozen

from kars_router.kube.resources import Resource
from kars_router.testing._kube_wire import Answer, Refused, Seen

_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_WRITES: Final = frozenset({"create", "update", "apply", "patch", "delete"})


@frozen(kw_only=True)
class Trouble:
    """One way for a request to fail.

    Attributes:
        status: of the answer; 0 if there is none.
        retry_after: seconds, in the answer.
        body: in place of the `Status`, with its content type.
        error: what a client's transport raises, if there is no answer.
        executed: whether the server does what it was asked for, before all of this.
        seconds: how long the answer takes.
    """

    status: int = 0
    retry_after: int | None = None
    body: tuple[bytes, str] | None = None
    error: type[httpx.TransportError] | None = None
    executed: bool = False
    seconds: float = 0.0

    def answer(self, seen: Seen) -> Answer | None:
        """What the server says; None for nothing."""
        if self.body is not None:
            return Answer(self.status or 200, self.body[0], {"content-type": self.body[1]})
        if not self.status:
            return None
        reason = _REASONS.get(self.status, "Unknown")
        text = f"injected {reason} for {seen.verb} {seen.path}"
        return Refused(self.status, reason, text, retry_after=self.retry_after).answer


@define
class Plan:
    """Which requests fail.

    Attributes:
        refuses: nobody listens.
        fraction: of the requests, chosen at random, fail.
        random: chooses.
    """

    refuses: bool = False
    fraction: float = 0.0
    random: Random | None = None
    _set: list[tuple[Trouble, Callable[[Seen], bool], list[int]]] = field(factory=list, init=False)

    def add(self, trouble: Trouble, matches: Callable[[Seen], bool], times: int) -> None:
        """Has the next requests that match fail."""
        self._set.append((trouble, matches, [times]))

    def take(self, seen: Seen) -> Trouble | None:
        """What is to happen to a request; None for nothing bad."""
        if self.refuses:
            return Trouble(error=httpx.ConnectError)
        for trouble, matches, left in self._set:
            if left[0] > 0 and matches(seen):
                left[0] -= 1
                return trouble
        if self.random is not None and self.random.random() < self.fraction:
            return self.random.choice(_possible(seen))
        return None

    def breaks(self) -> bool:
        """Whether a watch breaks off before its next event."""
        return self.random is not None and self.random.random() < self.fraction / 4

    def clear(self) -> None:
        """Lets everything succeed from now on."""
        self.refuses, self.fraction = False, 0.0
        self._set.clear()


def matching(verb: str, resource: Resource | None, name: str) -> Callable[[Seen], bool]:
    """What tells whether a request is meant; what is empty or None is anything."""
    return lambda seen: (
        verb in {"", seen.verb}
        and resource in {None, seen.resource}
        and name in {"", seen.name, _named(seen)}
    )


def _named(seen: Seen) -> str:
    metadata = seen.body.get("metadata") if isinstance(seen.body, dict) else None
    return str(metadata.get("name", "")) if isinstance(metadata, dict) else ""


def _possible(seen: Seen) -> list[Trouble]:
    found = [
        Trouble(status=429, retry_after=1),
        Trouble(status=500),
        Trouble(status=503),
        Trouble(error=httpx.ConnectError),
        Trouble(error=httpx.ReadError, executed=seen.verb in _WRITES),
    ]
    if seen.verb in {"update", "patch", "apply"}:
        found.append(Trouble(status=409))
    if seen.verb in {"list", "watch"}:
        found.append(Trouble(status=410))
    return found
