"""`kars run` with the plugin, between an agent and a server, and a collector beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from kars_plugin_otel.testing import Collector
from peers import RunningRouter, log_events, run_router

from kars_router.testing import HeartbeatServer, PlainAgent, serve, text_of

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"
SECRET = "hunter2"
META = {"traceparent": f"00-{TRACE}-{SPAN}-01", "tracestate": "rojo=1", "baggage": "a=b"}


@pytest.fixture(autouse=True, params=["hypercorn", "lean"])
def listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the router's listeners."""
    monkeypatch.setenv("KARS_TEST_LISTENER", request.param)


@asynccontextmanager
async def running(
    url: str, tmp_path: Path, environment: dict[str, str]
) -> AsyncIterator[RunningRouter]:
    """A router in front of the server at `url`, with auditing."""
    config: dict[str, Any] = {
        "servers": {"box": {"url": f"{url}/mcp", "allowedTools": ["*"]}},
        "audit": {"path": str(tmp_path / "audit.jsonl")},
        "plugins": {"required": ["otel"], "blocked": ["playwright"]},
    }
    env = {"HOME": str(tmp_path), **environment}
    manager = run_router(config, tmp_path, env=env)
    router = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield router
    finally:
        with trio.CancelScope(shield=True):  # bounded: the process is killed after its grace
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


async def call(router: RunningRouter) -> str:
    """Makes one call with a trace context."""
    async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
        agent = PlainAgent(client, f"{router.agent_url}/mcp/box")
        await agent.initialize()
        params = {"name": "echo", "arguments": {"text": SECRET}, "_meta": META}
        return text_of(await agent.request("tools/call", params))


async def test_a_call_is_seen_from_the_agent_to_the_server(
    tmp_path: Path, collector: Collector
) -> None:
    with trio.fail_after(60):
        async with HeartbeatServer.open() as server, serve(server.app) as url:
            environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
            async with running(url, tmp_path, environment) as router:
                assert SECRET in await call(router)
                status = await trio.to_thread.run_sync(router.process.stop)
            assert status == 0
            [received] = server.requests("tools/call")
    [span] = collector.spans
    assert (span.name, span.trace, span.parent) == ("tools/call echo", TRACE, SPAN)
    assert (span.attributes["kars.fate"], span.attributes["kars.server"]) == ("executed", "box")
    sent = received.params["_meta"]
    assert sent["traceparent"] == f"00-{TRACE}-{span.ident}-01"
    assert (sent["tracestate"], sent["baggage"]) == ("rojo=1", "a=b")
    assert collector.value("kars.calls", kars_server="box", kars_fate="executed") == 1
    # The agent's, and the one in which the router lists the tools.
    assert collector.value("kars.upstream.generations", kars_server="box") == 2
    events = [log.attributes["kars.audit.event"] for log in collector.logs]
    assert [name for name in events if name in ("accepted", "sent", "ended")] == [
        "accepted",
        "sent",
        "ended",
    ]
    assert {log.span for log in collector.logs if "kars.call.id" in log.attributes} == {span.ident}
    assert SECRET not in str((collector.spans, collector.logs, collector.points))


async def test_a_lost_session_is_counted_and_told(tmp_path: Path, collector: Collector) -> None:
    with trio.fail_after(60):
        async with HeartbeatServer.open() as server, serve(server.app) as url:
            environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
            async with (
                running(url, tmp_path, environment) as router,
                httpx.AsyncClient(timeout=30, trust_env=False) as client,
            ):
                agent = PlainAgent(client, f"{router.agent_url}/mcp/box")
                await agent.initialize()
                await agent.call("increment")
                server.restart()
                await agent.call("read")
                assert await trio.to_thread.run_sync(router.process.stop) == 0
    events = [log for log in collector.logs if log.event.startswith("kars.session.")]
    losses = [log for log in events if log.event == "kars.session.lost"]
    restored = [log for log in events if log.event == "kars.session.restored"]
    # The agent's session; the one in which the router lists the tools was forgotten as well.
    assert {log.attributes["kars.server"] for log in losses} == {"box"}
    assert 2 in {log.attributes["kars.session.generation"] for log in restored}
    assert collector.value("kars.session.losses") == len(losses)
    assert collector.value("kars.session.restorations") == len(restored)


@pytest.mark.parametrize("hangs", [False, True])
async def test_without_a_collector_everything_works_and_ends(tmp_path: Path, hangs: bool) -> None:
    with trio.fail_after(60), Collector.running() as collector:
        collector.open.clear()
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url if hangs else "http://127.0.0.1:9",
            "OTEL_BSP_SCHEDULE_DELAY": "20",
        }
        async with (
            HeartbeatServer.open() as server,
            serve(server.app) as url,
            running(url, tmp_path, environment) as router,
        ):
            assert SECRET in await call(router)
            began = trio.current_time()
            assert await trio.to_thread.run_sync(router.process.stop, 15.0) == 0
            assert trio.current_time() - began < 12
        failed = [
            line
            for line in log_events(router.process.log())
            if line.get("event") == "otel_export_failed"
        ]
        assert len(failed) <= 3  # one for each signal, however often it was tried
        collector.open.set()
