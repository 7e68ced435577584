from __future__ import annotations

from typing import Any

import pytest
import trio
from agent_kit import BASE, REVISIONS, Bench, configuration, initialize, open_bench, rpc
from trio.testing import MockClock

from kars_router._version import __version__
from kars_router.wire import jsonrpc


@pytest.mark.parametrize("revision", REVISIONS)
async def test_each_revision_is_spoken(bench: Bench, revision: str) -> None:
    response = await bench.post(initialize(revision))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    result = response.json()["result"]
    assert result["protocolVersion"] == revision
    assert result["serverInfo"] == {"name": "kars-router", "version": __version__}
    assert result["capabilities"] == {"tools": {"listChanged": True}}
    session = response.headers["mcp-session-id"]
    headers = {"mcp-protocol-version": revision}
    assert (await bench.post(rpc("ping"), session, headers=headers)).status_code == 200


@pytest.mark.parametrize("revision", ["2024-11-05", "2099-01-01", "", "nonsense"])
async def test_an_unknown_revision_is_answered_with_the_newest(bench: Bench, revision: str) -> None:
    result = (await bench.post(initialize(revision))).json()["result"]
    assert result["protocolVersion"] == REVISIONS[0]


@pytest.mark.parametrize("revision", [None, 20251125, [REVISIONS[0]]])
async def test_a_missing_revision_is_an_error_with_the_id(bench: Bench, revision: Any) -> None:
    message = initialize(revision, "me")
    response = await bench.post(message)
    assert response.json()["id"] == "me"
    assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
    assert "mcp-session-id" not in response.headers
    assert len(bench.router.agents) == 0


async def test_a_client_needs_no_name(bench: Bench) -> None:
    for info in ({}, None, {"name": 7}, "x"):
        params = {"protocolVersion": REVISIONS[0], "capabilities": {}, "clientInfo": info}
        assert (await bench.post(rpc("initialize", params))).status_code == 200


async def test_notifications_and_responses_are_accepted_without_a_body(bench: Bench) -> None:
    agent = await bench.connect()
    for message in (
        {"jsonrpc": "2.0", "method": "notifications/initialized"},
        {"jsonrpc": "2.0", "method": "notifications/whatever", "params": {"a": 1}},
        {"jsonrpc": "2.0", "id": 1, "result": {}},
        {"jsonrpc": "2.0", "id": 1, "error": {"code": -1, "message": "x"}},
    ):
        response = await bench.post(message, agent.session)
        assert (response.status_code, response.content) == (202, b"")


@pytest.mark.parametrize("path", ["/mcp", "/mcp/box"])
async def test_a_deleted_session_is_dead(bench: Bench, path: str) -> None:
    agent = await bench.connect(path)
    session = agent.session
    assert await agent.delete() == 200
    assert (await bench.post(rpc("ping"), session, path=path)).status_code == 404
    assert (await bench.get(session, path=path)).status_code == 404
    again = await bench.client.delete(BASE + path, headers={"mcp-session-id": session or ""})
    assert again.status_code == 404


async def test_a_session_belongs_to_its_endpoint(autojump_clock: MockClock) -> None:
    async with open_bench(configured={"box": {}, "other": {}}) as bench:
        for home, foreign in (
            ("/mcp", "/mcp/box"),
            ("/mcp/box", "/mcp"),
            ("/mcp/box", "/mcp/other"),
        ):
            agent = await bench.connect(home)
            assert (await bench.post(rpc("ping"), agent.session, path=foreign)).status_code == 404
            assert (await bench.get(agent.session, path=foreign)).status_code == 404
            assert await agent.request("ping") == {}


async def test_a_foreign_session_is_unknown(bench: Bench) -> None:
    async with open_bench() as other:
        stranger = await other.connect()
    for session in (stranger.session, "x", "a" * 200, "a" * 12_000, "!", "päd"):
        headers = {b"mcp-session-id": (session or "").encode("latin-1")}
        response = await bench.client.post(
            BASE + "/mcp",
            json=rpc("ping"),
            headers={b"accept": b"application/json, text/event-stream", **headers},
        )
        assert response.status_code == 404, session


