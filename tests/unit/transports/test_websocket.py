from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trio_websocket
from attrs import define, field
from http_kit import Authority, FakeStream
from trio.testing import MockClock
from unit.transports.transport_kit import Bench, WebSocketPeer, open_websocket

from kars_router._version import __version__
from kars_router.errors import CallFailed, UserError
from kars_router.model import Failure, Phase, Sent
from kars_router.transports.base import Delivery, Position
from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.http import trusting
from kars_router.transports.websocket import WebSocket

SECONDS = 10
URL = "ws://upstream.test/ws"


def peer_of(bench: Bench) -> WebSocketPeer:
    assert isinstance(bench.peer, WebSocketPeer)
    return bench.peer


@define(eq=False)
class Door:
    """Takes each upgrade, answers with the next of these bytes, and hangs up unless it `stays`."""

    nursery: trio.Nursery
    answers: list[bytes]
    stays: bool = False
    requests: list[bytes] = field(factory=list)
    streams: list[FakeStream] = field(factory=list)

    async def dial(self, *_: object) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        client, server = trio.testing.memory_stream_pair()
        self.streams.append(FakeStream(client))
        self.nursery.start_soon(self._answer, server)
        return self.streams[-1]

    async def _answer(self, stream: trio.abc.Stream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some()
        self.requests.append(request)
        await stream.send_all(self.answers[len(self.requests) - 1])
        if not self.stays:
            await stream.aclose()


async def refused(*answers: bytes, stays: bool = False, **options: object) -> tuple[Failure, Door]:
    """Opens at a door that does not let anybody in."""
    async with trio.open_nursery() as nursery:
        door = Door(nursery, list(answers), stays)
        connection = WebSocket(
            URL,
            server="s",
            deliver=lambda *_: None,
            opener=door.dial,
            **options,  # type: ignore[arg-type]
        )
        with pytest.raises(CallFailed) as caught:
            await connection.open(nursery)
        await connection.close()
        assert all(stream.closed for stream in door.streams)
        nursery.cancel_scope.cancel()
    return caught.value.failure, door


class Keys:
    """Credentials that differ each time."""

    def __init__(self) -> None:
        self.refreshed: list[bool] = []

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        self.refreshed.append(refresh)
        return {"authorization": f"Bearer secret-{len(self.refreshed)}"}


def http(status: bytes, body: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body)


async def test_the_upgrade(autojump_clock: MockClock) -> None:
    async with open_websocket(credentials=Keys(), headers={"x-tenant": "a"}) as bench:
        request = peer_of(bench).request
        assert request.proposed_subprotocols == ("mcp",)
        assert request.path == "/ws"
        headers = dict(request.headers)
        assert headers[b"authorization"] == b"Bearer secret-1"
        assert headers[b"x-tenant"] == b"a"
        assert headers[b"user-agent"] == f"kars-router/{__version__}".encode()
        assert b"origin" not in headers


@pytest.mark.parametrize(
    ("url", "line", "host"),
    [
        ("ws://h", b"GET / HTTP/1.1", b"Host: h"),
        ("ws://h:80/a?b=c%20d", b"GET /a?b=c%20d HTTP/1.1", b"Host: h"),
        ("ws://h:8080/é", b"GET /%C3%A9 HTTP/1.1", b"Host: h:8080"),
        ("ws://[::1]:8080/", b"GET / HTTP/1.1", b"Host: [::1]:8080"),
    ],
)
async def test_where_the_upgrade_is_asked_for(
    autojump_clock: MockClock, url: str, line: bytes, host: bytes
) -> None:
    async with trio.open_nursery() as nursery:
        door = Door(nursery, [http(b"404 No")])
        connection = WebSocket(url, server="s", deliver=lambda *_: None, opener=door.dial)
        with pytest.raises(CallFailed):
            await connection.open(nursery)
    lines = door.requests[0].split(b"\r\n")
    assert lines[0] == line
    assert host in lines


@pytest.mark.parametrize(
    ("answer", "code", "status"),
    [
        (http(b"401 Unauthorized"), "http_status", 401),
        (http(b"403 Forbidden", b"no"), "http_status", 403),
        (http(b"404 Not Found"), "http_status", 404),
        (http(b"503 Busy"), "http_status", 503),
        (http(b"200 OK"), "http_status", 200),
        (http(b"302 Found"), "redirect", 302),
        (b"HTTP/1.1 404 Not Found\r\n\r\nuntil the end", "http_status", 404),
        (b"HTTP/1.1 500 Oops\r\ncontent-length: 99\r\n\r\ncut", "http_status", 500),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "protocol", 101),
        (
            b"HTTP/1.1 101 Go on\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
            "protocol",
            101,
        ),
        (b"", "connect", None),
        (b"SSH-2.0-OpenSSH\r\n", "connect", None),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "connect", None),
        (b"\xff\xfe\x00", "connect", None),
    ],
)
async def test_an_upgrade_that_fails(
    autojump_clock: MockClock, answer: bytes, code: str, status: int | None
) -> None:
    started = trio.current_time()
    failure, _ = await refused(answer)
    assert (failure.code, failure.status) == (code, status)
    assert (failure.phase, failure.sent) == (Phase.CONNECT, Sent.NO)
    assert trio.current_time() - started < 1.0


