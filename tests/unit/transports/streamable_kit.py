"""One Streamable HTTP connection to a server that does only what its script says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import httpx
import pytest
import trio
from attrs import define, field

from kars_router.errors import CallFailed
from kars_router.model import Sent
from kars_router.testing import AsgiBridge, FaultPlan, HeartbeatServer, Received, Reply
from kars_router.transports.base import Delivery
from kars_router.transports.client import new_client
from kars_router.transports.streamable_http import StreamableHttp
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

URL: Final = "http://upstream.test/mcp"
CALL: Final = jsonrpc.request(b"7", "tools/call", b'{"name":"t"}')
ANSWER: Final[Mapping[str, Any]] = {"jsonrpc": "2.0", "id": 7, "result": {}}
STREAM: Final = {"content-type": "text/event-stream"}


@define
class Wire:
    """The connection, what it delivered, and what the server saw of it.

    Attributes:
        taken: the messages that were delivered.
        causes: the id of the request on whose stream each of them came.
        times: trio's clock at each of them.
        delivery: that of every message that is sent.
    """

    connection: StreamableHttp
    server: HeartbeatServer
    bridge: AsgiBridge
    taken: list[Message] = field(factory=list)
    causes: list[bytes] = field(factory=list)
    times: list[float] = field(factory=list)
    delivery: Delivery = field(factory=Delivery)

    async def send(
        self, payload: bytes = CALL, method: str = "tools/call", ident: bytes = b"7", **options: Any
    ) -> None:
        await self.connection.send(
            payload, method=method, delivery=self.delivery, ident=ident, **options
        )

    async def refused(self) -> CallFailed:
        with pytest.raises(CallFailed) as caught:
            await self.send()
        assert self.bridge.open_responses == 0
        assert caught.value.failure.sent is self.delivery.sent or self.delivery.sent is Sent.YES
        return caught.value

    def take(self, message: Message, cause: bytes) -> None:
        self.taken.append(message)
        self.causes.append(cause)
        self.times.append(trio.current_time())

    @property
    def answers(self) -> list[bytes | None]:
        return [message.result for message in self.taken]

    @property
    def seen(self) -> list[Received]:
        return self.server.log


@asynccontextmanager
async def open_wire(
    script: Callable[[Received], Reply] | Reply,
    *,
    faults: FaultPlan | None = None,
    url: str = URL,
    **options: Any,
) -> AsyncIterator[Wire]:
    """Opens one; `options` go to the connection. Nothing may be left open at the end."""
    async with trio.open_nursery() as nursery, HeartbeatServer.open() as server:
        server.script = script if callable(script) else lambda _: script
        bridge = AsgiBridge(server.app, nursery, faults=faults)
        async with new_client(bridge) as client:

            def deliver(message: Message, cause: bytes) -> None:
                wire.take(message, cause)

            connection = StreamableHttp(client, url, server="s", deliver=deliver, **options)
            wire = Wire(connection, server, bridge)
            await connection.open(nursery)
            yield wire
        assert bridge.open_responses == 0
        nursery.cancel_scope.cancel()


@define(eq=False)
class Trickle(httpx.AsyncBaseTransport):
    """Answers every request alike, the body in small pieces.

    Attributes:
        size: bytes of a piece.
        seconds: how long each piece takes.
        closing: how long it takes to close a response.
        breaks: whether the connection breaks after the body.
        requests: what was asked.
        times: when.
        taken: how many bytes of the last body were read.
    """

    reply: Reply
    size: int = 100
    seconds: float = 0.0
    closing: float = 0.0
    breaks: bool = False
    requests: list[httpx.Request] = field(factory=list)
    times: list[float] = field(factory=list)
    taken: int = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await trio.lowlevel.checkpoint()
        self.requests.append(request)
        self.times.append(trio.current_time())
        self.taken = 0
        status = self.reply.status or 500
        return httpx.Response(status, headers=dict(self.reply.headers), stream=_Pieces(self))


@define(eq=False)
class _Pieces(httpx.AsyncByteStream):
    source: Trickle
    closed: bool = False

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            await trio.sleep(self.source.closing)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        source = self.source
        while piece := source.reply.body[source.taken : source.taken + source.size]:
            await trio.sleep(source.seconds)
            if self.closed:
                raise httpx.ReadError("the response was closed")
            source.taken += len(piece)
            yield piece
        if source.breaks:
            raise httpx.ReadError("reset by peer")


async def send_over(
    transport: httpx.AsyncBaseTransport, delivery: Delivery | None = None, **options: Any
) -> None:
    """Sends a call over a transport of the test's own; `options` go to the connection."""
    async with new_client(transport) as client:
        connection = StreamableHttp(client, URL, server="s", deliver=lambda *_: None, **options)
        await connection.send(
            CALL, method="tools/call", delivery=delivery or Delivery(), ident=b"7"
        )
