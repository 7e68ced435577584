from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock
from unit.session.stateless_kit import Agent, error_reply, open_rig

from kars_router.errors import CallFailed
from kars_router.loss import fate_of
from kars_router.model import LossVerdict
from kars_router.session.eras import OTHER_REVISION
from kars_router.testing import Received, Reply
from kars_router.testing.stateless_server import StatelessCall, StatelessServer
from kars_router.wire.params import plan

DISCOVER = "server/discover"
CALL = "tools/call"
GONE = {"code": -32000, "message": "Server not initialized"}


# What belongs to a request


async def test_progress_comes_back_under_the_agents_own_token(autojump_clock: MockClock) -> None:
    agent, other = Agent(), Agent()
    async with open_rig() as rig:
        first = rig.submit(
            CALL, agent, name="progress", arguments={"seconds": 1}, meta={"progressToken": "t"}
        )
        second = rig.submit(
            CALL, other, name="progress", arguments={"seconds": 1}, meta={"progressToken": "t"}
        )
        third = rig.call("progress", silent := Agent())
        await rig.result(first)
        await rig.result(second)
        await rig.result(third)
        tokens = [r.params["_meta"].get("progressToken") for r in rig.server.requests(CALL)]
        assert tokens.count(None) == 1
        assert len({repr(token) for token in tokens}) == 3
        assert "'t'" not in repr(tokens)
        steps = [{"progressToken": "t", "progress": n, "total": 3} for n in (1, 2, 3)]
        assert agent.told == [("notifications/progress", step) for step in steps] == other.told
        assert silent.told == []


async def test_progress_with_a_strange_token_is_dropped(autojump_clock: MockClock) -> None:
    async def stray(call: StatelessCall) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        call.notify("notifications/progress", {"progressToken": 10**6, "progress": 1})
        return {"content": []}

    agent = Agent()
    async with open_rig(prepare=lambda s: s.add_tool("stray", stray)) as rig:
        await rig.result(rig.submit(CALL, agent, name="stray", meta={"progressToken": 1}))
        assert agent.told == []
        assert rig.dropped("notification") == 1


async def test_what_comes_after_the_answer_is_dropped(autojump_clock: MockClock) -> None:
    agent = Agent(log_level="debug")
    answer = {"jsonrpc": "2.0", "id": 2, "result": {"content": []}}
    late = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info"}}
    async with open_rig() as rig:
        rig.server.reply_next(Reply.events(late, answer, late), method=CALL)
        await rig.result(rig.call("x", agent))
        await rig.session.drain(60)
        assert agent.told == [("notifications/message", {"level": "info"})]
        assert rig.dropped("notification") == 1


async def test_log_messages_go_to_whoever_asked_for_them(autojump_clock: MockClock) -> None:
    loud, quiet = Agent(log_level="alert"), Agent()
    async with open_rig() as rig:
        await rig.text("log", loud)
        await rig.text("log", quiet)
        assert [params["level"] for _, params in loud.told] == ["alert", "emergency"]
        assert quiet.told == []


async def test_log_messages_that_nobody_asked_for_are_dropped(autojump_clock: MockClock) -> None:
    async def chatty(call: StatelessCall) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        call.notify("notifications/message", {"level": "error", "data": "x"})
        return {"content": []}

    agent = Agent()
    async with open_rig(prepare=lambda s: s.add_tool("chatty", chatty)) as rig:
        await rig.result(rig.call("chatty", agent))
        assert agent.told == []
        assert rig.dropped("notification") == 1


async def test_a_change_that_is_told_on_a_calls_stream_is_still_a_change(
    autojump_clock: MockClock,
) -> None:
    async def changing(call: StatelessCall) -> dict[str, Any]:
        await trio.lowlevel.checkpoint()
        call.notify("notifications/tools/list_changed", {})
        call.notify("notifications/cancelled", {"requestId": call.received.id})
        return {"content": []}

    agent = Agent()
    async with open_rig(prepare=lambda s: s.add_tool("changing", changing)) as rig:
        await rig.result(rig.call("changing", agent))
        assert rig.notices == [("notifications/tools/list_changed", {})]
        assert agent.told == []


# How a request is given up


