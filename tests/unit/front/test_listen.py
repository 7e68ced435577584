"""Serving on real sockets: peers that leave, that do not read, that break; and the end."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import hypercorn.protocol.h11
import pytest
import structlog
import trio
import trio.testing
from attrs import Factory, define

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.front import http_request, lean, listen
from kars_router.front.exchange import Receive, Scope, Send

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"
HUGE = b"z" * 32_000_000  # more than the buffers of both ends hold
ANY = Address("127.0.0.1", 0)


class App:
    """Answers each path in its own way, and remembers what it did."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.go_on = trio.Event()
        self.left = trio.Event()
        self.versions: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.versions.append(scope["http_version"])
        while (await receive()).get("more_body"):
            pass
        self.entered.set()
        try:
            await self.answer(scope["path"], send)
        finally:
            self.left.set()

    async def answer(self, path: str, send: Send) -> None:
        if path == "/broken":
            raise RuntimeError("the application broke")
        if path == "/wait":
            await self.go_on.wait()
        body = HUGE if path == "/huge" else b"fine"
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})


class Both:
    """What the tests below run with; each runs once with either."""

    listener = Listener.HYPERCORN


@pytest.fixture(autouse=True, params=[*Listener])
def listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Listener:
    chosen: Listener = request.param
    monkeypatch.setattr(Both, "listener", chosen)
    return chosen


@define
class Served:
    """What is being served, and how to end it."""

    app: App
    url: str
    address: Address
    stop: trio.Event
    done: trio.Event
    scope: trio.CancelScope
    streams: list[trio.SocketStream] = Factory(list)

    async def connect(self) -> trio.SocketStream:
        if self.address.path:
            stream = await trio.open_unix_socket(self.address.path)
        else:
            host, _, port = self.url.removeprefix("http://").rpartition(":")
            stream = await trio.open_tcp_stream(host, int(port))
        self.streams.append(stream)
        return stream

    async def talk(self, request: bytes = GET) -> trio.SocketStream:
        """Sends a request, and reads what comes until it ends in `fine`."""
        stream = await self.connect()
        await stream.send_all(request)
        await read_until(stream, b"fine")
        return stream


async def read_until(stream: trio.SocketStream, ending: bytes = b"never") -> bytes:
    """What comes until it ends like this, or is over."""
    answer = b""
    while not answer.endswith(ending):
        part = await stream.receive_some(65536)
        if not part:
            break
        answer += part
    return answer


def get(path: str, *headers: str) -> bytes:
    lines = [f"GET {path} HTTP/1.1", "host: localhost", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


@asynccontextmanager
async def serving(address: Address = ANY, *, grace: float = 5.0) -> AsyncIterator[Served]:
    """An application that is served, for at most twenty seconds."""
    app, stop, done, scope = App(), trio.Event(), trio.Event(), trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC128 - handed on
        bound = listen.bind(address)
        try:
            with scope:
                await listen.serve(
                    app,
                    bound,
                    stop.wait,
                    grace=grace,
                    listener=Both.listener,
                    task_status=task_status,
                )
        finally:
            assert bound.sock.fileno() == -1
            done.set()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run)
            served = Served(app, url, address, stop, done, scope)
            try:
                yield served
            finally:
                # A failing test must not wait for a peer that does not read.
                for stream in served.streams:
                    stream.socket.close()
            nursery.cancel_scope.cancel()


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return ANY if request.param == "tcp" else Address(path=str(tmp_path / "agent.sock"))


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def wait_true(condition: Callable[[], bool], seconds: float) -> None:
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - the kernel sets no event
            await trio.sleep(0.01)


async def test_it_answers_where_it_says(address: Address) -> None:
    async with serving(address) as served:
        stream = await served.talk()
        await stream.send_all(GET)  # and keeps the connection
        answer = await read_until(stream, b"fine")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nserver:" not in answer.lower()
        assert served.app.versions == ["1.1", "1.1"]
        if address.path:
            assert served.url == f"http://unix:{address.path}"
        await stream.aclose()


async def test_an_ipv6_address_has_its_brackets() -> None:
    async with serving(Address("::1", 0)) as served:
        assert served.url.startswith("http://[::1]:")


@pytest.mark.parametrize(
    "request_",
    [b"", GET[:20], GET, get("/", "connection: close")],
    ids=["silent", "half", "keep-alive", "close"],
)
async def test_a_connection_that_its_peer_closed_is_let_go(
    address: Address, request_: bytes
) -> None:
    async with serving(address) as served:
        await (await served.talk()).aclose()
        before = descriptors()
        for _ in range(10):
            stream = await served.connect()
            await stream.send_all(request_)
            if request_.endswith(b"\r\n\r\n"):
                await read_until(stream, b"fine")
                await trio.testing.wait_all_tasks_blocked()  # the connection is idle again
            await stream.aclose()
        # Well below the ten seconds that an idle connection has.
        await wait_true(lambda: descriptors() <= before, 3)


