"""What our connections need of hypercorn, and what they do less often than it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import hypercorn.app_wrappers
import hypercorn.config
import hypercorn.protocol.events
import hypercorn.protocol.h11
import hypercorn.trio.task_group
import hypercorn.trio.tcp_server
import hypercorn.trio.worker_context
import hypercorn.utils
import pytest
import trio
from trio.testing import MockClock

from kars_router.front.exchange import Receive, Scope, Send
from kars_router.front.hypercorn_server import HypercornServer

GET = b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (hypercorn.app_wrappers, ["ASGIWrapper"]),
        (
            hypercorn.config.Config,
            ["keep_alive_timeout", "keep_alive_max_requests", "include_server_header", "log"],
        ),
        (hypercorn.protocol.h11.H11Protocol, ["handle", "stream_send", "_check_protocol"]),
        (hypercorn.protocol.events, ["Response"]),
        (hypercorn.trio.task_group.TaskGroup, ["spawn", "spawn_app", "__aenter__", "__aexit__"]),
        (
            hypercorn.trio.tcp_server.TCPServer,
            ["run", "protocol_send", "_read_data", "_close", "_initiate_server_close"],
        ),
        # What stands for its idle task.
        (hypercorn.trio.worker_context.TrioSingleTask, ["restart", "stop"]),
        (hypercorn.trio.worker_context.WorkerContext(None), ["terminated"]),
        (hypercorn.utils, ["parse_socket_addr"]),
    ],
)
def test_hypercorn_has_what_the_listener_is_built_on(owner: Any, names: list[str]) -> None:
    missing = [name for name in names if not hasattr(owner, name)]
    assert not missing, (
        f"hypercorn has changed: {owner} lacks {missing}; kars_router/front/hypercorn_server.py is "
        "built on it, see docs/decisions/0008-hypercorn-connections.md"
    )


def test_a_connection_of_hypercorn_has_the_attributes_that_ours_uses() -> None:
    class Nothing:
        pass

    nothing: Any = Nothing()
    server = hypercorn.trio.tcp_server.TCPServer(nothing, nothing, nothing, {}, nothing)
    missing = {"app", "config", "context", "idle_task", "stream"} - set(vars(server))
    assert not missing, f"hypercorn has changed: a TCPServer has no {missing}"


class Wire(trio.abc.HalfCloseableStream):
    """One end of a connection that counts its writes."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.socket = stream.socket
        self.writes: list[bytes] = []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))
        await self.stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self.stream.receive_some(max_bytes)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive()).get("more_body"):
        pass
    kind = scope["path"]
    sized = [] if kind == "/stream" else [(b"content-length", b"0" if kind == "/empty" else b"4")]
    await send({"type": "http.response.start", "status": 200, "headers": sized})
    if kind == "/slow":
        await trio.sleep(60)
    if kind == "/parts":
        await send({"type": "http.response.body", "body": b"on", "more_body": True})
        await send({"type": "http.response.body", "body": b"ce", "more_body": False})
    else:
        body = b"" if kind == "/empty" else b"once"
        await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[HypercornServer, trio.SocketStream, Wire]]:
    server = HypercornServer(answer, keep_alive=10)
    ours, theirs = trio.socket.socketpair()
    wire = Wire(trio.SocketStream(theirs))
    async with trio.open_nursery() as nursery, trio.SocketStream(ours) as client:
        served: Any = wire
        nursery.start_soon(server.handle, served)
        yield server, client, wire
        await client.aclose()
        with trio.fail_after(1):
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("path", "writes"), [("/", 1), ("/empty", 1), ("/parts", 2), ("/stream", 3)]
)
async def test_a_response_is_one_write_if_it_can_be(path: str, writes: int) -> None:
    async with connection() as (_, client, wire):
        for _ in range(2):
            wire.writes.clear()
            await client.send_all(GET.replace(b"/", path.encode(), 1))
            await trio.testing.wait_all_tasks_blocked(0.01)
            got = bytes(await client.receive_some())
            assert got == b"".join(wire.writes)
            assert got.startswith(b"HTTP/1.1 200 ")
            assert len(wire.writes) == writes


async def test_a_connection_is_idle_for_so_long_from_its_last_answer(
    autojump_clock: MockClock,
) -> None:
    async with connection() as (_, client, _wire):
        start = trio.current_time()
        for pause in (0, 9, 9.9, 9.9):
            await trio.sleep(pause)
            await client.send_all(GET)
            assert (await client.receive_some()).endswith(b"once")
        assert math.isclose(trio.current_time() - start, 28.8)
        assert await client.receive_some() == b""
        assert math.isclose(trio.current_time() - start, 38.8)


async def test_a_connection_that_answers_is_not_idle(autojump_clock: MockClock) -> None:
    async with connection() as (_, client, _wire):
        await client.send_all(GET.replace(b"/", b"/slow", 1))
        assert (await client.receive_some()).endswith(b"once")
        assert math.isclose(trio.current_time(), 60, abs_tol=0.1)
        assert await client.receive_some() == b""


async def test_a_request_at_the_last_moment_is_answered(autojump_clock: MockClock) -> None:
    async with connection() as (_, client, _wire):
        await trio.sleep(5)
        for _ in range(20):
            # Both are due in the same instant: whichever comes first, nothing is cut in the middle.
            try:
                await client.send_all(GET)
                got = await client.receive_some()
            except trio.BrokenResourceError:
                got = b""
            assert got == b"" or got.endswith(b"once")
            if not got:
                return
            await trio.sleep(10)


async def test_a_stop_ends_what_is_idle(autojump_clock: MockClock) -> None:
    async with connection() as (server, client, _wire):
        await client.send_all(GET)
        assert (await client.receive_some()).endswith(b"once")
        await server.stop()
        assert await client.receive_some() == b""
        assert trio.current_time() < 1