async def test_cancelling_closes_the_stream_and_says_nothing_else(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        pending = rig.submit(
            CALL, Agent(), name="slow", arguments={"seconds": 50}, meta={"progressToken": 1}
        )
        await trio.sleep(3)
        pending.cancel(b'"enough"')
        failure = await rig.failure(pending)
        assert failure.code == "cancelled"
        assert fate_of(failure) == "unknown"
        await rig.server.wait_until(lambda: bool(rig.server.happenings("left", CALL)))
        assert [h.time for h in rig.server.happenings("left", CALL)] == [3.0]
        await trio.sleep(60)
        assert [r.method for r in rig.server.log] == [DISCOVER, "subscriptions/listen", CALL]


async def test_the_time_limit_closes_the_stream(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        pending = rig.call("slow", Agent(), limit=7.0, seconds=50)
        failure = await rig.failure(pending)
        assert failure.code == "timeout"
        assert trio.current_time() == pytest.approx(7.0)
        await trio.sleep(1)
        assert len(rig.server.happenings("left", CALL)) == 1
        assert len(rig.server.log) == 3
        assert rig.session.in_flight == 0
        assert await rig.text("counter") == "counter: 1"


async def test_the_end_of_the_session_is_the_end_of_its_requests(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        pending = rig.call("slow", Agent(), seconds=50)
        await rig.server.wait_until(lambda: bool(rig.server.requests(CALL)))
    assert pending.lost
    assert pending.failure is not None
    assert pending.failure.code == "session_lost"
    assert fate_of(pending.failure) == "unknown"
    late = rig.call("counter")
    assert late.lost
    assert late.failure is not None
    assert fate_of(late.failure) == "not_executed"


async def test_draining_waits_for_requests_within_its_bound(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.call("slow", Agent(), seconds=5)
        rig.session.finish()
        await rig.session.drain(2)
        assert trio.current_time() == 2.0
        assert rig.session.in_flight == 1
        await rig.session.drain(60)
        assert trio.current_time() == pytest.approx(5.0)


# The router's own requests


async def test_an_own_request_gets_the_result_as_it_is(autojump_clock: MockClock) -> None:
    async with open_rig(ttl_ms=90_000) as rig:
        result = msgspec.json.decode(await rig.session.request("tools/list", time_limit=5))
        assert result["resultType"] == "complete"
        assert result["ttlMs"] == 90_000
        assert rig.session.ttl == 90.0


@pytest.mark.parametrize("ttl", ["5", True, None])
async def test_a_ttl_that_is_no_number_is_none(autojump_clock: MockClock, ttl: Any) -> None:
    async with open_rig(ttl_ms=ttl) as rig:
        await rig.session.request("tools/list", time_limit=5)
        assert rig.session.ttl is None


async def test_an_own_request_that_fails_says_with_what(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        with pytest.raises(CallFailed) as caught:
            await rig.session.request("nonsense/do", time_limit=5)
        failure = caught.value.failure
        assert (failure.code, failure.rpc_code) == ("rpc_error", -32601)
        assert b"Method not found" in failure.rpc_error


async def test_nobody_can_be_asked_on_the_routers_own_behalf(autojump_clock: MockClock) -> None:
    async with open_rig(check_capabilities=False) as rig:
        failure = await rig.failure(rig.call("ask"))
        assert failure.code == "protocol"


# Annotations that are out of date


async def test_stale_annotations_are_read_again_and_the_call_made_once_more(
    autojump_clock: MockClock,
) -> None:
    plans: dict[str, Any] = {}
    lists = 0

    async def relist() -> None:
        nonlocal lists
        lists += 1
        await trio.sleep(1)
        plans["region"] = plan(StatelessServer().tools["region"][1])

    async with open_rig(plans=plans, relist=relist) as rig:
        assert await rig.text("region", Agent(), region="north") == '{"region":"north"}'
        first, second = rig.server.requests(CALL)
        assert "mcp-param-region" not in first.headers
        assert second.headers["mcp-param-region"] == "north"
        assert first.id != second.id
        assert lists == 1


async def test_a_second_mismatch_is_the_answer(autojump_clock: MockClock) -> None:
    async def relist() -> None:
        await trio.lowlevel.checkpoint()

    async with open_rig(relist=relist) as rig:
        error = await rig.error(rig.call("region", Agent(), region="north"))
        assert error["code"] == -32020
        assert len(rig.server.requests(CALL)) == 2
        assert rig.session.alive


async def test_other_mismatches_and_those_nobody_can_mend_are_the_answer(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        error = await rig.error(rig.call("region", Agent(), region="north"))
        assert error["code"] == -32020
        assert len(rig.server.requests(CALL)) == 1

    async def relist() -> None:
        raise AssertionError("nothing that a list could mend")

    async with open_rig(relist=relist) as rig:
        rig.server.reply_next(error_reply(400, -32020, "the header mcp-name"), method=CALL)
        assert (await rig.error(rig.call("echo", Agent())))["code"] == -32020


# When the server proves to be another


async def test_a_revision_that_is_refused_in_mid_life_ends_the_session(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.versions = ("2025-11-25",)
        pending = rig.call("counter", Agent())
        failure = await rig.failure(pending)
        assert pending.lost
        assert fate_of(failure) == "not_executed"
        assert rig.session.lost is not None
        assert "another revision" in rig.session.lost.reason
        assert rig.session.loss_failure is not None
        assert rig.session.loss_failure.code == OTHER_REVISION
        assert rig.server.counter == 0


@pytest.mark.parametrize("turned", [False, True])
async def test_one_refusal_of_the_revision_has_to_be_confirmed(
    autojump_clock: MockClock, turned: bool
) -> None:
    error = {"code": -32022, "message": "no", "data": {"supported": ["2025-11-25"]}}
    async with open_rig() as rig:
        reply = Reply.events({"jsonrpc": "2.0", "id": 2, "error": error})
        rig.server.reply_next(reply, method=CALL)
        if turned:
            rig.server.versions = ("2025-11-25",)
        pending = rig.call("counter", Agent())
        failure = await rig.failure(pending)
        assert pending.lost is turned
        assert rig.session.alive is not turned
        assert fate_of(failure) == "not_executed"


def turned(received: Received) -> Reply:
    """A server of the handshake era that has come in the place of the other one."""
    return Reply.json({"jsonrpc": "2.0", "id": None, "error": GONE}, status=400)


def page(received: Received) -> Reply:
    return Reply.text(404, "<html>")


@pytest.mark.parametrize("script", [turned, page])
async def test_a_server_that_knows_no_stateless_requests_any_more_ends_the_session(
    autojump_clock: MockClock, script: Any
) -> None:
    async with open_rig() as rig:
        rig.server.script = script
        pending = rig.call("counter", Agent())
        failure = await rig.failure(pending)
        assert pending.lost
        assert fate_of(failure) == "not_executed"
        assert rig.session.loss_failure is not None
        assert rig.session.loss_failure.code == OTHER_REVISION


async def test_a_doubtful_error_is_the_answer_if_the_server_is_still_the_same(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.reply_next(turned(rig.server.log[0]), method=CALL)
        assert await rig.error(rig.call("counter", Agent())) == GONE
        rig.server.reply_next(page(rig.server.log[0]), method=CALL)
        failure = await rig.failure(rig.call("counter", Agent()))
        assert (failure.status, failure.body) == (404, "<html>")
        assert rig.session.alive
        assert len(rig.server.requests(DISCOVER)) == 3


@pytest.mark.parametrize("reply", [Reply.text(503), Reply.hang(), Reply.text(401)])
async def test_a_doubt_that_cannot_be_settled_changes_nothing(
    autojump_clock: MockClock, reply: Reply
) -> None:
    async with open_rig() as rig:
        rig.server.reply_next(page(rig.server.log[0]), method=CALL)
        rig.server.reply_next(reply, method=DISCOVER)
        await rig.failure(rig.call("counter", Agent()))
        assert rig.session.alive


async def test_all_who_doubt_share_one_question(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        slow = Reply.text(404, "<html>", seconds=1.0)
        rig.server.reply_next(slow, method=CALL, times=5)
        answer = Reply.json(GONE, status=400, seconds=1.0)
        rig.server.reply_next(answer, method=DISCOVER, times=5)
        pendings = [rig.call("counter", Agent()) for _ in range(5)]
        for pending in pendings:
            await rig.failure(pending)
        assert all(pending.lost for pending in pendings)
        assert len(rig.server.requests(DISCOVER)) == 2


async def test_the_first_loss_counts(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.session.lose(LossVerdict(True, "first"))
        rig.session.lose(LossVerdict(True, "second"))
        assert rig.session.lost == LossVerdict(True, "first")


async def test_what_the_era_has_no_messages_for_is_silent(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.session.set_log_level("debug")
        rig.session.roots_changed()
        await trio.sleep(10)
        assert [r.method for r in rig.server.log] == [DISCOVER, "subscriptions/listen"]
