from __future__ import annotations

from functools import partial
from typing import Any

import trio
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.config.schema import SessionScope, Timeouts
from kars_router.model import CallOutcome
from kars_router.testing import HeartbeatServer, Reply


def deleted(server: HeartbeatServer) -> list[str]:
    return [happening.session for happening in server.happenings("deleted")]


async def keep(rig: Rig, into: list[CallOutcome], tool: str = "slow", **arguments: Any) -> None:
    into.append(await rig.call(tool, **arguments))


async def test_the_upstream_session_is_deleted_with_the_agents(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        await rig.call("increment", "b")
        mine, other = rig.upstream_id(), rig.upstream_id("b")
        now = trio.current_time()
        rig.router.supervisor.end_agent("a", "DELETE")
        await rig.server.wait_until(lambda: deleted(rig.server) == [mine])
        assert trio.current_time() == now
        assert "a" not in rig.runtime.slots
        (told,) = rig.server.requests(http_method="DELETE")
        assert told.session == mine
        assert told.headers["mcp-protocol-version"] == "2025-11-25"
        assert await rig.text("increment", "b") == "counter: 2"
        assert rig.upstream_id("b") == other


async def test_nothing_is_sent_in_a_session_after_its_delete(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        ident = rig.upstream_id()
        rig.router.supervisor.end_agent("a", "DELETE")
        await trio.sleep(30)
    last = [r for r in rig.server.log if r.session == ident][-1]
    assert last.http_method == "DELETE"
    for session in deleted(rig.server):
        assert [r for r in rig.server.log if r.session == session][-1].http_method == "DELETE"


async def test_the_stream_is_not_reopened_while_the_delete_is_on_its_way(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(settings=with_settings(timeouts=Timeouts(idle=60.0))) as rig:
        await rig.call("increment")
        ident = rig.upstream_id()
        slow = Reply.text(200, seconds=1.0, execute=True)
        rig.server.script = lambda r: slow if r.http_method == "DELETE" else None
        await trio.sleep(100)
        assert deleted(rig.server) == [ident]
        assert [r for r in rig.server.log if r.session == ident][-1].http_method == "DELETE"


async def test_a_session_that_no_call_uses_is_deleted_and_the_agent_is_told(
    autojump_clock: MockClock,
) -> None:
    settings = with_settings(timeouts=Timeouts(idle=600.0))
    async with open_rig(settings=settings) as rig:
        await rig.call("increment")
        ident = rig.upstream_id()
        await trio.sleep(590)
        assert deleted(rig.server) == []
        await trio.sleep(45)
        assert deleted(rig.server) == [ident]
        outcome = await rig.call("read")
        assert outcome.reset is not None
        assert "600" in outcome.reset.reason
        assert (await rig.call("read")).reset is None


async def test_a_call_that_runs_keeps_the_session_from_being_idle(
    autojump_clock: MockClock,
) -> None:
    settings = with_settings(timeouts=Timeouts(idle=60.0, call=1000.0))
    async with open_rig(settings=settings) as rig:
        assert (await rig.call("slow", seconds=500)).result is not None
        assert deleted(rig.server) == []


async def test_a_shared_session_does_not_end_with_an_agent_nor_by_idleness(
    autojump_clock: MockClock,
) -> None:
    settings = with_settings(session_scope=SessionScope.SHARED, timeouts=Timeouts(idle=60.0))
    async with open_rig(settings=settings) as rig:
        await rig.call("increment")
        rig.router.supervisor.end_agent("a", "DELETE")
        await trio.sleep(600)
        assert deleted(rig.server) == []
        assert await rig.text("increment", "b") == "counter: 2"


async def test_every_session_is_deleted_at_shutdown(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        for agent in ("a", "b", "c"):
            await rig.call("increment", agent)
        opened = {happening.session for happening in rig.server.happenings("opened")}
        await trio.sleep(100)
        now = trio.current_time()
    assert len(opened) == 4
    assert set(deleted(rig.server)) == opened
    assert trio.current_time() - now < 2


async def test_a_server_that_does_not_answer_the_delete_holds_nothing_up(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        for agent in ("a", "b", "c"):
            await rig.call("increment", agent)
        rig.server.script = lambda r: Reply.hang() if r.http_method == "DELETE" else None
        now = trio.current_time()
    assert trio.current_time() - now <= 2.0
    assert len(rig.server.requests(http_method="DELETE")) == 4


async def test_a_delete_that_is_refused_harms_nothing(autojump_clock: MockClock) -> None:
    for status in (404, 405, 500, 401):
        async with open_rig() as rig:
            await rig.call("increment")
            rig.server.script = lambda r, s=status: (
                Reply.text(s) if r.http_method == "DELETE" else None
            )


async def test_a_call_in_flight_ends_with_its_fate_when_its_agent_ends(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig() as rig, trio.open_nursery() as nursery:
        nursery.start_soon(partial(keep, rig, outcomes, seconds=30))
        await rig.server.wait_until(lambda: bool(rig.server.requests("tools/call")))
        await trio.sleep(1)
        rig.router.supervisor.end_agent("a", "DELETE")
        await trio.sleep(5)
        assert [(o.fate, o.code) for o in outcomes] == [("unknown", "session_lost")]


async def test_a_lost_session_is_not_deleted(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        ident = rig.upstream_id()
        rig.server.reply_next(Reply.text(404), method="tools/call")
        await rig.call("increment")
        assert [r.session for r in rig.server.requests(http_method="DELETE")] == []
        assert rig.upstream_id() != ident


async def test_sessions_of_a_server_that_is_removed_are_deleted(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        await rig.router.supervisor.apply({})
        assert len(deleted(rig.server)) == 2
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code) == ("not_executed", "server_removed")


async def test_sessions_of_an_unchanged_server_are_not_touched(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        await rig.router.supervisor.apply({"s": with_settings(allowed_tools=("read",))})
        assert list(rig.runtime.catalogue.tools) == ["read"]
        assert await rig.text("increment") == "counter: 2"
        await rig.router.supervisor.apply({"s": with_settings(max_connections=3)})
        assert len(deleted(rig.server)) == 2
        outcome = await rig.call("increment")
        assert outcome.reset is not None
