"""Which streams of HTTP connections are waited for together: GET streams, as long as they last."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, field
from http_kit import URL, Authority, Peer, scripted, upstream
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.transports.test_http_sockets import listening

from kars_router.errors import CallFailed
from kars_router.transports.base import Delivery, Position
from kars_router.transports.client import new_client
from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.http import TrioTransport
from kars_router.transports.http_streams import innermost
from kars_router.transports.lookout import Lookout
from kars_router.transports.streamable_http import StreamableHttp

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
CALL = b'{"jsonrpc":"2.0","id":7,"method":"tools/call"}'
ANSWER = b'{"jsonrpc":"2.0","id":7,"result":{}}'


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(method: bytes) -> bytes:
    return chunk(b'data: {"jsonrpc":"2.0","method":"%b"}\n\n' % method)


@define(eq=False)
class Server:
    """A server that sends on a request's connection what the test says."""

    tell: trio.MemorySendChannel[bytes] = field(init=False)
    heard: list[tuple[int, bytes]] = field(factory=list)  # connections, and methods of HTTP
    asked: trio.Event = field(factory=trio.Event)
    _told: trio.MemoryReceiveChannel[bytes] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.tell, self._told = trio.open_memory_channel(10)

    async def __call__(self, peer: Peer) -> None:
        """Serves one connection; of an answer, what is empty is the end."""
        while request := await peer.request():
            self.heard.append((peer.number, request.split()[0]))
            self.asked.set()
            while piece := await self._told.receive():
                await peer.send(piece)


@define(eq=False)
class Rig:
    """A connection to such a server, and a lookout that is run."""

    server: Server
    connection: StreamableHttp
    transport: TrioTransport
    lookout: Lookout
    delivered: trio.MemoryReceiveChannel[str]
    ended: trio.Event = field(factory=trio.Event)
    failure: str = ""

    async def listen(self) -> None:
        """Holds a GET stream to its end."""
        try:
            await self.connection.listen(Position(), lambda: None)
        except CallFailed as error:
            self.failure = error.failure.code
        self.ended.set()

    async def call(self) -> None:
        """Makes a call."""
        delivery = Delivery()
        await self.connection.send(CALL, method="tools/call", delivery=delivery, ident=b"7")

    async def say(self, *pieces: bytes) -> str:
        """Has the server send something; what was delivered, once all tasks wait again."""
        for piece in pieces:
            await self.server.tell.send(piece)
        delivered = await self.delivered.receive()
        await wait_all_tasks_blocked()
        return delivered


@asynccontextmanager
async def connected(authority: Authority | None) -> AsyncIterator[Rig]:
    server, lookout = Server(), Lookout()
    context = authority.server_context("127.0.0.1") if authority else None
    async with listening(server, context) as port, trio.open_nursery() as nursery:
        await nursery.start(lookout.run)
        scheme = "https" if authority else "http"
        url = f"{scheme}://127.0.0.1:{port}/mcp"
        ca_file = authority.ca_file if authority else None
        sending, delivered = trio.open_memory_channel[str](10)
        async with TrioTransport(url, ca_file=ca_file) as transport:
            connection = StreamableHttp(
                new_client(transport),
                url,
                server="s",
                deliver=lambda message, _: sending.send_nowait(message.method or "answer"),
                lookout=lookout,
            )
            connection.revision = "2025-11-25"
            yield Rig(server, connection, transport, lookout, delivered)
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@pytest.fixture(params=["plain", "tls"])
async def rig(request: pytest.FixtureRequest, authority: Authority) -> AsyncIterator[Rig]:
    async with connected(authority if request.param == "tls" else None) as made:
        yield made


async def test_a_get_stream_is_waited_for_together_with_others(
    rig: Rig, nursery: trio.Nursery
) -> None:
    nursery.start_soon(rig.listen)
    assert await rig.say(HEAD, event(b"one")) == "one"
    assert rig.lookout.waiting == 1
    looks = rig.lookout.looks
    assert await rig.say(event(b"two")) == "two"
    assert rig.lookout.looks > looks
    assert rig.lookout.waiting == 1
    assert not rig.ended.is_set()