async def test_an_empty_session_id_is_none(bench: Bench) -> None:
    assert (await bench.post(rpc("ping"), "")).status_code == 400


async def test_every_changed_character_makes_an_id_unknown(bench: Bench) -> None:
    # Ids of three lengths, since the last character of some holds bits that decode to nothing.
    for padding in range(3):
        params = {"protocolVersion": REVISIONS[0], "clientInfo": {"name": "x" * padding}}
        session = (await bench.post(rpc("initialize", params))).headers["mcp-session-id"]
        assert session.isascii()
        assert session.isprintable()
        assert " " not in session
        for place, letter in enumerate(session):
            for other in {chr(ord(letter) ^ 1), "A" if letter != "A" else "B"}:
                changed = session[:place] + other + session[place + 1 :]
                response = await bench.post(rpc("ping"), changed)
                assert response.status_code == 404, (place, letter, other)
        for changed in (session[:-1], session + "A", session + "=", session + "==", session * 2):
            assert (await bench.post(rpc("ping"), changed)).status_code == 404
        assert (await bench.post(rpc("ping"), session)).status_code == 200


async def test_an_id_hides_what_it_holds(bench: Bench) -> None:
    agent = await bench.connect()
    (live,) = bench.router.agents.all()
    assert live.agent not in (agent.session or "")
    assert "plain-agent" not in (agent.session or "")


async def test_a_session_without_requests_ends(autojump_clock: MockClock) -> None:
    config = configuration({"box": {}}, sessions={"idle": "60s"})
    async with open_bench(config) as bench:
        agent = await bench.connect()
        await agent.call("box__increment")
        await trio.sleep(50)
        assert await agent.request("ping") == {}  # which counts as a sign of life
        await trio.sleep(50)
        assert await agent.request("ping") == {}
        (upstream,) = bench.server.happenings("ping")[:1]
        await bench.server.wait_until(
            lambda: any(h.session == upstream.session for h in bench.server.happenings("deleted"))
        )
        assert len(bench.router.agents) == 0
        assert (await bench.post(rpc("ping"), agent.session)).status_code == 404


async def test_a_stream_or_a_running_call_keeps_a_session(autojump_clock: MockClock) -> None:
    config = configuration({"box": {}}, sessions={"idle": "60s"})
    async with open_bench(config) as bench:
        agent = await bench.connect()
        await agent.call("box__slow", seconds=200)
        async with bench.listen(agent.session) as listening:
            await listening.wait_for(lambda it: len(it.comments) > 20, seconds=1000)
        assert await agent.request("ping") == {}


async def test_the_number_of_sessions_is_limited(autojump_clock: MockClock) -> None:
    config = configuration({"box": {}}, limits={"agentSessions": 2})
    async with open_bench(config) as bench:
        first, second = await bench.connect(), await bench.connect()
        refused = await bench.post(initialize(ident=7))
        assert refused.status_code == 503
        assert refused.json()["id"] == 7
        assert refused.json()["error"]["code"] == jsonrpc.REFUSED
        assert "2 agent sessions" in refused.json()["error"]["message"]
        assert "mcp-session-id" not in refused.headers
        assert await second.request("ping") == {}
        await first.delete()
        await bench.connect()


async def test_instructions_of_servers_are_passed_on(autojump_clock: MockClock) -> None:
    async with open_bench(configured={"box": {}, "other": {}}) as bench:
        await bench.connect()
        bench.router.supervisor.servers["box"].keeper.instructions = "Count."
        everything = (await bench.connect()).server
        assert everything["instructions"] == "# box\nCount."
        assert (await bench.connect("/mcp/box")).server["instructions"] == "Count."
        assert "instructions" not in (await bench.connect("/mcp/other")).server
