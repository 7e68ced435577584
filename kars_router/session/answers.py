"""What is sent to a server without being a request: pongs, answers, notifications.

Owns their tasks and their bound; nothing here waits behind calls. Must not know what is answered.

Source: MCP 2025-11-25 "Ping" (the receiver must respond promptly).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

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

    def pong(self, ident: bytes) -> None:
        """Answers a ping; never waits."""
        self.pings += 1
        self._start(jsonrpc.result(ident, b"{}"), trio.current_time())

    def send(self, payload: bytes) -> None:
        """Sends a response or a notification; never waits."""
        self._start(payload, None)

    def _start(self, payload: bytes, ping_at: float | None) -> None:
        if self._open >= _MOST or self._over():
            self._metrics.dropped.labels(self._server, "request").inc()
            return
        self._open += 1
        self._nursery.start_soon(self._send, payload, ping_at)

    async def _send(self, payload: bytes, ping_at: float | None) -> None:
        outcome = "timeout"
        try:
            with trio.move_on_after(self._seconds):
                await self._connection.send(payload, method="", delivery=Delivery(), control=True)
                outcome = "answered"
        except CallFailed as error:
            outcome = "failed"
            log().warning("answer_failed", server=self._server, failure=error.failure.summary())
            await self._judge(error.failure, "")
        finally:
            self._open -= 1
        if ping_at is not None:
            self._metrics.pings.labels(self._server, outcome).inc()
            if outcome == "answered":
                seconds = trio.current_time() - ping_at
                self._metrics.pong_seconds.labels(self._server).observe(seconds)