async def test_the_answer_to_a_call_is_waited_for_by_itself(
    rig: Rig, nursery: trio.Nursery
) -> None:
    nursery.start_soon(rig.call)
    await rig.server.asked.wait()
    await wait_all_tasks_blocked()
    assert rig.lookout.waiting == 0
    assert await rig.say(HEAD, event(b"progress")) == "progress"
    assert rig.lookout.waiting == 0
    assert await rig.say(chunk(b"data: %b\n\n" % ANSWER), END, b"") == "answer"
    assert rig.lookout.looks == 0


async def test_a_connection_that_carried_a_stream_carries_calls_as_before(
    rig: Rig, nursery: trio.Nursery
) -> None:
    nursery.start_soon(rig.listen)
    assert await rig.say(HEAD, event(b"one")) == "one"
    assert await rig.say(event(b"two"), END, b"") == "two"
    await rig.ended.wait()
    assert rig.lookout.waiting == 0
    nursery.start_soon(rig.call)
    assert await rig.say(HEAD, event(b"progress")) == "progress"
    assert rig.lookout.waiting == 0
    assert await rig.say(chunk(b"data: %b\n\n" % ANSWER), END, b"") == "answer"
    assert rig.server.heard == [(1, b"GET"), (1, b"POST")]
    # and a stream again
    rig.ended = trio.Event()
    nursery.start_soon(rig.listen)
    assert await rig.say(HEAD, event(b"three")) == "three"
    assert rig.lookout.waiting == 1
    assert rig.server.heard[2:] == [(1, b"GET")]


async def test_a_call_that_goes_on_in_a_get_is_waited_for_by_itself(
    rig: Rig, nursery: trio.Nursery
) -> None:
    nursery.start_soon(rig.call)
    first = chunk(b'id: 1\nretry: 1\ndata: {"jsonrpc":"2.0","method":"one"}\n\n')
    assert await rig.say(HEAD, first, END, b"") == "one"
    assert await rig.say(HEAD, event(b"two")) == "two"
    assert [verb for _, verb in rig.server.heard] == [b"POST", b"GET"]
    assert rig.lookout.waiting == 0
    assert await rig.say(chunk(b"data: %b\n\n" % ANSWER)) == "answer"
    assert rig.lookout.looks == 0


async def test_the_pool_is_closed_under_a_stream(rig: Rig, nursery: trio.Nursery) -> None:
    nursery.start_soon(rig.listen)
    assert await rig.say(HEAD, event(b"one")) == "one"
    await rig.transport.aclose()
    await rig.ended.wait()
    assert rig.failure == "broken_stream"
    assert rig.lookout.waiting == 0


async def test_a_stream_is_given_up(rig: Rig) -> None:
    async with trio.open_nursery() as inner:
        inner.start_soon(rig.listen)
        assert await rig.say(HEAD, event(b"one")) == "one"
        inner.cancel_scope.cancel()
    assert rig.lookout.waiting == 0
    assert rig.transport.stats().open == 0


async def test_a_stream_that_has_ended_at_once_leaves_nothing_behind(
    rig: Rig, nursery: trio.Nursery
) -> None:
    nursery.start_soon(rig.listen)
    assert await rig.say(HEAD + event(b"one") + END, b"") == "one"
    await rig.ended.wait()
    assert rig.failure == ""
    [connection] = rig.transport._pool._idle
    wire = innermost(connection.stream)
    assert isinstance(wire, CountedStream)
    assert wire._lookout is None


async def test_a_stream_of_another_kind_waits_by_itself(mock_clock: MockClock) -> None:
    heard: list[str | None] = []
    async with upstream(scripted(HEAD + event(b"one"))) as (_, transport):
        connection = StreamableHttp(
            new_client(transport),
            URL,
            server="s",
            deliver=lambda message, _: heard.append(message.method),
            lookout=Lookout(),
        )
        with pytest.raises(CallFailed):  # as it breaks off
            await connection.listen(Position(), lambda: None)
    assert heard == ["one"]
