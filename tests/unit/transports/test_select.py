from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.schema import Limits, Server, Timeouts, Transport
from kars_router.errors import CallFailed
from kars_router.testing import AsgiBridge, HeartbeatServer, Received, Reply
from kars_router.transports.base import Connection, Delivery, Position
from kars_router.transports.connectors import (
    Connector,
    HttpConnector,
    StdioConnector,
    WebSocketConnector,
    new_connector,
)
from kars_router.transports.legacy_sse import LegacySse
from kars_router.transports.select import AutoHttp, transport_of
from kars_router.transports.stdio import Stdio
from kars_router.transports.streamable_http import StreamableHttp
from kars_router.transports.websocket import WebSocket
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

URL = "http://upstream.test/sse"
ANSWER = {"jsonrpc": "2.0", "id": 1, "result": {}}
ENDPOINT = Reply(
    headers={"content-type": "text/event-stream"},
    body=b"event: endpoint\ndata: /messages\n\n",
    ending="hang",
)
Script = Callable[[Received], Reply]


def speaks_sse(refusal: Reply) -> Script:
    """A server of the older transport, and what it says to a POST of the newer one."""

    def script(received: Received) -> Reply:
        if received.http_method == "GET":
            return ENDPOINT
        if received.path == "/messages":
            return Reply.json(ANSWER)
        return refusal

    return script


@define
class Wire:
    """A connector and the server behind it."""

    connector: Connector
    server: HeartbeatServer
    nursery: trio.Nursery
    taken: list[Message] = field(factory=list)

    async def open(self) -> Connection:
        connection = self.connector.connect(lambda m, _: self.taken.append(m), None)
        await connection.open(self.nursery)
        return connection

    def seen(self) -> list[tuple[str, str]]:
        """What the server was asked since the last time."""
        found = [(r.http_method, r.path) for r in self.server.log]
        self.server.log.clear()
        return found


def is_channel(connection: Connection) -> bool:
    return not connection.correlates


async def initialize(connection: Connection, method: str = "initialize") -> None:
    delivery = Delivery()
    await connection.send(
        jsonrpc.request(b"1", method), method=method, delivery=delivery, ident=b"1"
    )


@asynccontextmanager
async def wired(script: Script, kind: Transport = Transport.AUTO) -> AsyncIterator[Wire]:
    async with trio.open_nursery() as nursery, HeartbeatServer.open() as server:
        server.script = script
        bridge = AsgiBridge(server.app, nursery)
        settings = Server(url=URL, transport=kind, timeouts=Timeouts(connect=3.0))
        connector = new_connector("s", settings, Limits(), lambda *_: bridge)
        with trio.fail_after(60):  # noqa: ASYNC100, RUF100
            async with trio.open_nursery() as session:
                yield Wire(connector, server, session)
                session.cancel_scope.cancel()
        await connector.aclose()
        assert bridge.open_responses == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "refusal",
    [
        Reply.text(405, "Method Not Allowed"),
        Reply.text(404, "<html>Cannot POST /sse</html>"),
        Reply.text(400, "Missing sessionId"),
        Reply.json({"detail": "Method Not Allowed"}, 405),
    ],
)
async def test_a_server_of_the_older_transport_is_found_out_once(
    autojump_clock: MockClock, refusal: Reply
) -> None:
    async with wired(speaks_sse(refusal)) as wire:
        first = await wire.open()
        assert not is_channel(first)
        assert wire.seen() == []
        first.revision = "2025-11-25"
        await initialize(first)
        assert is_channel(first)
        assert first.revision == "2025-11-25"
        assert [m.id for m in wire.taken] == [b"1"]
        assert wire.seen() == [("POST", "/sse"), ("GET", "/sse"), ("POST", "/messages")]
        second = await wire.open()
        assert is_channel(second)
        await initialize(second)
        assert wire.seen() == [("GET", "/sse"), ("POST", "/messages")]


async def test_what_was_found_is_forgotten_when_it_fails(autojump_clock: MockClock) -> None:
    async with wired(speaks_sse(Reply.text(405))) as wire:
        await initialize(await wire.open())
        # The server was upgraded.
        wire.server.script = lambda r: (
            Reply.text(405) if r.http_method == "GET" else Reply.json(ANSWER)
        )
        with pytest.raises(CallFailed):
            await wire.open()
        wire.seen()
        connection = await wire.open()
        await initialize(connection)
        assert not is_channel(connection)
        assert wire.seen() == [("POST", "/sse")]


async def test_an_initialize_that_fails_makes_it_forgotten_as_well(
    autojump_clock: MockClock,
) -> None:
    async with wired(speaks_sse(Reply.text(405))) as wire:
        await initialize(await wire.open())
        wire.server.script = lambda r: ENDPOINT if r.http_method == "GET" else Reply.text(500)
        connection = await wire.open()
        with pytest.raises(CallFailed) as caught:
            await initialize(connection)
        assert caught.value.failure.status == 500
        assert not is_channel(await wire.open())


@pytest.mark.parametrize(
    "refusal",
    [
        Reply.text(401),
        Reply.text(403),
        Reply.text(406),
        Reply.text(500),
        Reply.text(503),
        Reply(status=None, ending="cut"),
        Reply.json({"jsonrpc": "2.0", "id": None, "error": {"code": -32022, "message": "x"}}, 400),
        Reply.json({"jsonrpc": "2.0", "id": 1, "error": {"code": -32601, "message": "x"}}, 404),
    ],
)
async def test_what_is_no_evidence(autojump_clock: MockClock, refusal: Reply) -> None:
    async with wired(speaks_sse(refusal)) as wire:
        connection = await wire.open()
        with pytest.raises(CallFailed) as caught:
            await initialize(connection)
        assert caught.value.failure.status == refusal.status
        assert wire.seen() == [("POST", "/sse")]
        assert not is_channel(connection)


