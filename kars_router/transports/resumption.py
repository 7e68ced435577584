"""Going on with a request's event stream that ended before its response had come.

Owns when the rest is asked for, and when that is given up. Must not know HTTP: it is given a
function that asks once.

Source: MCP 2025-11-25 "Resumability and Redelivery"; WHATWG HTML, section 9.2.3.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from kars_router.errors import CallFailed
from kars_router.model import Phase
from kars_router.telemetry import log
from kars_router.transports.answers import Reading
from kars_router.transports.base import Position

_NOT_FOUND: Final = 404
_FRUITLESS_ATTEMPTS: Final = 3
_DEFAULT_PAUSE: Final = 1.0
# A server that asks for none would have us ask without a pause for as long as the call takes.
_SHORTEST_PAUSE: Final = 0.05


def resumption_id(position: Position) -> str:
    """The event id to go on from, or "".

    An empty id takes back the ones before; one that no header can hold cannot be resumed at.
    """
    ident = position.last_event_id
    return ident if ident and ident.isprintable() else ""


def is_resumable(reading: Reading) -> bool:
    """Whether a response is still to come, and the server gave a way to ask for it."""
    return (
        not reading.answered
        and bool(reading.ident)
        and not reading.unreadable
        and bool(resumption_id(reading.position))
    )


async def resume(
    reading: Reading, ask: Callable[[Reading], Awaitable[None]], *, server: str
) -> None:
    """Asks for the rest of a request's event stream, until its response is there.

    Each time after exactly the pause that the server asked for, else after a second. Gives up,
    without an error, once three in a row have brought no event or one is refused.

    Args:
        reading: how far the stream has got.
        ask: asks once, and reads to the end of what comes; fails with phase LISTEN if refused.
        server: its configured name, for the log.

    Raises:
        CallFailed: the session is gone (404, with phase LISTEN, as the request itself was not
            refused), or what came cannot be read.
    """
    fruitless = 0
    while fruitless < _FRUITLESS_ATTEMPTS and is_resumable(reading):
        retry = reading.position.retry
        pause = _DEFAULT_PAUSE if retry is None else max(retry, _SHORTEST_PAUSE)
        await trio.sleep_until(reading.ended + pause)
        before, reading.ended = reading.events, 0.0
        try:
            await ask(reading)
        except CallFailed as error:
            failure = error.failure
            if reading.answered:
                return
            gone = failure.status == _NOT_FOUND and failure.had_session
            if gone or reading.unreadable:
                raise
            log().info("resumption_failed", server=server, failure=failure.summary())
            if failure.phase is Phase.LISTEN:
                return
        reading.ended = reading.ended or trio.current_time()  # it may never have begun
        fruitless = fruitless + 1 if reading.events == before else 0
