"""A response that nobody waits for: it is read when a connection to its server is wanted.

A server's pings come one by one, each to a router that sleeps. To answer one is a single write;
to wait for the server's "202" would wake the router a second time, for a task, a time limit and a
cancel scope, all to learn what almost never says anything. Must not know what was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import httpx
import trio

from kars_router.transports.http_reply import Exchange, TrioReply

_PATIENCE_SECONDS: Final = 5.0


class Unread:
    """The response to a request that has been sent whole.

    Args:
        reply: the exchange; its connection is a plain one.
        exchange: how far its request got.
        told: called once: with None when the server has accepted the request and said nothing
            else, with this object if there is more to it. Returns whether somebody will wait for
            `head` then; if not, the connection is given up. It must not wait.
    """

    __slots__ = ("_due", "_reply", "_told", "_trouble", "exchange")

    def __init__(
        self, reply: TrioReply, exchange: Exchange, told: Callable[[Unread | None], bool]
    ) -> None:
        self.exchange = exchange
        self._reply = reply
        self._told = told
        self._due = (reply.sent_at or trio.current_time()) + _PATIENCE_SECONDS
        self._trouble: httpx.TransportError | None = None

    def settle(self) -> bool:
        """Look at what has come; never waits.

        Returns:
            False if nothing has, and it is not time yet to wonder; else somebody was told.
        """
        try:
            if not self._reply.read_now() and trio.current_time() < self._due:
                return False
        except httpx.TransportError as error:
            self._trouble = error
        if self._reply.is_receipt:
            self._told(None)
        elif not self._told(self):
            self._reply.give_up()
        return True

    async def head(self) -> TrioReply:
        """The response, once its head is there.

        Raises:
            httpx.TransportError: as an exchange does that was waited for from the start.

        Cancelled, it closes the connection.
        """
        try:
            if self._trouble is not None:
                raise self._trouble
            await self._reply.read_head()
        except BaseException:
            await self._reply.aclose()
            raise
        return self._reply
