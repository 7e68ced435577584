"""What our connections need of hypercorn, and what they do less often than it."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import h11
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
# Ends a head that is left to hypercorn.
UNUSUAL = b"\r\nconnection: te\r\n\r\n"


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (hypercorn.app_wrappers, ["ASGIWrapper"]),
        (
            hypercorn.config.Config,
            ["keep_alive_timeout", "keep_alive_max_requests", "include_server_header", "log"],
        ),
        (
            hypercorn.protocol.h11.H11Protocol,
            ["handle", "stream_send", "_check_protocol", "_create_stream"],
        ),
        (hypercorn.protocol.events, ["Response", "StreamClosed"]),
        (h11.Connection, ["trailing_data"]),
        (hypercorn.trio.task_group.TaskGroup, ["spawn", "spawn_app", "__aenter__", "__aexit__"]),
        (
            hypercorn.trio.tcp_server.TCPServer,
            ["run", "protocol_send", "_read_data", "_close", "_initiate_server_close"],
        ),
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
    missing = {"app", "config", "context", "send_lock", "stream"} - set(vars(server))
    assert not missing, f"hypercorn has changed: a TCPServer has no {missing}"


def test_a_protocol_of_hypercorn_has_the_attributes_that_ours_uses() -> None:
    nothing: Any = None
    context: Any = hypercorn.trio.worker_context.WorkerContext(None)
    config = hypercorn.config.Config()
    protocol = hypercorn.protocol.h11.H11Protocol(
        nothing, config, context, nothing, nothing, False, nothing, nothing, nothing
    )
    missing = {"connection", "send"} - set(vars(protocol))
    assert not missing, f"hypercorn has changed: an H11Protocol has no {missing}"


class Wire:
    """The served end of a connection that keeps its writes apart: each is one packet."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.socket = sock

    async def send_all(self, data: bytes) -> None:
        assert await self.socket.send(data) == len(data)

    async def send_eof(self) -> None:
        self.socket.shutdown(trio.socket.SHUT_WR)

    async def aclose(self) -> None:
        self.socket.close()
        await trio.lowlevel.checkpoint()


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
async def connection(
    kind: int = trio.socket.SOCK_STREAM,
) -> AsyncIterator[tuple[HypercornServer, trio.socket.SocketType]]:
    server = HypercornServer(answer, keep_alive=10)
    client, theirs = trio.socket.socketpair(trio.socket.AF_UNIX, kind)
    stream = kind == trio.socket.SOCK_STREAM
    served: Any = trio.SocketStream(theirs) if stream else Wire(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.handle, served)
        with client:
            yield server, client
        with trio.fail_after(1):
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked()
                await trio.sleep(0.01)
        await served.aclose()


@pytest.mark.parametrize(
    ("path", "unusual", "writes"),
    [
        ("/", False, 1),
        ("/empty", False, 1),
        ("/parts", False, 2),
        ("/stream", False, 2),
        ("/", True, 1),
        ("/empty", True, 1),
        ("/parts", True, 2),
        ("/stream", True, 3),
    ],
)
async def test_a_response_is_one_write_if_it_can_be(
    path: str, writes: int, *, unusual: bool
) -> None:
    asked = GET.replace(b"/", path.encode(), 1)
    if unusual:
        asked = asked.replace(b"\r\n\r\n", UNUSUAL)
    async with connection(trio.socket.SOCK_SEQPACKET) as (_, client):
        for _ in range(2):
            await client.send(asked)
            await trio.testing.wait_all_tasks_blocked(0.01)
            got = [await client.recv(1024) for _ in range(writes)]
            assert got[0].startswith(b"HTTP/1.1 200 ")
            assert b"".join(got).endswith((b"once", b"\r\n\r\n"))
            with trio.move_on_after(0.01):
                assert not await client.recv(1024)


async def test_a_connection_is_idle_for_so_long_from_its_last_answer(
    autojump_clock: MockClock,
) -> None:
    async with connection() as (_, client):
        start = trio.current_time()
        for pause in (0, 9, 9.9, 9.9):
            await trio.sleep(pause)
            await client.send(GET)
            assert (await client.recv(1024)).endswith(b"once")
        assert math.isclose(trio.current_time() - start, 28.8)
        assert await client.recv(1024) == b""
        assert math.isclose(trio.current_time() - start, 38.8)


async def test_a_connection_that_answers_is_not_idle(autojump_clock: MockClock) -> None:
    async with connection() as (_, client):
        await client.send(GET.replace(b"/", b"/slow", 1))
        assert (await client.recv(1024)).endswith(b"once")
        assert math.isclose(trio.current_time(), 60, abs_tol=0.1)
        assert await client.recv(1024) == b""


async def test_a_request_at_the_last_moment_is_answered(autojump_clock: MockClock) -> None:
    async with connection() as (_, client):
        await trio.sleep(5)
        for _ in range(20):
            # Both are due in the same instant: whichever comes first, nothing is cut in the middle.
            try:
                await client.send(GET)
                got = await client.recv(1024)
            except OSError:
                got = b""
            assert got == b"" or got.endswith(b"once")
            if not got:
                return
            await trio.sleep(10)


async def test_a_stop_ends_what_is_idle(autojump_clock: MockClock) -> None:
    async with connection() as (server, client):
        await client.send(GET)
        assert (await client.recv(1024)).endswith(b"once")
        await server.stop()
        assert await client.recv(1024) == b""
        assert trio.current_time() < 1