async def test_a_peer_that_resets_during_a_response_leaves_no_connection() -> None:
    async with serving() as served:
        before = descriptors()
        stream = await served.connect()
        await stream.send_all(get("/wait"))
        await served.app.entered.wait()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        assert descriptors() == before + 1
        await trio.testing.wait_all_tasks_blocked(0.1)  # the reset has been seen
        served.app.go_on.set()
        await wait_true(lambda: descriptors() <= before, 3)


async def test_a_peer_that_only_stops_sending_gets_its_answer(address: Address) -> None:
    async with serving(address) as served:
        stream = await served.connect()
        await stream.send_all(get("/wait"))
        await served.app.entered.wait()
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.1)
        served.app.go_on.set()
        assert (await read_until(stream)).endswith(b"fine")
        await stream.aclose()


async def test_a_stop_lets_the_response_under_way_end(address: Address) -> None:
    async with serving(address) as served:
        idle, busy = await served.talk(), await served.connect()
        served.app.entered = trio.Event()
        await busy.send_all(get("/wait"))
        await served.app.entered.wait()
        start = trio.current_time()
        served.stop.set()
        assert await idle.receive_some(1) == b""
        with pytest.raises(OSError):  # noqa: PT011 - refused, in the words of either kind
            await served.connect()
        assert not served.done.is_set()
        served.app.go_on.set()
        assert (await read_until(busy)).endswith(b"fine")
        await served.done.wait()
        assert trio.current_time() - start < 2
        await idle.aclose()
        await busy.aclose()


async def test_a_stop_cuts_off_what_does_not_end_within_the_grace() -> None:
    async with serving(grace=0.3) as served:
        stream = await served.connect()
        await stream.send_all(get("/wait"))
        await served.app.entered.wait()
        start = trio.current_time()
        served.stop.set()
        await served.done.wait()
        assert 0.25 < trio.current_time() - start < 2
        assert served.app.left.is_set()
        await stream.aclose()


@pytest.mark.parametrize("how", ["grace", "cancelled", "cancelled after the stop"])
async def test_a_peer_that_does_not_read_holds_nothing_up(address: Address, how: str) -> None:
    async with serving(address, grace=0.3 if how == "grace" else 60) as served:
        stream = await served.connect()
        await stream.send_all(get("/huge"))
        await stream.receive_some(100)
        await trio.testing.wait_all_tasks_blocked(0.2)  # the buffers are full
        assert not served.app.left.is_set()
        if how != "cancelled":
            served.stop.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not served.done.is_set()
        start = trio.current_time()
        if how != "grace":
            served.scope.cancel()
        await served.done.wait()
        assert trio.current_time() - start < 2
        assert served.app.left.is_set()
        await stream.aclose()


async def test_an_application_that_breaks_ends_its_request_only() -> None:
    with structlog.testing.capture_logs() as logs:
        async with serving() as served:
            stream = await served.connect()
            await stream.send_all(get("/broken"))
            assert (await read_until(stream)).startswith(b"HTTP/1.1 500 ")
            await stream.aclose()
            await (await served.talk()).aclose()
    assert [line["event"] for line in logs] == ["http_server"]


async def test_a_connection_that_breaks_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    original = hypercorn.protocol.h11.H11Protocol.handle
    take_head = http_request.take_head

    async def handle(self: Any, event: Any) -> None:
        if getattr(event, "data", b"").startswith(b"BREAK"):
            raise RuntimeError("a flaw in the protocol")
        await original(self, event)

    def take(data: bytes) -> Any:
        if data.startswith(b"BREAK"):
            raise RuntimeError("a flaw in the protocol")
        return take_head(data)

    monkeypatch.setattr(hypercorn.protocol.h11.H11Protocol, "handle", handle)
    monkeypatch.setattr(lean, "take_head", take)
    with structlog.testing.capture_logs() as logs:
        async with serving() as served:
            other = await served.talk()
            stream = await served.connect()
            await stream.send_all(b"BREAK / HTTP/1.1\r\n\r\n")
            assert await read_until(stream) == b""
            await stream.aclose()
            await other.send_all(GET)
            assert (await read_until(other, b"fine")).endswith(b"fine")
            await (await served.talk()).aclose()
            await other.aclose()
    (line,) = logs
    assert line["message"] == "a connection failed"
    assert line["log_level"] == "error"
    assert "exc_info" in line


async def test_http_2_is_not_spoken() -> None:
    async with serving() as served:
        upgrade = (
            "connection: upgrade, http2-settings",
            "upgrade: h2c",
            "http2-settings: AAMAAABk",
        )
        stream = await served.connect()
        await stream.send_all(get("/", *upgrade))
        assert (await read_until(stream, b"fine")).startswith(b"HTTP/1.1 200 ")
        await stream.aclose()
        stream = await served.connect()
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
        assert (await stream.receive_some(9)).startswith(b"HTTP/1.1 ")
        await stream.aclose()
