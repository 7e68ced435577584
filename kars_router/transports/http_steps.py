"""The steps of an exchange over HTTP: how long each may take, and what its failures become.

Must not know requests or responses beyond naming them in an error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar, TypeVarTuple

import httpx
import trio
from attrs import frozen

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


@frozen
class Step:
    """A kind of I/O and what its failures become: the one place where errors are mapped.

    Attributes:
        name: what it is called in an error.
        limit: the name of its time limit.
        error: what a failure becomes.
        timeout: what becomes of it if it takes too long.
        causes: what counts as a failure.
    """

    name: str
    limit: str
    error: type[httpx.TransportError]
    timeout: type[httpx.TimeoutException]
    causes: tuple[type[Exception], ...]

    def failed(self, exc: Exception, request: httpx.Request | None) -> httpx.TransportError:
        """What a failure becomes."""
        return self.error(f"{self.name}: {_reason(exc)}", request=request)


_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
PLACE: Final = Step(
    "waiting for a free connection", "pool", httpx.PoolTimeout, httpx.PoolTimeout, ()
)
# ValueError: a host that cannot be looked up (UnicodeError) or cannot be a TLS server name.
CONNECT: Final = Step(
    "connecting", "connect", httpx.ConnectError, httpx.ConnectTimeout, (*_BROKEN, ValueError)
)
WRITE: Final = Step("sending the request", "write", httpx.WriteError, httpx.WriteTimeout, _BROKEN)
READ: Final = Step("reading the response", "read", httpx.ReadError, httpx.ReadTimeout, _BROKEN)


async def bounded(
    step: Step,
    limits: Mapping[str, float | None],
    request: httpx.Request | None,
    operation: Callable[[*_Ts], Awaitable[_T]],
    *args: *_Ts,
) -> _T:
    """Do one piece of I/O with its time limit and its errors in httpx's terms.

    Args:
        step: what kind it is.
        limits: seconds by the name of the limit; None, or absent, is unlimited.
        request: named in the errors, if there is one.
        operation: does it.
        *args: what it gets.

    Raises:
        httpx.TransportError: it failed, or took too long.
    """
    seconds = limits.get(step.limit)
    try:
        if seconds is None:
            return await operation(*args)
        with trio.move_on_after(seconds):
            return await operation(*args)
    except step.causes as exc:
        raise step.failed(exc, request) from exc
    raise step.timeout(f"{step.name} took more than {seconds} s", request=request)


def _reason(exc: BaseException) -> str:
    """The innermost cause: Trio's own words say only that a resource broke."""
    while True:
        if isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        elif exc.__cause__ is not None:
            exc = exc.__cause__
        else:
            return str(exc) or type(exc).__name__
