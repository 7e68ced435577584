from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from trio.testing import MockClock
from unit.session.upstream_kit import open_rig

from kars_router.testing import HeartbeatServer, Received, Reply

INITIALIZED = "notifications/initialized"


def answer_initialize(**result: Any) -> Callable[[Received], Reply | None]:
    def script(received: Received) -> Reply | None:
        if received.method != "initialize":
            return None
        whole = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}, **result}
        return Reply.json({"jsonrpc": "2.0", "id": received.id, "result": whole})

    return script


async def test_the_newest_revision_is_asked_for_and_nothing_is_declared(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        (asked, *_) = rig.server.requests("initialize")
        assert asked.params["protocolVersion"] == "2025-11-25"
        assert asked.params["capabilities"] == {}
        assert asked.params["clientInfo"]["name"] == "kars-router"
        assert asked.session is None
        assert "mcp-protocol-version" not in asked.headers


@pytest.mark.parametrize("version", ["2025-11-25", "2025-06-18", "2025-03-26"])
async def test_the_servers_revision_is_accepted_and_sent_from_then_on(
    autojump_clock: MockClock, version: str
) -> None:
    async with open_rig(versions=(version,)) as rig:
        assert await rig.text("increment") == "counter: 1"
        later = rig.of("a")
        assert {r.http_method for r in later} == {"POST", "GET"}
        assert {r.headers["mcp-protocol-version"] for r in later} == {version}


async def test_the_oldest_revision_is_usable_too(autojump_clock: MockClock) -> None:
    async with open_rig(versions=("2024-11-05",)) as rig:
        assert await rig.text("increment") == "counter: 1"


async def test_initialized_comes_before_anything_else(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("read")
        methods = [(r.http_method, r.method) for r in rig.of("a")]
        assert methods[0] == ("POST", INITIALIZED)
        assert methods.count(("POST", INITIALIZED)) == 1


@pytest.mark.parametrize("version", ["1999-01-01", "2026-07-28", "", 5, None])
async def test_a_session_of_an_unusable_revision_is_not_used_and_deleted(
    autojump_clock: MockClock, version: Any
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        headers = {"mcp-session-id": "odd"}

        def script(received: Received) -> Reply | None:
            reply = answer_initialize(protocolVersion=version)(received)
            if reply is not None:
                return Reply(status=200, headers={**reply.headers, **headers}, body=reply.body)
            return Reply.text(200) if received.http_method == "DELETE" else None

        server.script = script

    async with open_rig(prepare=prepare) as rig:
        assert rig.runtime.state == "down"
        assert "revision" in rig.runtime.error
        outcome = await rig.call("read")
        assert (outcome.fate, outcome.code) == ("not_executed", "upstream_unavailable")
        assert rig.server.requests(INITIALIZED) == []
        assert rig.server.requests("tools/call") == []
        deleted = rig.server.requests(http_method="DELETE")
        assert len(deleted) == len(rig.server.requests("initialize"))
        assert {r.session for r in deleted} == {"odd"}


@pytest.mark.parametrize(
    "reply",
    [
        Reply.text(500, "no"),
        Reply.text(404, "no"),
        Reply.text(401, "no"),
        Reply.text(200, "<html>"),
        Reply.text(202),
        Reply.events(),
        Reply.cut(),
        Reply.json({"jsonrpc": "2.0", "id": 0, "error": {"code": -32602, "message": "no"}}),
        Reply.json({"jsonrpc": "2.0", "id": 0, "result": 5}),
        Reply.json({"jsonrpc": "2.0", "id": 0, "result": {}}),
        Reply.json([]),
        Reply(headers={"content-type": "application/json"}, body=b"\xff{"),
        Reply(headers={"content-type": "text/event-stream"}, body=b"data: \xff{\n\n"),
    ],
    ids=lambda reply: f"{reply.status}-{reply.body[:30]!r}",
)
async def test_a_refused_handshake_is_tried_again_and_then_works(
    autojump_clock: MockClock, reply: Reply
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.reply_next(reply, method="initialize")

    async with open_rig(prepare=prepare) as rig:
        assert rig.runtime.state == "down"
        assert rig.runtime.error
        await rig.server.wait_until(lambda: len(rig.server.requests("tools/list")) == 1)
        assert await rig.text("increment") == "counter: 1"
        assert rig.runtime.state == "ready"


async def test_an_initialize_without_an_answer_is_given_up_and_never_cancelled(
    autojump_clock: MockClock,
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.reply_next(Reply.hang(), method="initialize")

    async with open_rig(prepare=prepare) as rig:
        assert rig.runtime.state == "down"
        assert rig.server.requests("notifications/cancelled") == []
        assert await rig.text("increment") == "counter: 1"
        assert rig.server.requests("notifications/cancelled") == []


async def test_an_initialized_without_an_answer_is_given_up_and_the_session_deleted(
    autojump_clock: MockClock,
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.reply_next(Reply.hang(), method=INITIALIZED)

    async with open_rig(prepare=prepare) as rig:
        assert "initialized" in rig.runtime.error
        assert len(rig.server.happenings("deleted")) == 1


@pytest.mark.parametrize("ident", ["s\u00e9", "with space", "\x7f"])
async def test_a_hostile_session_id_brings_nothing_down(
    autojump_clock: MockClock, ident: str
) -> None:
    def script(received: Received) -> Reply | None:
        reply = answer_initialize(capabilities={"tools": {}})(received)
        if reply is None:
            return Reply.text(202)
        return Reply(headers={**reply.headers, "mcp-session-id": ident}, body=reply.body)

    def prepare(server: HeartbeatServer) -> None:
        server.script = script

    async with open_rig(prepare=prepare) as rig:
        assert rig.runtime.state == "down"
        assert (await rig.call("read")).code in ("upstream_unavailable", "no_answer")


async def test_a_server_without_sessions_can_be_used(autojump_clock: MockClock) -> None:
    def script(received: Received) -> Reply | None:
        if received.http_method != "POST":
            return Reply.text(405)
        if received.method == INITIALIZED:
            return Reply.text(202)
        reply = answer_initialize(capabilities={"tools": {}})(received)
        if reply is not None:
            return reply
        result = {"tools": [{"name": "t"}]} if received.method == "tools/list" else {"content": []}
        return Reply.json({"jsonrpc": "2.0", "id": received.id, "result": result})

    def prepare(server: HeartbeatServer) -> None:
        server.script = script

    async with open_rig(prepare=prepare) as rig:
        assert (await rig.call("t")).result == b'{"content":[]}'
        assert rig.state() == "none"
    assert rig.server.requests(http_method="DELETE") == []
