from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e.router_process import document, hypercorn, in_thread, open_server, wait_exit, wait_true
from peers import log_events

from kars_router.testing import PlainAgent, text_of

CALL = "kars.azure.com/call"


async def call_slowly(agent: PlainAgent, seconds: float, results: list[Any]) -> None:
    try:
        results.append(await agent.call("box__slow", seconds=seconds))
    except httpx.TransportError as error:
        results.append(error)


async def test_the_application_does_what_the_command_does(tmp_path: Path) -> None:
    async with (
        open_server() as (server, url),
        httpx.AsyncClient(timeout=30) as client,
        in_thread(hypercorn(tmp_path, document(url))) as router,
        trio.open_nursery() as nursery,
    ):
        agent = PlainAgent(client, router.mcp())
        await agent.initialize()
        assert text_of(await agent.call("box__increment")) == "counter: 1"
        start = len(server.happenings("pong"))
        await wait_true(lambda: len(server.happenings("pong")) >= start + 5)
        assert text_of(await agent.call("box__increment")) == "counter: 2"
        single = PlainAgent(client, router.mcp("box"))
        await single.initialize()
        assert text_of(await single.call("increment")) == "counter: 1"
        refused = await client.get(router.mcp(), headers={"accept": "text/event-stream"})
        assert refused.status_code == 405
        evil = {"origin": "https://evil.example"}
        assert (await client.post(router.mcp(), headers=evil)).status_code == 403
        (line,) = [e for e in log_events(router.process.log()) if e.get("event") == "listening"]
        assert (await client.get(f"{line['admin']}/readyz")).text == "ok\n"

        results: list[Any] = []
        headers = {"accept": "text/event-stream", "mcp-session-id": agent.session or ""}
        async with client.stream("GET", router.mcp(), headers=headers) as stream:
            before = len(server.requests("tools/call"))
            nursery.start_soon(call_slowly, agent, 1.0, results)
            await wait_true(lambda: len(server.requests("tools/call")) >= before + 1)
            router.process.signal(signal.SIGTERM)
            with trio.fail_after(5):
                async for _ in stream.aiter_raw():  # a torn end would raise
                    pass
        assert await wait_exit(router.process) == 0
        await wait_true(lambda: bool(results))
        assert text_of(results[0]) == "slept 1 s"
        assert server.sessions == {}
        assert len(server.happenings("deleted")) == 3
        assert "Traceback" not in router.process.log()


async def test_a_call_beyond_the_grace_ends_with_its_fate(tmp_path: Path) -> None:
    async with (
        open_server() as (server, url),
        httpx.AsyncClient(timeout=30) as client,
        in_thread(
            hypercorn(
                tmp_path,
                document(url, shutdownGrace="4s"),
                arguments=("--graceful-timeout", "4"),
            )
        ) as router,
        trio.open_nursery() as nursery,
    ):
        agent = PlainAgent(client, router.mcp())
        await agent.initialize()
        results: list[Any] = []
        nursery.start_soon(call_slowly, agent, 60.0, results)
        await wait_true(lambda: bool(server.requests("tools/call")))
        start = time.monotonic()
        router.process.signal(signal.SIGTERM)
        assert await wait_exit(router.process) == 0
        assert time.monotonic() - start < 4
        await wait_true(lambda: bool(results))
        assert isinstance(results[0], dict), results
        assert results[0]["_meta"][CALL]["fate"] == "unknown"
        assert server.sessions == {}


@pytest.mark.parametrize(
    ("config", "complaint", "arguments"),
    [
        (None, "KARS_CONFIG must name the configuration file", ("-w", "0")),
        ({"servers": {"box": {"url": "http://127.0.0.1:9"}}, "lisen": 1}, "lisen", ("-w", "0")),
        ({"servers": {"box": {"url": "nonsense"}}}, "servers.box.url", ()),
    ],
)
async def test_a_bad_configuration_is_said_and_ends_it(
    tmp_path: Path, config: dict[str, Any] | None, complaint: str, arguments: tuple[str, ...]
) -> None:
    async with in_thread(hypercorn(tmp_path, config, arguments=arguments, wait=False)) as router:
        status = await wait_exit(router.process)
        # hypercorn 0.18 exits with 0 when the workers die that it starts by default.
        assert status != 0 or not arguments
        (line,) = log_events(router.process.log())
        assert line["event"] == "startup_failed"
        assert complaint in line["problem"]


async def test_a_session_survives_the_application(tmp_path: Path) -> None:
    async with open_server() as (server, url), httpx.AsyncClient(timeout=30) as client:
        sessions: list[str | None] = []
        config = document(url, state=str(tmp_path / "state"))
        for log, generation in (("first.log", None), ("second.log", 2)):
            async with in_thread(hypercorn(tmp_path, config, log=log)) as router:
                agent = PlainAgent(client, router.mcp())
                if sessions:
                    agent.session = sessions[0]
                    agent.server = {"protocolVersion": "2025-11-25"}
                else:
                    await agent.initialize()
                    sessions.append(agent.session)
                result = await agent.call("box__increment")
                meta = result.get("_meta", {}).get("kars.azure.com/session", {})
                assert meta.get("generation") == generation
                router.process.signal(signal.SIGTERM)
                assert await wait_exit(router.process) == 0
        assert server.sessions == {}