async def test_why_an_upgrade_was_refused_is_said_without_secrets(
    autojump_clock: MockClock,
) -> None:
    body = b'{"error":"Bearer secret-1 with static-value is not known"}' + b"x" * 1000
    failure, _ = await refused(
        http(b"400 Bad", body), credentials=Keys(), headers={"x-key": "static-value"}
    )
    assert failure.body.startswith('{"error":"*** with *** is not known"}')
    assert len(failure.body) < 520


async def test_an_answer_without_end_is_not_collected(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    failure, _ = await refused(b"HTTP/1.1 400 Bad\r\n\r\n" + b"x" * 200_000, stays=True)
    assert failure.status == 400
    assert trio.current_time() == started


async def test_a_server_that_does_not_answer_the_upgrade(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    failure, _ = await refused(b"", stays=True, connect_timeout=3.0)
    assert failure.code == "connect"
    assert "3 s" in failure.detail
    assert trio.current_time() - started == pytest.approx(3.0)


@pytest.mark.parametrize("status", [b"401 Unauthorized", b"403 Forbidden"])
async def test_credentials_are_refreshed_once(autojump_clock: MockClock, status: bytes) -> None:
    keys = Keys()
    failure, door = await refused(http(status), http(status), credentials=keys)
    assert failure.status == int(status[:3])
    assert keys.refreshed == [False, True]
    assert [b"Bearer secret-%d" % n in door.requests[n - 1] for n in (1, 2)] == [True, True]


async def test_credentials_that_cannot_be_had(autojump_clock: MockClock) -> None:
    class None_:  # noqa: N801 - there are none
        async def headers(self, *, refresh: bool) -> Mapping[str, str]:
            raise UserError("the variable TOKEN is not set")

    failure, door = await refused(credentials=None_())
    assert (failure.code, failure.detail) == ("credentials", "the variable TOKEN is not set")
    assert door.requests == []


async def test_a_connection_that_cannot_be_had(autojump_clock: MockClock) -> None:
    async def dial(*_: object) -> trio.abc.Stream:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise trio.BrokenResourceError("no TLS") from error

    connection = WebSocket(URL, server="s", deliver=lambda *_: None, opener=dial)
    async with trio.open_nursery() as nursery:
        with pytest.raises(CallFailed) as caught:
            await connection.open(nursery)
    failure = caught.value.failure
    assert (failure.code, failure.phase, failure.sent) == ("connect", Phase.CONNECT, Sent.NO)
    assert "Connection refused" in failure.detail


async def test_pings_are_answered_whatever_else_is_going_on(autojump_clock: MockClock) -> None:
    async with open_websocket() as bench:
        peer = peer_of(bench)
        for ident in range(10):
            bench.nursery.start_soon(bench.call, ident)
        for n in range(200):
            await peer.send({"jsonrpc": "2.0", "method": f"n{n}"})
        with trio.fail_after(1):
            await peer.socket.ping()
        assert len(bench.taken) == 200


async def test_a_pong_of_the_router_is_something_heard(autojump_clock: MockClock) -> None:
    """Signs of life need not be messages."""
    async with open_websocket() as bench:
        position = await bench.listen()
        await trio.sleep(5)
        assert trio.current_time() - position.heard == 5
        await peer_of(bench).socket.ping()
        assert trio.current_time() - position.heard < 1


async def test_binary_frames_are_read_as_well(autojump_clock: MockClock) -> None:
    async with open_websocket() as bench:
        await peer_of(bench).socket.send_message(b'{"jsonrpc":"2.0","method":"n"}')
        await bench.wait_taken(1)
        assert bench.taken[0][0].method == "n"


async def test_close_says_goodbye(autojump_clock: MockClock) -> None:
    async with open_websocket() as bench:
        started = trio.current_time()
        await bench.connection.close()
        closed = peer_of(bench).socket.closed
        assert closed is not None
        assert closed.code == 1000
        assert trio.current_time() == started


async def test_close_does_not_wait_for_a_server_that_says_nothing(
    autojump_clock: MockClock,
) -> None:
    async with open_websocket() as bench:
        peer_of(bench).wire.hang = True
        peer_of(bench).wire.accept = 0
        started = trio.current_time()
        with trio.fail_after(60):
            await bench.connection.close()
        assert trio.current_time() - started < 2.5
        assert bench.peer.is_gone()


@pytest.mark.parametrize(
    ("code", "reason", "said"),
    [
        (1011, "out of memory", "code 1011 (internal_error), 'out of memory'"),
        (1000, None, "code 1000 (normal_closure)"),
        (4001, "go", "code 4001 (private_reserved), 'go'"),
    ],
)
async def test_what_a_server_said_when_it_closed(
    autojump_clock: MockClock, code: int, reason: str | None, said: str
) -> None:
    async with open_websocket() as bench:
        bench.nursery.start_soon(peer_of(bench).socket.aclose, code, reason)
        with pytest.raises(CallFailed) as caught:
            await bench.connection.listen(Position(), lambda: None)
        assert caught.value.failure.detail.endswith(said)


async def test_a_message_beyond_the_limit_is_refused_as_such(autojump_clock: MockClock) -> None:
    with trio.fail_after(60):
        async with open_websocket(event_limit=1000) as bench:
            peer = peer_of(bench)
            bench.nursery.start_soon(peer.send, b'"%b"' % (b"x" * 1000))
            with pytest.raises(CallFailed) as caught:
                await bench.connection.listen(Position(), lambda: None)
            assert "1009" in caught.value.failure.detail
            with pytest.raises(trio_websocket.ConnectionClosed) as closed:
                await peer.socket.get_message()
            assert closed.value.reason is not None
            assert closed.value.reason.code == 1009


@pytest.mark.parametrize("accept", [0, 10])
@pytest.mark.parametrize("hang", [False, True])
async def test_how_much_has_left_is_known(
    autojump_clock: MockClock, accept: int, hang: bool
) -> None:
    async with open_websocket(connect_timeout=2.0) as bench:
        wire = peer_of(bench).wire
        wire.accept, wire.hang = accept, hang
        delivery = Delivery()
        started = trio.current_time()
        with pytest.raises(CallFailed) as caught:
            await bench.call(1, delivery)
        failure = caught.value.failure
        assert (failure.code, failure.phase) == ("channel_closed", Phase.SEND)
        assert failure.sent is delivery.sent is (Sent.PARTLY if accept else Sent.NO)
        assert trio.current_time() - started == (2.0 if hang else 0.0)
        await bench.connection.close()
        assert bench.peer.is_gone()


async def test_a_cancelled_call_goes_out_whole(autojump_clock: MockClock) -> None:
    async with open_websocket() as bench:
        peer = peer_of(bench)
        peer.wire.accept, peer.wire.hang = 10, True
        started = trio.current_time()
        with trio.move_on_after(1) as scope:
            await bench.call(1)
        # Not before the time is over: the rest of the frame may still leave.
        assert trio.current_time() - started == 5
        assert scope.cancelled_caught


@asynccontextmanager
async def tls_server(context: ssl.SSLContext) -> AsyncIterator[int]:
    """A server on a real socket that answers with what it is sent; its port."""

    async def echo(request: trio_websocket.WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="mcp")
        with trio.move_on_after(SECONDS):
            try:
                while True:
                    await socket.send_message(await socket.get_message())
            except trio_websocket.ConnectionClosed:
                pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(
            partial(trio_websocket.serve_websocket, echo, "127.0.0.1", 0, ssl_context=context)
        )
        yield server.port
        nursery.cancel_scope.cancel()


async def test_tls_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    stranger = Authority.create(tmp_path, "stranger")
    taken: list[str] = []
    heard = trio.Event()

    def deliver(message: object, _: bytes) -> None:
        taken.append(str(message))
        heard.set()

    with trio.fail_after(SECONDS):
        async with tls_server(authority.server_context("localhost")) as port:
            url = f"wss://localhost:{port}/"
            async with trio.open_nursery() as nursery:
                connection = WebSocket(
                    url,
                    server="s",
                    deliver=deliver,
                    trust=lambda: trusting(authority.ca_file),
                )
                await connection.open(nursery)
                assert connection._tap is not None
                assert isinstance(connection._tap.inner, trio.SSLStream)
                assert isinstance(connection._tap.inner.transport_stream, CountedStream)
                delivery = Delivery()
                await connection.send(
                    b'{"jsonrpc":"2.0","method":"n"}', method="n", delivery=delivery
                )
                assert delivery.sent is Sent.YES
                await heard.wait()
                await connection.close()
            for trust in (lambda: trusting(stranger.ca_file), lambda: trusting(tmp_path / "no")):
                other = WebSocket(url, server="s", deliver=deliver, trust=trust)
                async with trio.open_nursery() as nursery:
                    with pytest.raises(CallFailed) as caught:
                        await other.open(nursery)
                assert caught.value.failure.code == "connect"
                assert caught.value.failure.sent is Sent.NO