async def test_only_the_answer_to_initialize_is_evidence(autojump_clock: MockClock) -> None:
    async with wired(speaks_sse(Reply.text(404))) as wire:
        connection = await wire.open()
        with pytest.raises(CallFailed):
            await initialize(connection, "server/discover")
        assert wire.seen() == [("POST", "/sse")]
        await initialize(connection)
        assert is_channel(connection)


@pytest.mark.parametrize(
    "get", [Reply.text(405), Reply.events(), Reply.events(ending="hang"), Reply.text(200, "hello")]
)
async def test_a_server_of_neither_transport(autojump_clock: MockClock, get: Reply) -> None:
    async with wired(lambda r: get if r.http_method == "GET" else Reply.text(404)) as wire:
        for _ in range(2):
            connection = await wire.open()
            with pytest.raises(CallFailed) as caught:
                await initialize(connection)
            failure = caught.value.failure
            # What was refused first is what an operator has to see; the other is the reason why
            # it was not overcome.
            assert (failure.code, failure.status) == ("http_status", 404)
            assert "; as HTTP+SSE: " in failure.detail
            assert not is_channel(connection)
            assert wire.seen() == [("POST", "/sse"), ("GET", "/sse")]


@pytest.mark.parametrize("kind", [Transport.STREAMABLE_HTTP, Transport.SSE])
async def test_what_is_configured_is_not_found_out(
    autojump_clock: MockClock, kind: Transport
) -> None:
    async with wired(lambda _: Reply.text(404), kind) as wire:
        with pytest.raises(CallFailed):
            await initialize(await wire.open())
        assert len(wire.seen()) == 1


async def test_everything_else_goes_to_the_one_that_was_found(autojump_clock: MockClock) -> None:
    async with wired(speaks_sse(Reply.text(405))) as wire:
        connection = await wire.open()
        connection.session_id = "sid"
        seen: list[str | None] = [connection.session_id]
        await initialize(connection)
        seen.append(connection.session_id)
        assert seen == ["sid", None]
        opened = trio.Event()
        failures: list[CallFailed] = []

        async def listen() -> None:
            try:
                await connection.listen(Position(), opened.set)
            except CallFailed as error:
                failures.append(error)

        wire.nursery.start_soon(listen)
        await opened.wait()
        await connection.close()
        await trio.testing.wait_all_tasks_blocked()
        assert [error.failure.code for error in failures] == ["channel_closed"]


@pytest.mark.parametrize(
    ("settings", "kind", "connector", "connection"),
    [
        ({"url": "http://h/"}, Transport.AUTO, HttpConnector, AutoHttp),
        (
            {"url": "https://h/", "transport": Transport.STREAMABLE_HTTP},
            Transport.STREAMABLE_HTTP,
            HttpConnector,
            StreamableHttp,
        ),
        (
            {"url": "http://h/sse", "transport": Transport.SSE},
            Transport.SSE,
            HttpConnector,
            LegacySse,
        ),
        ({"url": "http://h/sse"}, Transport.AUTO, HttpConnector, AutoHttp),
        ({"url": "ws://h/"}, Transport.WEBSOCKET, WebSocketConnector, WebSocket),
        ({"url": "WSS://h/"}, Transport.WEBSOCKET, WebSocketConnector, WebSocket),
        ({"command": ("x",)}, Transport.STDIO, StdioConnector, Stdio),
    ],
)
async def test_which_transport(
    settings: dict[str, Any], kind: Transport, connector: type, connection: type
) -> None:
    made: list[str] = []

    def transports(name: str, _: Server) -> httpx.AsyncBaseTransport:
        made.append(name)
        return httpx.MockTransport(lambda _: httpx.Response(500))

    server = Server(**settings)
    assert transport_of(server) is kind
    found = new_connector("s", server, Limits(), transports)
    assert type(found) is connector
    assert made == ["s"] * (connector is HttpConnector)
    assert type(found.connect(lambda *_: None, None)) is connection
    await found.aclose()


async def test_a_program_gets_its_arguments_and_variables(tmp_path: Path) -> None:
    out = tmp_path / "out"
    server = Server(
        command=("sh", "-c"),
        args=(f'printf %s "$0 $WHO $HOME_OF_NOBODY" > {out}; cat', "me"),
        env=FrozenMap({"WHO": "you"}),
    )
    connection = new_connector("s", server, Limits()).connect(lambda *_: None, None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await connection.open(nursery)
            await connection.close()
    assert out.read_text(encoding="utf-8") == "me you "


async def test_the_authorities_of_a_websocket_are_read_once_and_late(tmp_path: Path) -> None:
    missing = tmp_path / "ca.pem"
    connector = WebSocketConnector(
        name="s", server=Server(url="wss://localhost:1/", ca_file=missing), limits=Limits()
    )
    connection = connector.connect(lambda *_: None, None)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with pytest.raises(CallFailed) as caught:
                await connection.open(nursery)
    assert caught.value.failure.code == "connect"
    assert str(missing) in caught.value.failure.detail
    assert connector._context is None
