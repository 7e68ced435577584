"""A lean server in memory: socket pairs, and applications that say what they saw."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio
import trio.testing

from kars_router.front.exchange import Receive, Scope, Send
from kars_router.front.lean import LeanServer

KEEP_ALIVE = 10.0
HOST = "host: localhost"
Serve = Callable[[Scope, Receive, Send], Awaitable[None]]


def request(line: str = "GET / HTTP/1.1", *headers: str, body: bytes = b"") -> bytes:
    """A request; with a Content-Length if it has a body."""
    length = [f"content-length: {len(body)}"] if body else []
    return "\r\n".join([line, HOST, *length, *headers, "", ""]).encode("latin-1") + body


BIG = b"z" * 4_000_000  # more than both ends hold


async def take_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


async def take_body_or_none(receive: Receive) -> bytes | None:
    """The body; None if the peer left before all of it had come."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


class Recorder:
    """An application that echoes, and remembers each request and each message that it got."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.kinds: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        body = b""
        while True:
            message = await receive()
            self.kinds.append(message["type"])
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.bodies.append(body)
        await respond(send, body)


async def respond(send: Send, body: bytes = b"", status: int = 200, **headers: str) -> None:
    """A whole response with a Content-Length."""
    fields = [(b"content-length", b"%d" % len(body))]
    fields += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": body})


class Rig:
    """A server, and connections to it."""

    def __init__(self, server: LeanServer, nursery: trio.Nursery) -> None:
        self.server = server
        self.nursery = nursery
        self.open = 0

    async def connect(self) -> trio.SocketStream:
        """A connection; both ends hold only a little that was not read."""
        ours, theirs = trio.socket.socketpair()
        self.open += 1
        self.nursery.start_soon(self._handle, trio.SocketStream(theirs))
        await trio.lowlevel.checkpoint()
        return trio.SocketStream(ours)

    async def _handle(self, stream: trio.SocketStream) -> None:
        try:
            await self.server.handle(stream)
        finally:
            self.open -= 1

    async def ask(self, *parts: bytes, pause: float = 0) -> bytes:
        """All that comes back on a connection of its own, on which the peer then stops sending."""
        stream = await self.connect()
        try:
            for part in parts:
                await stream.send_all(part)
                if pause:
                    await trio.sleep(pause)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # it had heard enough
        return await read_all(stream)

    async def ends(self) -> None:
        """Returns once no connection is open."""
        while self.open:  # noqa: ASYNC110 - an end of many
            await trio.sleep(0.01)


async def read_all(stream: trio.SocketStream) -> bytes:
    """What comes until the end."""
    got = b""
    async with stream:
        try:
            async for part in stream:
                got += part
        except trio.BrokenResourceError:
            got += b" (reset)"
    return got


async def read_some(stream: trio.SocketStream, ending: bytes) -> bytes:
    """What comes until it ends like this."""
    got = b""
    while not got.endswith(ending):
        part = await stream.receive_some()
        assert part, f"it ended after {got!r}"
        got += part
    return got


@asynccontextmanager
async def serving(app: Serve) -> AsyncIterator[Rig]:
    """A server that serves this, until the block ends; every connection is over by then."""
    server = LeanServer(app, keep_alive=KEEP_ALIVE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.run)
        async with trio.open_nursery() as connections:
            rig = Rig(server, connections)
            yield rig
            await server.stop()
            with trio.fail_after(60):
                await rig.ends()
        nursery.cancel_scope.cancel()


def statuses(answer: bytes) -> list[int]:
    """The status of each response in what came, bodies without a line end at their end."""
    return [int(piece[:3]) for piece in answer.split(b"HTTP/1.1 ")[1:]]


def split_response(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """One response: its status, its headers, and what came after the head."""
    head, _, body = answer.partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = dict(field.lower().split(": ", 1) for field in fields)
    return int(line.split(" ")[1]), headers, body
