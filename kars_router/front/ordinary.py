"""Ordinary requests on hypercorn's connections, and their responses, as an application sees them.

Owns which requests are ordinary, and ASGI's two calls for them. Must not know sockets, nor when a
connection begins and ends.

Nearly all that agents send is of one shape: a GET, POST or DELETE of HTTP/1.1 whose head comes in
one piece, with a Content-Length if there is a body, on a connection that goes on. Such a request
needs nothing of what the state machines of h11 and hypercorn are there for, and these cost more
than all that the router does with it. What is not clearly of that shape is none of this module's
business: h11 reads, judges or refuses it. See docs/decisions/0021-ordinary-requests.md.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final, Protocol

import trio

from kars_router.front.http_request import BadRequestError, Head, take_head
from kars_router.front.http_response import Dates, Response, ResponseError, refusal

_BEGINNINGS: Final = (b"POST /", b"GET /", b"DELETE /")
# What makes a request, or what comes after it, something else than it seems to be.
_UNUSUAL: Final = frozenset((b"connection", b"expect", b"transfer-encoding", b"upgrade"))
# Far from where parsers differ about numbers.
_LENGTH_DIGITS: Final = 15
# Pieces of a body that nobody has asked for yet: as many as hypercorn lets wait.
_PIECES: Final = 10


def take_ordinary(data: bytes) -> tuple[Head, bytes] | None:
    """Takes an ordinary request's head off what has come.

    Args:
        data: what has come and is not part of an earlier request.

    Returns:
        the head, and what comes after it; None if it is anything else that comes here.
    """
    if not data.startswith(_BEGINNINGS):
        return None
    try:
        found = take_head(data)
    except BadRequestError:
        return None  # or not: that is h11's to say
    if found is None or found[0].version != "1.1":
        return None
    for name, value in found[0].headers:
        if name in _UNUSUAL and not (name == b"connection" and value.lower() == b"keep-alive"):
            return None
        if name == b"content-length" and len(value) > _LENGTH_DIGITS:
            return None
    return found


class Carrier(Protocol):
    """The connection that a request came on.

    Attributes:
        dates: the server's.
    """

    dates: Dates

    @property
    def stopping(self) -> bool:
        """Whether the connection ends with the response under way."""

    async def write(self, parts: list[bytes]) -> None:
        """Sends; returns once all is with the kernel, or the peer has gone.

        Cancellation: does not end it once it has begun.
        """

    def look(self) -> None:
        """Goes on reading, which had to wait."""

    async def finish(self, ordinary: Ordinary) -> None:
        """Goes on behind a response that is complete, or ends the connection."""


class Ordinary:
    """One ordinary request and its response.

    Attributes:
        head: of the request.
        response: as far as it has come.
        whole: whether all of the body has come.
        gone: whether the peer has left.
    """

    __slots__ = (
        "_carrier",
        "_left",
        "_pieces",
        "_taken",
        "_waiting",
        "gone",
        "head",
        "response",
        "whole",
    )

    def __init__(self, carrier: Carrier, head: Head) -> None:
        self.head = head
        self.response = Response(head.method, head.version, keep=True)
        self.whole = not head.length
        self.gone = False
        self._carrier = carrier
        self._left = head.length or 0
        self._pieces: list[bytes] = []
        self._taken = False
        self._waiting: trio.lowlevel.ParkingLot | None = None

    @property
    def busy(self) -> bool:
        """Whether nothing more is to be fed to it, for now or ever."""
        return self.whole or len(self._pieces) >= _PIECES

    def feed(self, data: bytes) -> bytes:
        """Takes what belongs to the body off what has come; returns what comes after it."""
        piece, rest = data[: self._left], data[self._left :]
        if piece:
            self._pieces.append(piece)
            self._left -= len(piece)
            self.whole = not self._left
            self._wake()
        return rest

    def leave(self) -> None:
        """Takes note that the peer has left; idempotent."""
        self.gone = True
        self._wake()

    def body_at_hand(self) -> bytes | None:
        """What is left of the body, if all of that has come; else None, and it stays where it is.

        The extension `exchange.BODY_AT_HAND`.
        """
        if not self.whole or self._taken or self.response.complete:
            return None
        self._taken = True
        body = b"".join(self._pieces)
        self._pieces.clear()
        return body

    async def receive(self) -> MutableMapping[str, Any]:
        """The body's next piece; after the last one, waits for the peer to leave."""
        while not self.response.complete:
            if self._pieces or (self.whole and not self._taken):
                return self._next()
            if self.gone:
                break
            self._waiting = self._waiting or trio.lowlevel.ParkingLot()
            await self._waiting.park()
        await trio.lowlevel.checkpoint()
        return {"type": "http.disconnect"}

    def _next(self) -> MutableMapping[str, Any]:
        piece = self._pieces.pop(0) if self._pieces else b""
        self._taken = self.whole and not self._pieces
        if not self.whole:
            self._carrier.look()
        return {"type": "http.request", "body": piece, "more_body": not self._taken}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Sends the response's head, or the next piece of its body; nothing once it is complete.

        The head of a response with a Content-Length goes out together with its body's beginning.

        Raises:
            ResponseError: this is not what can come next.

        Cancellation: nothing of the message is sent, or all of it.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        response = self.response
        if response.complete:
            return
        kind = message["type"]
        if kind == "http.response.body":
            more = message.get("more_body", False)
            await self._carrier.write(response.body(message.get("body", b""), more=more))
            if more:
                await trio.lowlevel.cancel_shielded_checkpoint()  # a fast reader is not alone
            else:
                await self._finish()
        elif kind == "http.response.start":
            if self._carrier.stopping:
                response.keep = False
            headers = message.get("headers", ())
            response.start(int(message["status"]), headers, self._carrier.dates.line())
            if not response.sized:
                await self._carrier.write([response.take_head()])
        else:
            raise ResponseError(f"there is no {kind} here")

    async def over(self) -> None:
        """Ends a response that the application has not ended: as an error, or by cutting it off."""
        if not self.response.complete:
            await self.refuse(500)
            await self._finish()

    async def refuse(self, status: int) -> None:
        """Answers instead of the application, unless it has begun to; it can say no more."""
        unwritten = not self.response.written
        self.response.abandon()
        if unwritten:
            await self._carrier.write([refusal(status, self._carrier.dates.line())])

    async def _finish(self) -> None:
        self._wake()
        await self._carrier.finish(self)

    def _wake(self) -> None:
        if self._waiting is not None:
            self._waiting.unpark_all()
