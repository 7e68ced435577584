"""What is sent to a server without being a request: pongs, answers, notifications.

Owns their tasks and their bound; nothing here waits behind calls. Must not know what is answered.

Source: MCP 2025-11-25 "Ping" (the receiver must respond promptly).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio
from prometheus_client import Counter, Histogram

from kars_router.errors import CallFailed
from kars_router.model import Failure
from kars_router.telemetry import Metrics, log
from kars_router.transports.base import Connection, Delivery
from kars_router.wire import jsonrpc

# A server that floods us with requests must not grow our memory; the rest is dropped, counted.
_MOST: Final = 64


class Answers:
    """The answers of one session.

    Args:
        server: the server's configured name.
        connection: the session's connection.
        nursery: the session's own.
        metrics: where pings and drops are counted.
        judge: told of each failure; decides whether the session is lost.
        seconds: how long one answer may take.
        over: whether the session has ended.

    Attributes:
        pings: how many pings came.
    """

    def __init__(
        self,
        server: str,
        connection: Connection,
        nursery: trio.Nursery,
        metrics: Metrics,
        *,
        judge: Callable[[Failure, str], Awaitable[bool]],
        seconds: float,
        over: Callable[[], bool],
    ) -> None:
        self.pings = 0
        self._server = server
        self._connection = connection
        self._nursery = nursery
        self._metrics = metrics
        self._judge = judge
        self._seconds = seconds
        self._over = over
        self._open = 0
        # Looked up with the first pong, for what never gets one has no series.
        self._answered: Counter | None = None
        self._seconds_of: Histogram | None = None

    def pong(self, ident: bytes) -> None:
        """Answers a ping; never waits.

        A server that refuses a pong is noticed with the next one, or with a call, so that nobody
        need wait for what it says.
        """
        self.pings += 1
        came = trio.current_time()
        payload = jsonrpc.result(ident, b"{}")
        if self._over() or not self._connection.send_now(payload, self._told):
            self._start(partial(self._post, payload), came, ping=True)
            return
        self._observe(came)

    def send(self, payload: bytes) -> None:
        """Sends a response or a notification; never waits."""
        self._start(partial(self._post, payload), None, ping=False)

    def _told(self, rest: Callable[[], Awaitable[None]] | None) -> bool:
        if rest is None:
            if self._answered is None:
                self._answered = self._metrics.pings.labels(self._server, "answered")
            self._answered.inc()
            return False
        return self._start(rest, None, ping=True)

    async def _post(self, payload: bytes) -> None:
        await self._connection.send(payload, method="", delivery=Delivery(), control=True)

    def _start(
        self, sending: Callable[[], Awaitable[None]], came: float | None, *, ping: bool
    ) -> bool:
        if self._open >= _MOST or self._over():
            self._metrics.dropped.labels(self._server, "request").inc()
            return False
        self._open += 1
        self._nursery.start_soon(partial(self._send, sending, came, ping=ping))
        return True

    async def _send(
        self, sending: Callable[[], Awaitable[None]], came: float | None, *, ping: bool
    ) -> None:
        outcome = "timeout"
        try:
            with trio.move_on_after(self._seconds):
                await sending()
                outcome = "answered"
        except CallFailed as error:
            outcome = "failed"
            log().warning("answer_failed", server=self._server, failure=error.failure.summary())
            await self._judge(error.failure, "")
        finally:
            self._open -= 1
        if ping:
            self._metrics.pings.labels(self._server, outcome).inc()
        if came is not None and outcome == "answered":
            self._observe(came)

    def _observe(self, came: float) -> None:
        if self._seconds_of is None:
            self._seconds_of = self._metrics.pong_seconds.labels(self._server)
        self._seconds_of.observe(trio.current_time() - came)
