"""One request and its response on a connection of the lean server, as an application sees them.

Owns ASGI's two calls: what is received when, and what becomes of what is sent. Must not know when a
connection begins and ends.

Source: ASGI HTTP message format 2.x.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any, Final

import trio

from kars_router.front.http_request import BadRequestError, ChunkedBody, Head, SizedBody
from kars_router.front.http_response import CONTINUE, Response, ResponseError, refusal

if TYPE_CHECKING:
    from kars_router.front.lean import Connection

# What is read ahead of requests behind the one that is being answered.
_AHEAD: Final = 64 * 1024


class Cycle:
    """One request and its response, as an application sees it."""

    __slots__ = ("_body", "_connection", "_expects", "_over", "_reading", "_waiting", "response")

    def __init__(self, connection: Connection, head: Head) -> None:
        self.response = Response(head.method, head.version, keep=head.keep)
        self._connection = connection
        self._body: SizedBody | ChunkedBody | None = (
            ChunkedBody() if head.length is None else SizedBody(head.length)
        )
        self._expects = head.expects
        self._over = False
        self._reading = False
        self._waiting: trio.lowlevel.ParkingLot | None = None

    def body_at_hand(self) -> bytes | None:
        """What is left of the body, if all of that has come; else None, and it stays where it is.

        Only for bodies of known length. The extension `exchange.BODY_AT_HAND`.
        """
        body, connection = self._body, self._connection
        if not isinstance(body, SizedBody) or self._over or self.response.complete:
            return None
        if len(connection.data) < body.left:
            return None
        piece, connection.data = body.take(connection.data)
        self._body = None
        return piece

    async def receive(self) -> MutableMapping[str, Any]:
        """The body's next piece; after the last one, waits for the peer to leave."""
        connection = self._connection
        while not (self._over or self.response.complete):
            body = self._body
            if body is not None:
                try:
                    piece, connection.data = body.take(connection.data)
                except BadRequestError as error:
                    await self._refuse(error)
                    break
                if body.done:
                    self._body = None
                    return {"type": "http.request", "body": piece, "more_body": False}
                if piece:
                    return {"type": "http.request", "body": piece, "more_body": True}
            if connection.ended:
                break
            await self._read()
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    async def _read(self) -> None:
        if self._reading or (self._body is None and len(self._connection.data) >= _AHEAD):
            self._waiting = self._waiting or trio.lowlevel.ParkingLot()
            await self._waiting.park()
            return
        self._reading = True
        try:
            if self._expects:
                self._expects = False
                await self._connection.turn()
                if not self.response.started:
                    await self._connection.write([CONTINUE])
            await self._connection.fill()
        finally:
            self._reading = False
            if self._waiting is not None:
                self._waiting.unpark_all()

    async def _refuse(self, error: BadRequestError) -> None:
        connection = self._connection
        await connection.turn()
        unwritten = not self.response.written
        self.response.abandon()
        if unwritten:
            await connection.write([refusal(error.status, connection.server.dates.line())])

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Sends the response's head, or the next piece of its body; nothing once the peer has left.

        The head of a response with a Content-Length goes out together with its body's beginning.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        connection, response = self._connection, self.response
        if connection.congestion is not None:
            await connection.turn()
        if self._over or response.complete:
            return
        kind = message["type"]
        if kind == "http.response.body":
            more = message.get("more_body", False)
            await connection.write(response.body(message.get("body", b""), more=more))
            if more:
                await trio.lowlevel.cancel_shielded_checkpoint()  # a fast reader is not alone
            else:
                self.over()
        elif kind == "http.response.start":
            if connection.server.stopping:
                response.keep = False
            date = connection.server.dates.line()
            response.start(int(message["status"]), message.get("headers", ()), date)
            if not response.sized:
                await connection.write([response.take_head()])
        else:
            raise ResponseError(f"there is no {kind} here")

    def over(self) -> None:
        """Has whoever still waits for the peer to leave go on; idempotent."""
        if self._over:
            return
        self._over = True
        if self._reading:
            self._connection.wake()
        if self._waiting is not None:
            self._waiting.unpark_all()

    @property
    def torn(self) -> bool:
        """Whether the peer has left before its request was complete."""
        return self._body is not None and self._connection.ended

    def body_taken(self) -> bool:
        """Drops what has come of a body that nobody wanted; whether that was all of it."""
        body, connection = self._body, self._connection
        if body is not None:
            try:
                _, connection.data = body.take(connection.data)
            except BadRequestError:
                return False
        return body is None or body.done
