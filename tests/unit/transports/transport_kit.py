"""One bench for every transport: a connection on one side, and on the other a peer that speaks
only when it is told to.

The peers run in this process, but for the one of stdio, which is a child that relays.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import trio
import trio.testing
import trio_websocket
from attrs import define, field
from http_kit import FakeStream

from kars_router.testing import AsgiApp, AsgiBridge
from kars_router.transports.base import Connection, Delivery, Position
from kars_router.transports.client import new_client
from kars_router.transports.legacy_sse import LegacySse
from kars_router.transports.stdio import Stdio, environment
from kars_router.transports.streamable_http import StreamableHttp
from kars_router.transports.websocket import WebSocket
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

RELAY = Path(__file__).with_name("stdio_relay.py")
Json = Mapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Peer(Protocol):
    """The server's end."""

    async def receive(self) -> dict[str, Any]:
        """The next message that the router sent."""
        ...

    async def send(self, *messages: Json | bytes, about: Any = None) -> None:
        """Says something; `about` is the id of the request on whose stream, where there are any."""
        ...

    async def vanish(self) -> None:
        """Is gone, without a word."""
        ...

    def is_gone(self) -> bool:
        """Whether nothing of it is left that a connection could be to."""
        ...


@define
class Bench:
    """A connection that is open, its peer, and what was delivered."""

    connection: Connection
    peer: Peer
    nursery: trio.Nursery
    taken: list[tuple[Message, bytes]] = field(factory=list)
    _more: trio.Event = field(factory=trio.Event)

    def deliver(self, message: Message, cause: bytes) -> None:
        self.taken.append((message, cause))
        self._more.set()
        self._more = trio.Event()

    async def wait_taken(self, count: int) -> None:
        while len(self.taken) < count:
            await self._more.wait()

    async def call(self, ident: int | str, delivery: Delivery | None = None, **params: Any) -> None:
        """Sends a request; returns as `send` does."""
        raw = json.dumps(ident).encode()
        await self.connection.send(
            jsonrpc.request(raw, "tools/call", jsonrpc.encode(params)),
            method="tools/call",
            delivery=delivery or Delivery(),
            ident=raw,
        )

    async def answer(self, message: Json, *, control: bool = True) -> None:
        """Sends something that has no answer."""
        await self.connection.send(
            jsonrpc.encode(message), method="", delivery=Delivery(), control=control
        )

    async def listen(self) -> Position:
        """Has the stream of unsolicited messages held; returns once it is open."""
        position = Position()
        opened = trio.Event()

        async def hold() -> None:
            with suppress(Exception):
                await self.connection.listen(position, opened.set)

        self.nursery.start_soon(hold)
        await opened.wait()
        return position

    @property
    def results(self) -> list[tuple[bytes, bytes | None]]:
        return [(m.id, m.result) for m, _ in self.taken if m.kind is jsonrpc.Kind.RESPONSE]


OpenBench = Callable[..., AbstractAsyncContextManager[Bench]]


