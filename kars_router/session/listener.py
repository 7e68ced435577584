"""Keeps one session's GET stream open, and says in which state it is.

Owns when to open, reopen, probe or give up. Must not know what the messages mean.

Source: MCP 2025-11-25 "Listening for Messages from the Server", "Resumability and Redelivery".
"""

from __future__ import annotations

import enum
import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from kars_router.errors import CallFailed
from kars_router.loss import CHANNEL_CLOSED
from kars_router.model import Failure
from kars_router.session.backoff import Backoff
from kars_router.telemetry import log
from kars_router.transports.base import Connection, Position
from kars_router.transports.signals import Signal

_UNAUTHORIZED: Final = (401, 403)
_GONE: Final = (400, 404)
_NO_STREAM: Final = 405
_CONFLICT: Final = 409
# A stream that ends at once each time must not become a busy loop.
_SHORT_LIVED: Final = 1.0
_SHORT_ALLOWED: Final = 2


class ListenState(enum.StrEnum):
    """The state of a session's GET stream."""

    OPENING = "opening"
    OPEN = "open"
    WAITING = "waiting"  # broken; another attempt is due
    NONE = "none"  # the server offers no stream
    CONFLICT = "conflict"  # the server says that another one is open
    UNAUTHORIZED = "unauthorized"
    CLOSED = "closed"


class Listener:
    """The GET stream of one session.

    Args:
        connection: the session's connection.
        nursery: the session's own, for probing a stream that is silent.
        server: its configured name, for the log.
        silence: seconds without a byte after which the session is probed.
        probe: sends a ping; returns whether the session is alive.
        lost: told when a failure means that the session is gone.
        changed: called with (old, new) at each change of state.
        jitter: returns a float in [0, 1).
    """

    def __init__(
        self,
        connection: Connection,
        nursery: trio.Nursery,
        *,
        server: str,
        silence: float,
        probe: Callable[[], Awaitable[bool]],
        lost: Callable[[Failure], None],
        changed: Callable[[ListenState | None, ListenState], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state = ListenState.OPENING
        self.settled = Signal()
        self.opened = 0
        self._short = 0
        self._connection = connection
        self._nursery = nursery
        self._server = server
        self._silence = silence
        self._probe = probe
        self._lost = lost
        self._changed = changed
        self._backoff = Backoff(0.25, 30.0, jitter)
        self._started = False
        self._closed = False
        self._watched = False  # whether a stream is held that is not being probed already
        self._position = Position()
        self._scope = trio.CancelScope()

    @property
    def silent_at(self) -> float:
        """Trio's clock when the stream will have been silent for too long; infinity if never."""
        return self._position.heard + self._silence if self._watched else math.inf

    def check_silence(self) -> None:
        """Has a stream probed that has been silent for too long; never waits."""
        if self.silent_at <= trio.current_time():
            self._watched = False
            self._nursery.start_soon(self._probe_silent, self._scope)

    async def run(self) -> None:
        """Holds the stream until the server offers none any more, or the session is lost.

        Somebody has to call `check_silence` at `silent_at`. Cancellation closes the stream.
        """
        if self._closed:
            return
        self._started = True
        self._changed(None, self.state)
        while not self._closed:
            since, opened = trio.current_time(), self.opened
            failure = await self._listen()
            pause: float | None = None
            with trio.CancelScope() as self._scope:
                if not self._closed:
                    pause = await self._pause(failure, since, was_open=self.opened > opened)
                if pause:
                    self._become(ListenState.WAITING)
                    await trio.sleep(pause)
            if pause is None:
                return

    def close(self) -> None:
        """Ends the stream because the session is over, whatever state it was in; never waits."""
        self._closed = True
        self._scope.cancel()
        self.settled.set()  # nobody has to wait for it any more
        if self._started:
            self._become(ListenState.CLOSED)

    async def _listen(self) -> Failure | None:
        """Holds one stream; returns the failure that it ended with, if any."""
        self._become(ListenState.OPENING)
        self._position.heard = trio.current_time()
        self._watched = True
        try:
            with trio.CancelScope() as self._scope:
                await self._connection.listen(self._position, self._on_open)
        except CallFailed as error:
            return error.failure
        finally:
            self._watched = False
        return None

    async def _pause(
        self, failure: Failure | None, since: float, *, was_open: bool
    ) -> float | None:
        """Seconds until the next stream; None if there is none to be had."""
        position = self._position
        if failure is not None and failure.code == CHANNEL_CLOSED:
            # There is no other stream to be had: the session's calls went over this one, too.
            self._lost(failure)
            return self._stop(ListenState.CLOSED)
        if failure is not None and (not was_open or failure.status != 200):
            return await self._refused(failure, position)
        # The stream was open and ended, broke, or went silent. Playwright loses a ping, and with
        # it the session, if it finds no stream at that moment: so reopen at once.
        if trio.current_time() - since >= _SHORT_LIVED:
            self._backoff.reset()
            self._short = 0
        self._short += 1
        if self._short > _SHORT_ALLOWED:
            return self._backoff.next(position.retry)
        return position.retry or 0.0

    async def _refused(self, failure: Failure, position: Position) -> float | None:
        status = failure.status
        if status == _NO_STREAM:
            return self._stop(ListenState.NONE)
        if status == _CONFLICT:
            return self._stop(ListenState.CONFLICT)
        if status in _UNAUTHORIZED:
            log().error("listen_unauthorized", server=self._server, status=status)
            return self._stop(ListenState.UNAUTHORIZED)
        if status in _GONE:
            # Some servers have no GET route at all. A session that answers a ping is not lost.
            if self.opened == 0 and await self._probe():
                return self._stop(ListenState.NONE)
            self._lost(failure)
            return self._stop(ListenState.CLOSED)
        pause = self._backoff.next(position.retry)
        log().warning(
            "listen_failed",
            server=self._server,
            failure=failure.summary(),
            retry_in=round(pause, 3),
        )
        return pause

    async def _probe_silent(self, stream: trio.CancelScope) -> None:
        log().info("listen_silent", server=self._server, seconds=self._silence)
        await self._probe()
        if self._position.heard + self._silence <= trio.current_time():
            stream.cancel()
        elif stream is self._scope:  # else it has ended meanwhile
            self._watched = True

    def _on_open(self) -> None:
        self.opened += 1
        self._become(ListenState.OPEN)
        self.settled.set()

    def _stop(self, state: ListenState) -> float | None:
        self._become(state)
        self.settled.set()
        return None

    def _become(self, state: ListenState) -> None:
        if state is not self.state and self.state is not ListenState.CLOSED:
            old, self.state = self.state, state
            self._changed(old, state)
