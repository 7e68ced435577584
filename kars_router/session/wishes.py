"""What a handshake-era session is told to report: updates of resources, log messages.

Must not know who wants to hear of it.

Source: MCP 2025-11-25 "Resources / Subscriptions", "Logging".
"""

from __future__ import annotations

from typing import Any, Protocol

import trio

from kars_router.session.pending import Pending
from kars_router.telemetry import log
from kars_router.wire import jsonrpc


class Requester(Protocol):
    """A session, as far as it can be told something."""

    @property
    def alive(self) -> bool:
        """Whether new requests may be made."""
        ...

    def submit(self, method: str, params: bytes, *, time_limit: float) -> Pending:
        """Starts one request."""
        ...


class Wishes:
    """The wishes of one session.

    Args:
        server: the server's configured name.
        session: the session.
        nursery: the session's own.
        seconds: how long the server may take for what is told in the background.
    """

    def __init__(
        self, server: str, session: Requester, nursery: trio.Nursery, *, seconds: float
    ) -> None:
        self._server = server
        self._session = session
        self._nursery = nursery
        self._seconds = seconds
        self._level = ""
        self._level_known: trio.Event | None = None

    @property
    def are_settled(self) -> bool:
        """Whether there is nothing that `settled` would wait for."""
        return self._level_known is None

    async def settled(self) -> None:
        """Waits until the server knows the log level, if it is just being told."""
        if self._level_known is not None:
            await self._level_known.wait()

    async def subscribe(self, uri: str, *, time_limit: float) -> bytes | None:
        """See `Session.subscribe`."""
        return await self._tell("resources/subscribe", {"uri": uri}, time_limit)

    def unsubscribe(self, uri: str) -> None:
        """See `Session.unsubscribe`."""
        self._in_background("resources/unsubscribe", {"uri": uri})

    def watch(self, uris: frozenset[str]) -> None:
        """Has updates of all of these reported, in the background."""
        if uris and self._session.alive:
            self._nursery.start_soon(self._watch_each, uris)

    def set_log_level(self, level: str) -> None:
        """See `Session.set_log_level`."""
        if not level or level == self._level or not self._session.alive:
            return
        self._level = level
        if self._level_known is None:
            self._level_known = trio.Event()
            self._nursery.start_soon(self._send_level, self._level_known)

    async def _watch_each(self, uris: frozenset[str]) -> None:
        # One after another, lest a thousand of them take the connections of calls.
        for uri in sorted(uris):
            if self._session.alive:
                await self._tell("resources/subscribe", {"uri": uri}, self._seconds)

    async def _send_level(self, known: trio.Event) -> None:
        # One at a time, so that the last word is the last to arrive.
        sent = ""
        while sent != self._level:
            sent = self._level
            wrong = await self._tell("logging/setLevel", {"level": sent}, self._seconds)
            if wrong is not None and self._level == sent:
                self._level = sent = ""  # so that the next one who wants it asks again
        self._level_known = None
        known.set()

    async def _tell(self, method: str, params: Any, time_limit: float) -> bytes | None:
        pending = self._session.submit(method, jsonrpc.encode(params), time_limit=time_limit)
        await pending.wait()
        if pending.failure is not None:
            log().warning("request_failed", server=self._server, failure=pending.failure.summary())
            text = f"the server {self._server} could not be told"
            return jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, text)
        return pending.reply.error if pending.reply else None

    def _in_background(self, method: str, params: Any) -> None:
        if self._session.alive:
            self._nursery.start_soon(self._tell, method, params, self._seconds)
