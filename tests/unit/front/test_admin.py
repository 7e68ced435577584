from __future__ import annotations

import pytest
from agent_kit import Bench, configuration, open_bench
from trio.testing import MockClock

from kars_router.testing import HeartbeatServer, Reply

ADMIN = "http://127.0.0.1:9090"
PATHS = ["/healthz", "/readyz", "/metrics", "/api/v1/servers", "/api/v1/sessions"]


async def test_health_says_ok(bench: Bench) -> None:
    response = await bench.admin.get(f"{ADMIN}/healthz")
    assert (response.status_code, response.text) == (200, "ok\n")


async def test_readiness_waits_for_each_servers_first_attempt(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open() as server:
        server.reply_next(Reply.hang(), method="initialize")
        config = configuration({"slow": {"timeouts": {"connect": "3s"}}, "box": {}})
        async with open_bench(config, servers={"slow": server}) as bench:
            await bench.servers["box"].wait_until(
                lambda: bool(bench.servers["box"].requests("tools/list"))
            )
            response = await bench.admin.get(f"{ADMIN}/readyz")
            assert response.status_code == 503
            assert response.text.startswith("starting: ")
            assert "slow" in response.text
            # An attempt that failed is an attempt: a server that is down keeps no pod back.
            await bench.router.supervisor.wait_tried(60)
            assert (await bench.admin.get(f"{ADMIN}/readyz")).text == "ok\n"


async def test_a_router_that_stops_is_not_ready_but_healthy(bench: Bench) -> None:
    await bench.router.drain()
    response = await bench.admin.get(f"{ADMIN}/readyz")
    assert (response.status_code, response.text) == (503, "stopping\n")
    assert (await bench.admin.get(f"{ADMIN}/healthz")).status_code == 200


async def test_servers_are_listed_with_what_is_wrong(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open(script=lambda _: Reply.text(503, "out of order")) as down:
        config = configuration({"box": {"allowedTools": ["re*"]}, "down": {}})
        async with open_bench(config, servers={"down": down}) as bench:
            await bench.router.supervisor.wait_tried(60)
            box, broken = (await bench.admin.get(f"{ADMIN}/api/v1/servers")).json()
    assert box == {
        "name": "box",
        "state": "ready",
        "error": "",
        "tools": 1,
        "hidden": 6,
        "withheld": [],
        "sessionScope": "agent",
    }
    assert (broken["name"], broken["state"], broken["tools"]) == ("down", "down", 0)
    assert "503" in broken["error"]


async def test_sessions_are_listed_without_their_ids(bench: Bench) -> None:
    agent = await bench.connect("/mcp/box", version="2025-06-18")
    await agent.call("increment")
    async with bench.listen(agent.session, "/mcp/box"):
        response = await bench.admin.get(f"{ADMIN}/api/v1/sessions")
    assert response.headers["content-type"] == "application/json"
    (one,) = response.json()["agents"]
    assert (one["client"], one["revision"]) == ("plain-agent", "2025-06-18")
    assert (one["endpoint"], one["streams"], one["inFlight"]) == ("box", 1, 0)
    keeper, own = response.json()["upstream"]
    assert (keeper["agent"], own["agent"]) == ("", one["agent"])
    assert (own["server"], own["generation"], own["listen"], own["calls"]) == ("box", 1, "open", 1)
    assert set(own) == {
        *("server", "agent", "generation", "listen", "pings", "calls", "inFlight", "idleSeconds")
    }
    secrets = [agent.session or "", *bench.server.sessions, "http://"]
    assert not any(secret in response.text for secret in secrets)


async def test_metrics_tell_what_happened(bench: Bench) -> None:
    agent = await bench.connect()
    await agent.call("box__increment")
    await agent.call("box__slow", seconds=10)
    bench.server.restart()
    await agent.call("box__increment")
    response = await bench.admin.get(f"{ADMIN}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    lines = set(response.text.splitlines())
    for line in (
        "kars_agent_sessions 1.0",
        'kars_calls_total{code="ok",fate="executed",server="box"} 3.0',
    ):
        assert line in lines
    for start in (
        'kars_upstream_generations_total{server="box"}',
        'kars_upstream_sessions{server="box"}',
        'kars_pings_total{outcome="answered",server="box"}',
        'kars_pong_seconds_count{server="box"}',
        'kars_listen_streams{server="box",state="open"}',
        'kars_session_losses_total{reason="status_404",server="box"}',
    ):
        (line,) = (line for line in lines if line.startswith(start))
        assert float(line.split()[-1]) > 0, line
    assert agent.session is not None
    assert agent.session not in response.text


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_may_ask_nothing_unless_allowed(autojump_clock: MockClock, path: str) -> None:
    config = configuration({"box": {}}, allowedOrigins=["https://ui.example"])
    async with open_bench(config) as bench:
        for origin, status in (
            ("https://evil.example", 403),
            ("null", 403),
            ("http://127.0.0.1:8443", 403),
            ("https://ui.example", 200),
        ):
            response = await bench.admin.get(ADMIN + path, headers={"origin": origin})
            assert (response.status_code == 403) == (status == 403), origin


async def test_a_probe_may_come_with_any_host(bench: Bench) -> None:
    response = await bench.admin.get(f"{ADMIN}/healthz", headers={"host": "10.1.2.3:9090"})
    assert response.status_code == 200


async def test_only_reading_is_offered(bench: Bench) -> None:
    for path in PATHS:
        for method in ("POST", "PUT", "DELETE", "PATCH"):
            response = await bench.admin.request(method, ADMIN + path)
            assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert (await bench.admin.get(f"{ADMIN}/nowhere")).status_code == 404
    assert (await bench.admin.get(f"{ADMIN}/mcp")).status_code == 404
