"""One HTTP request and its response, in ASGI terms.

Owns headers, bodies and their limits. Must not know JSON-RPC or sessions.

Source: ASGI HTTP message format 2.x; RFC 9110.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

import trio

from kars_router.front.principal import NOBODY
from kars_router.wire import eras

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Header = tuple[bytes, bytes]

# As ASGI names them.
SESSION_HEADER: Final = eras.SESSION_HEADER.encode("ascii")
VERSION_HEADER: Final = eras.VERSION_HEADER.encode("ascii")
LAST_EVENT_ID_HEADER: Final = eras.LAST_EVENT_ID_HEADER.encode("ascii")
# What an ASGI server may offer among its extensions: a function that takes the whole body of the
# request if all of it has come and returns None otherwise, so that nothing is to be waited for.
BODY_AT_HAND: Final = "kars.body_at_hand"

JSON: Final = (b"content-type", b"application/json")
_BODY_SECONDS: Final = 30.0
# At most so many turns it takes a task to start, and to get what lies ready: in a channel, or in a
# socket behind another request. In which order the tasks of one turn run is a matter of chance.
_GLANCE: Final = 8
STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)


class BodyTooLargeError(Exception):
    """The request's body exceeds the limit."""


class BodyTooSlowError(Exception):
    """The request's body does not come."""


class DisconnectedError(Exception):
    """The peer left before its request was complete."""


class Exchange:
    """One HTTP request on its way to a response.

    Attributes:
        scope: what the ASGI server says of the request, each header for itself.
        method: the HTTP method.
        path: the decoded path.
        headers: by lower-case name; repeated ones joined (RFC 9110, section 5.3).
        principal: who makes it, as far as a token has proved it.
        started: whether the response has begun.
        gone: whether the peer is known to have left.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        if len(self.headers) < len(scope["headers"]):
            self.headers = _joined(scope["headers"])
        self.query: bytes = scope.get("query_string", b"")
        self.principal = NOBODY
        self.started = False
        self.gone = False
        self._extensions: Mapping[str, Any] = scope.get("extensions") or {}
        self._receive = receive
        self._send = send

    def header(self, name: bytes) -> str:
        """The value of a request header of this name in lower case; "" if absent."""
        return self.headers.get(name, b"").decode("latin-1")

    async def body(self, limit: int) -> bytes:
        """Reads the request's body.

        Args:
            limit: most bytes that are taken.

        Raises:
            BodyTooLargeError: there are more.
            BodyTooSlowError: it is not complete within thirty seconds.
            DisconnectedError: the peer left.
        """
        body_at_hand = self._extensions.get(BODY_AT_HAND)
        body: bytes | None = body_at_hand() if body_at_hand is not None else None
        if body is not None:
            if len(body) > limit:
                raise BodyTooLargeError
            return body
        # A time limit costs more than taking what has come.
        with trio.CancelScope(deadline=trio.current_time() + _BODY_SECONDS):
            return await self._body(limit)
        raise BodyTooSlowError

    async def _body(self, limit: int) -> bytes:
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise BodyTooLargeError
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise DisconnectedError
            chunk = message.get("body", b"")
            if chunk:
                size += len(chunk)
                if size > limit:
                    raise BodyTooLargeError
                parts.append(chunk)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)

    async def respond(self, status: int, body: bytes = b"", headers: Iterable[Header] = ()) -> None:
        """Sends a whole response."""
        self.started = True
        length = (b"content-length", b"%d" % len(body))
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [length, *headers]}
        )
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def deliver(self, status: int, body: bytes, headers: Iterable[Header] = ()) -> bool:
        """Sends a whole response to a peer that may leave meanwhile; only after the body was read.

        Its last byte goes by itself: who leaves before that has not got it all. What is asked
        afterwards is of no use, since servers also report a finished exchange as a disconnect.

        Returns:
            whether the peer was there for the last byte, as far as the server knows. Nobody else
            may be waiting for its leaving meanwhile.
        """
        await self.start(status, [(b"content-length", b"%d" % len(body)), *headers])
        await self.write(body[:-1])
        there = not (self.gone or await self.has_left())
        await self._send({"type": "http.response.body", "body": body[-1:], "more_body": False})
        return there

    async def start(self, status: int, headers: Iterable[Header]) -> None:
        """Begins a streamed response."""
        self.started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": list(headers)}
        )

    async def write(self, chunk: bytes) -> None:
        """Sends a part of a streamed response; silently nothing once the peer has left."""
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def finish(self) -> None:
        """Ends a streamed response."""
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def has_left(self) -> bool:
        """Whether the peer has left, as far as the server knows; only after the body was read.

        Nobody else may be waiting for that meanwhile.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.note_disconnect)
            await self.glance()
            nursery.cancel_scope.cancel()
        return self.gone

    async def glance(self) -> bool:
        """The same where somebody waits for that already, who may be about to learn of it."""
        for _ in range(_GLANCE):
            if self.gone:
                break
            await trio.lowlevel.checkpoint()
        return self.gone

    async def note_disconnect(self) -> None:
        """Keeps `gone` right from now on; only after the body was read."""
        await self.wait_disconnect()
        self.gone = True

    async def wait_disconnect(self) -> None:
        """Waits until the peer leaves; only after the body was read."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return


def _joined(pairs: Iterable[Header]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for name, value in pairs:
        before = headers.get(name)
        headers[name] = value if before is None else b"%b, %b" % (before, value)
    return headers


async def accept_lifespan(receive: Receive, send: Send) -> None:
    """Follows an ASGI server's start and stop without doing anything.

    Our applications are ready before they are served and live longer. They take part all the
    same, because hypercorn stumbles over applications that leave at once.
    """
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
