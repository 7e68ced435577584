from __future__ import annotations

import gc
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from agent_kit import BASE, CALL, SESSION, Bench, configuration, open_bench, rpc
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.errors import UserError
from kars_router.service import open_router
from kars_router.testing import AsgiBridge, HeartbeatServer, PlainAgent, Reply, serve, text_of


async def test_an_idle_agent_without_a_stream_keeps_its_counter(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        agent = await bench.connect()
        assert text_of(await agent.call("box__increment")) == "counter: 1"
        reap = bench.server.ping_deadline + (bench.server.ping_interval or 0)
        await trio.sleep(3 * reap)
        assert text_of(await agent.call("box__increment")) == "counter: 2"
        await trio.sleep(50 * reap)
        result = await agent.call("box__increment")
        assert text_of(result) == "counter: 3"
        assert "_meta" not in result
        assert bench.server.happenings("reaped") == []


async def test_agents_keep_their_state_apart(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        one, two = await bench.connect(), await bench.connect("/mcp/box")
        for _ in range(3):
            await one.call("box__increment")
        assert text_of(await two.call("increment")) == "counter: 1"
        assert text_of(await one.call("box__read")) == "counter: 3"
        await one.delete()
        assert text_of(await two.call("increment")) == "counter: 2"
        await bench.server.wait_until(lambda: bool(bench.server.happenings("deleted")))
        assert len(bench.server.sessions) == 2  # what is left: the second's, the router's own


async def test_agents_share_a_session_if_told_so(autojump_clock: MockClock) -> None:
    async with open_bench(configured={"box": {"sessionScope": "shared"}}) as bench:
        one, two = await bench.connect(), await bench.connect()
        await one.call("box__increment")
        assert text_of(await two.call("box__increment")) == "counter: 2"
        await one.delete()
        await trio.sleep(10)
        assert text_of(await two.call("box__increment")) == "counter: 3"
        assert len(bench.server.sessions) == 1
        # Each of them had state in it, and each is told once.
        three = await bench.connect()
        await three.call("box__read")
        bench.server.restart()
        for agent in (two, three):
            assert (await agent.call("box__read"))["_meta"][SESSION]["generation"] == 2
            assert "_meta" not in await agent.call("box__read")


async def resume(bench: Bench, agent: PlainAgent) -> PlainAgent:
    """The same agent on another router."""
    again = bench.agent()
    again.session, again.server = agent.session, agent.server
    return again


async def test_a_session_survives_a_restart_and_says_what_was_lost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    config = configuration({"box": {}}, state=tmp_path)
    async with HeartbeatServer.open() as server:
        servers = {"box": server}
        async with open_bench(config, servers=servers) as bench:
            agent, fresh, gone = [await bench.connect() for _ in range(3)]
            await agent.call("box__increment")
            await agent.call("box__increment")
            await gone.call("box__increment")
            ended = gone.session
            await gone.delete()
        assert server.sessions == {}
        for generation in (2, 3):
            async with open_bench(config, servers=servers) as bench:
                again = await resume(bench, agent)
                await again.list_tools()
                result = await again.call("box__increment")
                assert result["_meta"][SESSION] == {
                    "reset": True,
                    "generation": generation,
                    "reason": "the router was restarted",
                }
                assert text_of(result).endswith("counter: 1")
                assert "_meta" not in await again.call("box__increment")
                # One that had no state has lost none; one that was deleted stays so.
                assert (await bench.post(rpc("ping"), fresh.session)).status_code == 200
                assert (await bench.post(rpc("ping"), ended)).status_code == 404
        async with open_bench(config, servers=servers) as bench:
            other = await resume(bench, fresh)
            assert "_meta" not in await other.call("box__increment")


async def test_without_a_state_directory_ids_die_with_the_router(
    autojump_clock: MockClock,
) -> None:
    async with open_bench() as bench:
        agent = await bench.connect()
    async with open_bench() as bench:
        assert (await bench.post(rpc("ping"), agent.session)).status_code == 404


async def test_calls_in_flight_finish_before_the_end(autojump_clock: MockClock) -> None:
    results = []
    async with HeartbeatServer.open() as server, trio.open_nursery() as nursery:
        async with open_bench(servers={"box": server}) as bench:
            agent = await bench.connect()

            async def call() -> None:
                results.append(await agent.call("box__slow", seconds=10))

            nursery.start_soon(call)
            await server.wait_until(lambda: bool(server.requests("tools/call")))
            start = trio.current_time()
            async with trio.open_nursery() as closing:
                closing.start_soon(bench.router.drain)
                await wait_all_tasks_blocked()
                late = await agent.call("box__increment")
                assert late["_meta"][CALL] == {
                    "fate": "not_executed",
                    "code": "shutting_down",
                    "server": "box",
                    "retryable": True,
                }
                refused = await bench.post(rpc("initialize", {"protocolVersion": "x"}, 5))
                assert (refused.status_code, refused.json()["id"]) == (503, 5)
            assert trio.current_time() - start == pytest.approx(10, abs=1)
            await wait_all_tasks_blocked()
        assert text_of(results[0]) == "slept 10 s"
        assert server.sessions == {}
        assert len(server.requests("tools/call")) == 1


async def test_calls_beyond_the_grace_end_with_their_fate(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open() as server, trio.open_nursery() as nursery:
        config = configuration({"box": {}}, shutdownGrace="12s")
        async with open_bench(config, servers={"box": server}) as bench:
            agent = await bench.connect()
            results: list[Any] = []

            async def call() -> None:
                results.append(await agent.call("box__slow", seconds=600))

            nursery.start_soon(call)
            await server.wait_until(lambda: bool(server.requests("tools/call")))
            start = trio.current_time()
            await bench.router.drain()
            await trio.sleep(1)
            assert results[0]["_meta"][CALL]["fate"] == "unknown"
            assert 8 < trio.current_time() - start < 12
        assert server.sessions == {}


async def test_hurrying_ends_the_waiting(autojump_clock: MockClock) -> None:
    for before in (True, False):
        async with open_bench() as bench, trio.open_nursery() as nursery:
            agent = await bench.connect()
            results: list[Any] = []

            async def call(agent: PlainAgent = agent, results: list = results) -> None:  # type: ignore[type-arg]
                results.append(await agent.call("box__slow", seconds=600))

            nursery.start_soon(call)
            await bench.server.wait_until(
                lambda bench=bench: bool(bench.server.requests("tools/call"))  # type: ignore[misc]
            )
            start = trio.current_time()
            if before:
                bench.router.hurry()
            nursery.start_soon(bench.router.drain)
            await trio.sleep(0.5)
            bench.router.hurry()
            await trio.sleep(2.5)
            assert results[0]["_meta"][CALL]["fate"] == "unknown"
            assert trio.current_time() - start < 4


async def test_a_server_that_does_not_answer_the_deletion_is_left(
    autojump_clock: MockClock,
) -> None:
    async with HeartbeatServer.open() as server:
        async with open_bench(servers={"box": server}) as bench:
            for _ in range(5):
                await (await bench.connect()).call("box__increment")
            server.reply_next(Reply.hang(), http_method="DELETE", times=99)
            start = trio.current_time()
        assert trio.current_time() - start < 3  # side by side, two seconds each


async def test_a_cancelled_router_deletes_its_sessions(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open() as server, trio.open_nursery() as nursery:
        bridge = AsgiBridge(server.app, nursery)
        with trio.CancelScope() as scope:
            config = configuration({"box": {}})
            async with open_router(config, serve=False, transports=lambda *_: bridge) as router:
                client = httpx.AsyncClient(transport=AsgiBridge(router.app, nursery), timeout=None)
                agent = PlainAgent(client, f"{BASE}/mcp")
                await agent.initialize()
                await agent.call("box__increment")
                assert len(server.sessions) == 2
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert server.sessions == {}
        assert bridge.running == 0


# hypercorn drops the socket that it cannot bind without closing it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_an_address_in_use_is_the_users_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        used, free = Address("127.0.0.1", taken.getsockname()[1]), Address("127.0.0.1", 0)
        for listen, admin in ((used, free), (free, used)):
            config = evolve(configuration({"box": {}}), listen=listen, admin=admin)
            with pytest.raises(UserError) as caught:
                async with open_router(config):
                    raise AssertionError("it runs")
            assert str(caught.value).startswith(f"cannot listen on {used}: ")
            del caught
        gc.collect()


@pytest.mark.parametrize("listener", [*Listener])
async def test_it_listens_where_it_says_and_not_any_longer(listener: Listener) -> None:
    with trio.fail_after(20):
        async with HeartbeatServer.open() as server, serve(server.app, grace=0.1) as url:
            config = configuration({"box": {"url": f"{url}/mcp"}}, listen="127.0.0.1:0")
            config = evolve(config, admin=Address("127.0.0.1", 0), listener=listener)
            async with httpx.AsyncClient() as client:
                async with open_router(config) as router:
                    agent = PlainAgent(client, f"{router.agent_url}/mcp")
                    await agent.initialize()
                    assert text_of(await agent.call("box__increment")) == "counter: 1"
                    ready = await client.get(f"{router.admin_url}/readyz")
                    assert ready.text == "ok\n"
                for gone in (router.agent_url, router.admin_url):
                    with pytest.raises(httpx.ConnectError):
                        await client.get(gone)
            assert server.sessions == {}
