"""Agents that leave, flood, stall or lie: what they must not be able to do to others."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any

import httpx
import pytest
import trio
from agent_kit import BASE, BOTH, CALL, SESSION, Bench, configuration, open_bench, rpc
from trio.testing import MockClock

from kars_router.testing import Reply, text_of

pytestmark = pytest.mark.usefixtures("each_listener")


async def test_a_notice_that_nobody_received_is_given_again(bench: Bench) -> None:
    agent = await bench.connect()
    await agent.call("box__increment")
    bench.server.restart()
    slow = {"name": "box__slow", "arguments": {"seconds": 5}}
    with trio.move_on_after(1):
        await bench.post(rpc("tools/call", slow), agent.session)
    await trio.sleep(10)  # the answer, with the notice, comes when the agent has left
    after = await agent.call("box__read")
    assert after["_meta"][SESSION]["reset"] is True
    assert SESSION not in (await agent.call("box__read")).get("_meta", {})


async def test_a_notice_that_no_result_could_carry_is_given_with_the_next(bench: Bench) -> None:
    agent = await bench.connect()
    await agent.call("box__increment")
    bench.server.restart()

    async def odd(_: object) -> list[str]:
        return ["no result that MCP knows"]

    bench.server.add_tool("odd", odd)  # type: ignore[arg-type]
    bench.server.notify_tools_changed()
    await trio.sleep(1)
    response = await bench.post(rpc("tools/call", {"name": "box__odd"}), agent.session)
    assert response.json()["result"] == ["no result that MCP knows"]
    assert SESSION in (await agent.call("box__read"))["_meta"]


async def test_a_server_that_does_not_come_up_holds_up_no_other(autojump_clock: MockClock) -> None:
    config = configuration({"good": {}, "bad": {"timeouts": {"connect": "60s"}}})
    async with open_bench(config) as bench:
        bench.servers["bad"].reply_next(Reply.hang(), method="initialize", times=99)
        await bench.router.apply(configuration({"good": {}, "bad": {"timeouts": {"idle": "9m"}}}))
        agent = await bench.connect()
        one = await bench.connect("/mcp/good")
        with trio.fail_after(1):
            assert text_of(await agent.call("good__read")) == "counter: 0"
            assert len(await one.list_tools()) > 1


async def test_of_a_burst_of_streams_four_stay(bench: Bench) -> None:
    agent = await bench.connect()
    ended = 0

    async def listen() -> None:
        nonlocal ended
        async with bench.listen(agent.session) as stream:
            await stream.ended.wait()
            ended += 1

    async with trio.open_nursery() as nursery:
        for _ in range(30):
            nursery.start_soon(listen)
        await trio.sleep(1)
        (session,) = bench.router.agents.all()
        assert (len(session.streams), ended) == (4, 26)
        nursery.cancel_scope.cancel()


async def _statuses(
    bench: Bench,
    session: str | None,
    body: list[bytes],
    then: Callable[[], bytes] | None = None,
) -> list[int]:
    """What a POST is answered whose body stops coming after some parts, or ends with `then`."""
    parts = list(body)
    statuses: list[int] = []
    headers = {"host": "localhost", "accept": BOTH, "content-type": "application/json"}
    if session is not None:
        # Without a revision the body would have to be read: it may name one that has no sessions.
        headers |= {"mcp-session-id": session, "mcp-protocol-version": "2025-11-25"}

    async def receive() -> dict[str, Any]:
        if not parts:
            if then is not None:
                return {"type": "http.request", "body": then()}
            await trio.sleep_forever()
        return {"type": "http.request", "body": parts.pop(), "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await bench.router.app(scope, receive, send)
    assert len(parts) == len(body) or not parts
    return statuses


async def test_a_body_that_does_not_come_is_given_up(bench: Bench) -> None:
    started = trio.current_time()
    assert await _statuses(bench, None, [b'{"jsonrpc":']) == [408]
    assert trio.current_time() - started == pytest.approx(30, abs=1)


async def test_the_body_of_a_stranger_is_not_read(bench: Bench) -> None:
    started = trio.current_time()
    assert await _statuses(bench, "made-up", [b" " * 65_536] * 9) == [404]
    assert trio.current_time() == started


async def test_a_session_that_ends_while_a_body_comes_is_unknown(bench: Bench) -> None:
    agent = await bench.connect()
    ping = b'{"jsonrpc":"2.0","id":1,"method":"ping"}'
    assert await _statuses(bench, agent.session, [], lambda: ping) == [200]

    def end_first() -> bytes:
        (session,) = bench.router.agents.all()
        bench.router.agents.end(session, "the agent ended it")
        return ping

    assert await _statuses(bench, agent.session, [], end_first) == [404]


async def test_sessions_that_never_called_make_room(autojump_clock: MockClock) -> None:
    async with open_bench(configured={"box": {}}, limits={"agentSessions": 3}) as bench:
        used = await bench.connect()
        await used.call("box__increment")
        crashed = [await bench.connect() for _ in range(2)]
        assert (
            await bench.post(rpc("initialize", {"protocolVersion": "2025-06-18"}))
        ).status_code == 503
        await trio.sleep(61)
        await bench.connect()
        assert text_of(await used.call("box__read")) == "counter: 1"
        gone = [(await bench.post(rpc("ping"), a.session)).status_code for a in crashed]
        assert sorted(gone) == [200, 404]


async def test_a_call_of_an_agent_that_has_ended_its_session_is_not_made(
    autojump_clock: MockClock,
) -> None:
    config = configuration({"box": {"timeouts": {"connect": "4s"}}})
    async with open_bench(config) as bench:
        agent = await bench.connect()
        for name in list(bench.router.supervisor.servers):
            await bench.router.supervisor.servers[name].stop()
        bench.server.reply_next(Reply.hang(), method="initialize", times=1)
        await bench.router.supervisor.apply({})
        await bench.router.supervisor.apply(config.servers)
        answers: list[httpx.Response] = []

        async def call() -> None:
            message = rpc("tools/call", {"name": "box__increment"})
            answers.append(await bench.post(message, agent.session))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(1)
            (
                await bench.client.delete(
                    f"{BASE}/mcp", headers={"mcp-session-id": agent.session or ""}
                )
            )
        meta = answers[0].json()["result"]["_meta"][CALL]
        assert (meta["fate"], meta["code"], meta["retryable"]) == (
            "not_executed",
            "session_ended",
            False,
        )
        assert bench.server.requests("tools/call") == []


async def test_a_rebound_name_reads_nothing_of_the_operator_s(bench: Bench) -> None:
    await bench.connect()  # by then the server was tried, so that the router is ready
    for path, host, status in [
        ("/api/v1/sessions", "evil.example", 421),
        ("/metrics", "evil.example:9090", 421),
        ("/metrics", "10.1.2.3:9090", 200),
        ("/metrics", "[fd00::1]:9090", 200),
        ("/api/v1/servers", "localhost", 200),
        ("/healthz", "pod.example", 200),
        ("/readyz", "pod.example", 200),
    ]:
        response = await bench.admin.get(f"http://127.0.0.1:9090{path}", headers={"host": host})
        assert (path, host, response.status_code) == (path, host, status)
