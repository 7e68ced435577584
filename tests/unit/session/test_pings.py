from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, make_config, open_rig, with_settings

from kars_router.model import CallOutcome, ToolCall
from kars_router.service import Router, open_router
from kars_router.testing import Call, HeartbeatServer, Received, Reply, serve
from kars_router.testing.replies import encode_event
from kars_router.transports.connectors import HttpConnector
from kars_router.transports.http import TrioTransport

EVENTS = {"content-type": "text/event-stream"}


def answers(rig: Rig, agent: str = "a") -> list[Received]:
    return [r for r in rig.of(agent) if r.http_method == "POST" and r.is_answer]


async def test_the_session_outlives_an_idle_agent(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        assert await rig.text("increment") == "counter: 1"
        await trio.sleep(1800)
        assert await rig.text("increment") == "counter: 2"
        ident = rig.upstream_id()
        assert rig.server.happenings("reaped") == []
        assert len(rig.server.happenings("pong", ident)) >= 590
        assert rig.server.happenings("ping", ident)[0].detail == "0"
        assert rig.session().pings >= 590
        assert rig.metric("kars_pings_total", outcome="answered") >= 590
        assert rig.metric("kars_pong_seconds_count") >= 590


async def test_pings_are_answered_at_once_with_the_ids_own_type(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        session = rig.server.sessions[rig.upstream_id()]
        idents = [b"0", b'"1"', b"1", b"-7", b"1.0", b'"\\u00e9"', b'""']
        for ident in idents:
            session.listen.append(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % ident)
        now = trio.current_time()
        await rig.server.wait_until(lambda: len(answers(rig)) == len(idents))
        assert trio.current_time() == now
        # Each answer is a POST of its own, so that they may overtake each other.
        expected = {b'{"jsonrpc":"2.0","id":%b,"result":{}}' % ident for ident in idents}
        assert {r.body for r in answers(rig)} == expected


async def test_a_ping_on_a_calls_own_stream_is_answered(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        start = trio.current_time()
        assert msgspec.json.decode(await rig.text("ask")) == {"result": {}}
        assert trio.current_time() == start


async def test_a_ping_before_the_handshake_is_over_is_answered(
    autojump_clock: MockClock,
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        def script(received: Received) -> Reply | None:
            if received.method != "initialize":
                return Reply.text(202)
            result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}}
            ping = b'{"jsonrpc":"2.0","id":0,"method":"ping"}'
            body = encode_event(ping) + encode_event(
                msgspec.json.encode({"jsonrpc": "2.0", "id": received.id, "result": result})
            )
            return Reply(headers={**EVENTS, "mcp-session-id": "early"}, body=body)

        server.script = script

    async with open_rig(prepare=prepare) as rig:
        (pong, *_) = [r for r in rig.server.log if r.is_answer]
        assert pong.body == b'{"jsonrpc":"2.0","id":0,"result":{}}'
        assert pong.session == "early"


async def test_pings_are_answered_while_fifty_calls_run(autojump_clock: MockClock) -> None:
    async with (
        open_rig(ping_interval=1.0, ping_deadline=0.5) as rig,
        trio.open_nursery() as nursery,
    ):
        for _ in range(50):
            nursery.start_soon(partial(rig.text, "slow", seconds=29))
        nursery.start_soon(partial(rig.text, "slow", seconds=30))
        await trio.sleep(29)
        assert len(rig.server.happenings("pong", rig.upstream_id())) >= 28
        assert rig.server.happenings("reaped") == []


@pytest.mark.parametrize(
    "method", ["sampling/createMessage", "elicitation/create", "roots/list", "x" * 500]
)
async def test_other_requests_are_refused_at_once(autojump_clock: MockClock, method: str) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        start = trio.current_time()
        answer = await rig.server.ask(method, {}, rig.upstream_id())
        assert answer is not None
        assert answer["error"]["code"] == -32601
        assert len(answer["error"]["message"]) < 200
        told = msgspec.json.decode(await rig.text("ask", method=method))
        assert told["error"]["code"] == -32601
        assert trio.current_time() == start


async def test_a_flood_of_requests_is_bounded_and_counted(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.script = lambda r: Reply.hang() if r.is_answer else None
        log = rig.server.sessions[rig.upstream_id()].listen
        for n in range(2000):
            log.append(b'{"jsonrpc":"2.0","id":%d,"method":"ping"}' % n)
        await trio.sleep(1)
        assert len(answers(rig)) <= 256
        assert rig.bridge.running < 300
        assert rig.metric("kars_dropped_messages_total", kind="request") >= 2000 - 256
        assert await rig.text("increment") == "counter: 2"
        await trio.sleep(30)
        assert rig.metric("kars_pings_total", outcome="timeout") > 0
        rig.server.script = None
        assert await rig.server.ask("ping", None, rig.upstream_id()) is not None


async def test_a_pong_that_is_refused_is_counted_and_the_session_goes_on(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.script = lambda r: Reply.text(500) if r.is_answer else None
        assert await rig.server.ask("ping", None, rig.upstream_id()) is None
        assert rig.metric("kars_pings_total", outcome="failed") == 1
        rig.server.script = None
        assert await rig.text("increment") == "counter: 2"


async def test_a_pong_refused_by_404_is_a_loss(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.script = lambda r: Reply.text(404) if r.is_answer else None
        await rig.server.ask("ping", None, rig.upstream_id())
        rig.server.script = None
        outcome = await rig.call("increment")
        assert outcome.reset is not None
        assert rig.slot().generation == 2


async def test_malformed_events_are_skipped(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        log = rig.server.sessions[rig.upstream_id()].listen
        for bad in (b"{", b"5", b"\xff", b"[]", b'{"jsonrpc":"2.0"}', b'{"id":null,"method":"x"}'):
            log.append(bad)
        assert await rig.server.ask("ping", None, rig.upstream_id()) is not None
        assert len(rig.of("a", http_method="GET")) == 1


async def test_a_batch_of_requests_is_answered(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None, versions=("2025-03-26",)) as rig:
        await rig.call("increment")
        rig.server.sessions[rig.upstream_id()].listen.append(
            b'[{"jsonrpc":"2.0","id":1,"method":"ping"},{"jsonrpc":"2.0","id":2,"method":"ping"}]'
        )
        await rig.server.wait_until(lambda: len(answers(rig)) == 2)


@asynccontextmanager
async def on_sockets(
    behind: Callable[[Any], Any] = lambda app: app, *, ping_deadline: float, **settings: Any
) -> AsyncIterator[tuple[HeartbeatServer, Router]]:
    """A server that pings all the time, and a router of it, on real sockets and the real clock.

    `behind` puts something before the server's application.
    """
    options = {"ping_interval": 0.02, "ping_deadline": ping_deadline}
    with trio.fail_after(20):
        async with HeartbeatServer.open(**options) as server, serve(behind(server.app)) as url:
            config = make_config(with_settings(url=f"{url}/mcp", **settings))
            async with open_router(config, serve=False) as router:
                await router.supervisor.wait_tried(5)
                yield server, router


async def test_a_pong_never_waits_for_a_connection_behind_calls() -> None:
    # The transport's limits are what this is about.
    hold = trio.Event()

    async def wait(_: Call) -> dict[str, object]:
        await hold.wait()
        return {"content": []}

    async def call(router: Router) -> None:
        params = b'{"name":"hold","arguments":{}}'
        ended = await router.supervisor.call(
            ToolCall(agent="a", server="s", tool="hold", params=params)
        )
        assert ended.fate == "executed"

    async with on_sockets(ping_deadline=2.0, max_connections=2) as (server, router):
        server.add_tool("hold", wait)
        async with trio.open_nursery() as nursery:
            for _ in range(64):
                nursery.start_soon(call, router)
            await server.wait_until(lambda: len(server.happenings("pong")) >= 20)
            session = router.supervisor.servers["s"].slots["a"].session
            assert session is not None
            assert session.in_flight == 64
            assert len(server.requests("tools/call")) == 2
            hold.set()
        assert server.happenings("reaped") == []
        assert len(server.requests("tools/call")) == 64


async def increment(router: Router, agent: str) -> CallOutcome:
    return await router.supervisor.call(
        ToolCall(agent=agent, server="s", tool="increment", params=b'{"name":"increment"}')
    )


async def test_a_pong_that_was_refused_is_noticed_when_its_connection_is_used() -> None:
    async with on_sockets(ping_deadline=60.0) as (server, router):
        assert (await increment(router, "a")).reset is None
        session = router.supervisor.servers["s"].slots["a"].session
        assert session is not None
        await server.wait_until(lambda: len(server.happenings("pong")) >= 3)
        begun = len(server.log)
        server.script = lambda r: Reply.text(404) if r.is_answer else None
        await server.wait_until(
            lambda: any(r.is_answer and r.session == session.session_id for r in server.log[begun:])
        )
        assert (await increment(router, "b")).fate == "executed"
        await session.ended.wait()
        assert session.loss_failure is not None
        assert session.loss_failure.status == 404
        assert session.loss_failure.method == ""
        server.script = None
        assert (await increment(router, "a")).reset is not None


async def test_pongs_share_a_connection_and_are_counted() -> None:
    async with on_sockets(ping_deadline=10.0) as (server, router):
        await increment(router, "a")
        runtime = router.supervisor.servers["s"]
        session = runtime.slots["a"].session
        assert session is not None
        begun = len(server.happenings("pong"))
        connector = runtime._connector
        assert isinstance(connector, HttpConnector)
        assert isinstance(connector.transport, TrioTransport)
        opened = connector.transport.stats().opened_total
        await server.wait_until(lambda: len(server.happenings("pong")) >= begun + 20)
        assert connector.transport.stats().opened_total <= opened + 1
        value = router.metrics.registry.get_sample_value
        labels = {"server": "s", "outcome": "answered"}
        answered = value("kars_pings_total", labels) or 0
        observed = value("kars_pong_seconds_count", {"server": "s"}) or 0
        # The responses to the latest were not looked at yet.
        assert observed - 2 <= answered <= observed
        assert observed >= session.pings


@pytest.mark.parametrize("status", [307, 308])
async def test_pongs_reach_a_server_that_redirects(status: int) -> None:
    """As frameworks do between `/mcp` and `/mcp/`; a pong that nobody waits for ends there."""

    def redirecting(server: Any) -> Any:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or scope["path"] != "/mcp":
                await server(scope, receive, send)
                return
            headers = [(b"location", b"/mcp/"), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b""})

        return app

    async with on_sockets(redirecting, ping_deadline=5.0) as (server, router):
        assert (await increment(router, "a")).fate == "executed"
        begun = len(server.happenings("pong"))
        await server.wait_until(
            lambda: (
                len(server.happenings("pong")) >= begun + 10 or bool(server.happenings("reaped"))
            )
        )
        assert server.happenings("reaped") == []
        assert (await increment(router, "a")).reset is None