class _HttpPeer:
    """What both HTTP transports share: an application whose streams stay open until told."""

    def __init__(self) -> None:
        self.bridge: AsgiBridge
        self.gone = trio.Event()
        self._sender, self._received = trio.open_memory_channel[dict[str, Any]](1000)
        self._streams: dict[Any, trio.MemorySendChannel[bytes]] = {}
        self._started = trio.Event()

    async def receive(self) -> dict[str, Any]:
        return await self._received.receive()

    async def vanish(self) -> None:
        self.gone.set()
        await trio.testing.wait_all_tasks_blocked()

    def is_gone(self) -> bool:
        return self.bridge.open_responses == 0

    async def stream(self, key: Any, send: Send, receive: Receive, first: bytes = b"") -> None:
        """Answers with an event stream until the client leaves, or the response was sent."""
        sender, events = trio.open_memory_channel[bytes](1000)
        self._streams[key] = sender
        self._started.set()
        self._started = trio.Event()
        await head(send, 200, b"text/event-stream")
        if first:
            await send({"type": "http.response.body", "body": first, "more_body": True})
        async with trio.open_nursery() as nursery:

            async def watch(what: Callable[[], Any]) -> None:
                await what()
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch, receive)
            nursery.start_soon(watch, self.gone.wait)
            async for event in events:
                body = b"event: message\ndata: %b\n\n" % event
                await send({"type": "http.response.body", "body": body, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            nursery.cancel_scope.cancel()
        del self._streams[key]

    async def say(self, key: Any, data: bytes) -> None:
        while key not in self._streams:
            await self._started.wait()
        await self._streams[key].send(data)


class StreamablePeer(_HttpPeer):
    """A Streamable HTTP server: each request has its stream."""

    async def app(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            await receive()  # the empty body of the request; the next one is its end
            await self.stream(None, send, receive)
            return
        message = json.loads((await receive())["body"])
        self._sender.send_nowait(message)
        if "method" in message and "id" in message:
            await self.stream(message["id"], send, receive)
        else:
            await head(send, 202, b"text/plain")
            await send({"type": "http.response.body"})

    async def send(self, *messages: Json | bytes, about: Any = None) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else jsonrpc.encode(message)
            answer = isinstance(message, Mapping) and "method" not in message
            key = message["id"] if answer and isinstance(message, Mapping) else about
            await self.say(key, data)
            if answer:
                await self._streams[key].aclose()


class SsePeer(_HttpPeer):
    """An HTTP+SSE server: one stream for everything."""

    async def app(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["method"] == "GET":
            await receive()
            await self.stream(None, send, receive, b"event: endpoint\ndata: /post?s=1\n\n")
            return
        assert (scope["path"], scope["query_string"]) == ("/post", b"s=1")
        self._sender.send_nowait(json.loads((await receive())["body"]))
        await head(send, 202, b"text/plain")
        await send({"type": "http.response.body", "body": b"Accepted"})

    async def send(self, *messages: Json | bytes, about: Any = None) -> None:
        for message in messages:
            await self.say(None, message if isinstance(message, bytes) else jsonrpc.encode(message))


class WebSocketPeer:
    """The server's end of a WebSocket."""

    def __init__(self) -> None:
        self.wire: FakeStream
        self.socket: trio_websocket.WebSocketConnection
        self.request: trio_websocket.WebSocketRequest
        self._stream: trio.abc.Stream
        self._accepted = trio.Event()

    async def dial(self, nursery: trio.Nursery) -> trio.abc.Stream:
        client, self._stream = trio.testing.memory_stream_pair()
        self.wire = FakeStream(client)
        nursery.start_soon(self._serve)
        return self.wire

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self.request = await trio_websocket.wrap_server_stream(
                nursery, self._stream, message_queue_size=1000, max_message_size=2**26
            )
            self.socket = await self.request.accept(subprotocol="mcp")
            self._accepted.set()

    async def receive(self) -> dict[str, Any]:
        await self._accepted.wait()
        message: dict[str, Any] = json.loads(await self.socket.get_message())
        return message

    async def send(self, *messages: Json | bytes, about: Any = None) -> None:
        await self._accepted.wait()
        for message in messages:
            data = message if isinstance(message, bytes) else jsonrpc.encode(message)
            await self.socket.send_message(data.decode())

    async def vanish(self) -> None:
        await trio.aclose_forcefully(self._stream)

    def is_gone(self) -> bool:
        return self.wire.closed


class StdioPeer:
    """The far end of the child that relays."""

    def __init__(self) -> None:
        self.connection: Stdio
        self._listener: trio.SocketListener
        self._stream: trio.SocketStream | None = None
        self._lines = bytearray()

    async def listen(self) -> int:
        (self._listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port: int = self._listener.socket.getsockname()[1]
        return port

    async def stream(self) -> trio.SocketStream:
        if self._stream is None:
            self._stream = await self._listener.accept()
        return self._stream

    async def receive(self) -> dict[str, Any]:
        stream = await self.stream()
        while b"\n" not in self._lines:
            data = await stream.receive_some()
            if not data:
                raise trio.EndOfChannel
            self._lines += data
        line, _, rest = bytes(self._lines).partition(b"\n")
        self._lines[:] = rest
        message: dict[str, Any] = json.loads(line)
        return message

    async def send(self, *messages: Json | bytes, about: Any = None) -> None:
        stream = await self.stream()
        for message in messages:
            data = message if isinstance(message, bytes) else jsonrpc.encode(message)
            await stream.send_all(data + b"\n")

    async def wake(self) -> None:
        """Has a lazy child read its input."""
        await (await self.stream()).send_all(b"\n")

    async def vanish(self) -> None:
        await (await self.stream()).aclose()

    async def aclose(self) -> None:
        await self._listener.aclose()
        if self._stream is not None:
            await self._stream.aclose()

    def is_gone(self) -> bool:
        pid = self.connection.pid
        if pid is None:
            return True
        for signal in (os.kill, os.killpg):
            with suppress(ProcessLookupError):
                signal(pid, 0)
                return False
        return True


async def until(condition: Callable[[], bool]) -> None:
    """Returns once it holds; for what gives no event to wait for."""
    while not condition():  # noqa: ASYNC110
        await trio.sleep(0.002)


async def head(send: Send, status: int, kind: bytes) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", kind)],
        }
    )


@asynccontextmanager
async def _bench(
    peer: Peer, make: Callable[[Callable[[Message, bytes], None]], Connection], *, opened: bool
) -> AsyncIterator[Bench]:
    async with trio.open_nursery() as nursery:
        bench: Bench

        def deliver(message: Message, cause: bytes) -> None:
            bench.deliver(message, cause)

        bench = Bench(make(deliver), peer, nursery)
        if opened:
            await bench.connection.open(nursery)
        yield bench
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _http_bench(
    peer: StreamablePeer | SsePeer, kind: Callable[..., Connection], *, opened: bool, **options: Any
) -> AsyncIterator[Bench]:
    app: AsgiApp = peer.app
    async with trio.open_nursery() as nursery:
        peer.bridge = AsgiBridge(app, nursery)
        client = new_client(peer.bridge)
        async with _bench(
            peer,
            lambda deliver: kind(
                client, "http://upstream.test/mcp", server="s", deliver=deliver, **options
            ),
            opened=opened,
        ) as bench:
            yield bench
        nursery.cancel_scope.cancel()


def open_streamable(*, opened: bool = True, **options: Any) -> AbstractAsyncContextManager[Bench]:
    return _http_bench(StreamablePeer(), StreamableHttp, opened=opened, **options)


def open_sse(*, opened: bool = True, **options: Any) -> AbstractAsyncContextManager[Bench]:
    return _http_bench(SsePeer(), LegacySse, opened=opened, **options)


@asynccontextmanager
async def open_websocket(*, opened: bool = True, **options: Any) -> AsyncIterator[Bench]:
    peer = WebSocketPeer()
    async with trio.open_nursery() as nursery:

        async def dial(*_: object) -> trio.abc.Stream:
            return await peer.dial(nursery)

        def make(deliver: Callable[[Message, bytes], None]) -> Connection:
            return WebSocket(
                "ws://upstream.test/ws", server="s", deliver=deliver, opener=dial, **options
            )

        async with _bench(peer, make, opened=opened) as bench:
            yield bench
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_stdio(
    *, opened: bool = True, stubborn: bool = False, lazy: bool = False, **options: Any
) -> AsyncIterator[Bench]:
    peer = StdioPeer()
    port = await peer.listen()

    def make(deliver: Callable[[Message, bytes], None]) -> Connection:
        argv = [sys.executable, "-I", "-S", str(RELAY), str(port)]
        peer.connection = Stdio(
            [*argv, *["stubborn"] * stubborn, *["lazy"] * lazy],
            env=environment({}, os.environ),
            server="s",
            deliver=deliver,
            **options,
        )
        return peer.connection

    try:
        async with _bench(peer, make, opened=opened) as bench:
            yield bench
    finally:
        with trio.CancelScope(shield=True):
            await peer.aclose()


TRANSPORTS: Mapping[str, OpenBench] = {
    "streamable": open_streamable,
    "sse": open_sse,
    "websocket": open_websocket,
    "stdio": open_stdio,
}
CHANNELS: Mapping[str, OpenBench] = {
    name: opener for name, opener in TRANSPORTS.items() if name != "streamable"
}
