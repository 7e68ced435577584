from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.config.schema import OnSessionLoss, Timeouts
from kars_router.model import CallOutcome, LossVerdict
from kars_router.testing import Call, Fault, FaultPlan, Received, Reply, Stage, text_of


async def keep(rig: Rig, into: list[CallOutcome], tool: str, **arguments: Any) -> None:
    into.append(await rig.call(tool, **arguments))


async def many(rig: Rig, count: int, tool: str = "increment") -> list[CallOutcome]:
    outcomes: list[CallOutcome] = []
    async with trio.open_nursery() as nursery:
        for _ in range(count):
            nursery.start_soon(keep, rig, outcomes, tool)
    return outcomes


@pytest.mark.parametrize(
    "reply",
    [
        Reply.text(404),
        Reply.text(404, "<html>"),
        Reply.text(400, "Bad Request: Server not initialized"),
        Reply.text(400, "Bad Request: No valid session ID provided"),
    ],
)
async def test_a_call_that_a_lost_session_refused_is_made_again(
    autojump_clock: MockClock, reply: Reply
) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        rig.server.reply_next(reply, method="tools/call")
        if reply.status == 400:  # its words alone are not enough
            rig.server.reply_next(reply, method="ping")
        with capture_logs() as logs:
            outcome = await rig.call("increment")
        assert outcome.fate == "executed"
        assert outcome.result is not None
        assert text_of(msgspec.json.decode(outcome.result)) == "counter: 1"
        assert outcome.reset is not None
        assert outcome.reset.generation == 2
        (line,) = [entry for entry in logs if entry["event"] == "session_lost"]
        assert line["status"] == reply.status
        assert line["body"] == reply.body.decode()
        assert line["generation"] == 1
        assert line["reason"] == outcome.reset.reason
        assert rig.metric("kars_replays_total") == 1
        assert rig.metric("kars_session_losses_total", reason=f"status_{reply.status}") == 1


@pytest.mark.parametrize(
    ("reply", "fate"),
    [
        (Reply.text(400, "sessionStorage key missing"), "not_executed"),
        (Reply.text(401, "Session not found"), "not_executed"),
        (Reply.text(403, "Session not found"), "not_executed"),
        (Reply.text(429, "slow down"), "not_executed"),
        (Reply.text(500, "Session not found"), "unknown"),
        (Reply.text(503, "Session not found"), "unknown"),
        (Reply.text(200, "Session not found"), "unknown"),
        (Reply.text(202), "unknown"),
        (Reply.events(), "unknown"),
        (Reply.cut(), "unknown"),
        (Reply.json({}), "unknown"),
        (Reply.json([]), "unknown"),
        (Reply(headers={"content-type": "application/json"}), "unknown"),
        (Reply(headers={"content-type": "text/event-stream"}, body=b"data: {\n\n"), "unknown"),
        (
            Reply(headers={"content-type": "text/event-stream"}, body=b"data", ending="cut"),
            "unknown",
        ),
    ],
    ids=lambda value: f"{value.status}-{value.body[:20]!r}" if isinstance(value, Reply) else value,
)
async def test_what_is_no_loss_ends_with_its_fate_and_keeps_the_session(
    autojump_clock: MockClock, reply: Reply, fate: str
) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        rig.server.reply_next(reply, method="tools/call")
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.result, outcome.reset) == (fate, None, None)
        assert outcome.message
        assert len(rig.server.requests("tools/call")) == 2
        assert await rig.text("increment") == "counter: 2"
        assert rig.slot().generation == 1


async def test_an_error_that_speaks_of_the_session_is_the_servers_answer(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        outcome = await rig.call("error", code=-32000, message="Session not found")
        assert outcome.fate == "executed"
        assert outcome.error is not None
        assert msgspec.json.decode(outcome.error)["message"] == "Session not found"
        assert rig.slot().generation == 1


async def test_twenty_calls_and_one_new_session(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        before = len(rig.server.requests("initialize"))
        lost = rig.upstream_id()
        rig.server.script = lambda r: (
            Reply.text(404, seconds=0.1) if r.session == lost and r.http_method == "POST" else None
        )
        outcomes = await many(rig, 20)
        assert len(rig.server.requests("initialize")) == before + 1
        assert {o.fate for o in outcomes} == {"executed"}
        assert sum(o.reset is not None for o in outcomes) == 1
        assert await rig.text("read") == "counter: 20"
        assert rig.slot().generation == 2


async def test_refusals_that_come_late_are_replayed_too(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        lost = rig.upstream_id()
        delays = iter([0.0, 0.5, 1.0, 1.5])

        def script(received: Received) -> Reply | None:
            if received.method == "tools/call" and received.session == lost:
                return Reply.text(404, seconds=next(delays))
            return None

        rig.server.script = script
        outcomes = await many(rig, 4)
        assert {o.fate for o in outcomes} == {"executed"}
        assert await rig.text("read") == "counter: 4"


async def test_calls_that_were_being_executed_are_not_replayed(
    autojump_clock: MockClock,
) -> None:
    runs = 0

    async def slow(_: Call) -> dict[str, object]:
        nonlocal runs
        runs += 1
        await trio.sleep(30)
        return {"content": []}

    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig:
        rig.server.add_tool("count", slow)
        await rig.call("increment")
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(keep, rig, outcomes, "count")
            await trio.sleep(1)
            rig.server.reply_next(Reply.text(404), method="tools/call")
            refused = await rig.call("increment")
        assert refused.fate == "executed"
        assert runs == 5
        assert [(o.fate, o.code, o.retryable) for o in outcomes] == [
            ("unknown", "session_lost", False)
        ] * 5


async def test_on_session_loss_fail(autojump_clock: MockClock) -> None:
    async with open_rig(settings=with_settings(on_session_loss=OnSessionLoss.FAIL)) as rig:
        await rig.call("increment")
        rig.server.reply_next(Reply.text(404), method="tools/call")
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code) == ("not_executed", "session_lost")
        assert outcome.retryable
        assert len(rig.server.requests("tools/call")) == 2
        again = await rig.call("increment")
        assert again.reset is not None


async def test_a_server_that_loses_every_session_is_asked_only_so_often(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.server.script = lambda r: Reply.text(404) if r.method == "tools/call" else None
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code) == ("not_executed", "session_lost")
        assert len(rig.server.requests("tools/call")) == 3
        rig.server.script = None
        assert await rig.text("increment") == "counter: 1"


async def test_no_answer_in_time_is_unknown_and_cancelled(autojump_clock: MockClock) -> None:
    settings = with_settings(timeouts=Timeouts(call=10.0))
    async with open_rig(settings=settings) as rig:
        start = trio.current_time()
        outcome = await rig.call("slow", seconds=100)
        assert trio.current_time() - start == 10
        assert (outcome.fate, outcome.code) == ("unknown", "timeout")
        await trio.sleep(1)
        (cancelled,) = rig.server.requests("notifications/cancelled")
        (call,) = rig.server.requests("tools/call")
        assert cancelled.params["requestId"] == call.id
        assert type(cancelled.params["requestId"]) is type(call.id)
        assert await rig.text("increment") == "counter: 1"
        assert rig.slot().generation == 1


async def test_what_was_never_sent_is_not_cancelled(autojump_clock: MockClock) -> None:
    settings = with_settings(timeouts=Timeouts(call=3.0, connect=60.0))
    plan = FaultPlan(
        always_from=1,
        fault=Fault.delay(1000.0, Stage.CONNECT),
        matching=lambda r: b"tools/call" in r.content,
    )
    async with open_rig(settings=settings, faults=plan) as rig:
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code) == ("not_executed", "timeout")
        await trio.sleep(1)
        assert rig.server.requests("notifications/cancelled") == []


async def test_a_reply_that_comes_late_is_counted_and_dropped(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        (call,) = rig.of("a", "tools/call")
        answer = {"jsonrpc": "2.0", "id": call.id, "result": {"content": []}}
        log = rig.server.sessions[rig.upstream_id()].listen
        log.append(msgspec.json.encode(answer))
        log.append(msgspec.json.encode({**answer, "id": str(call.id)}))
        log.append(b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":""}}')
        await trio.sleep(1)
        assert rig.metric("kars_dropped_messages_total", kind="late_reply") == 3
        assert await rig.text("increment") == "counter: 2"


async def test_an_answer_on_the_get_stream_counts(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        outcomes: list[CallOutcome] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(keep, rig, outcomes, "slow", seconds=50))
            await rig.server.wait_until(lambda: len(rig.of("a", "tools/call")) == 2)
            answer = {"jsonrpc": "2.0", "id": rig.of("a", "tools/call")[1].id, "result": {"n": 1}}
            rig.server.sessions[rig.upstream_id()].listen.append(msgspec.json.encode(answer))
        assert [o.result for o in outcomes] == [b'{"n":1}']


async def test_of_two_answers_the_first_counts(autojump_clock: MockClock) -> None:
    def script(received: Received) -> Reply | None:
        if received.method != "tools/call":
            return None
        answers = [{"jsonrpc": "2.0", "id": received.id, "result": {"n": n}} for n in range(2)]
        return Reply.events(*answers)

    async with open_rig() as rig:
        rig.server.script = script
        assert (await rig.call("increment")).result == b'{"n":0}'
        assert rig.metric("kars_dropped_messages_total", kind="late_reply") == 1


async def test_a_stream_that_stays_open_after_its_answer_holds_nothing_up(
    autojump_clock: MockClock,
) -> None:
    def script(received: Received) -> Reply | None:
        if received.method != "tools/call":
            return None
        answer = {"jsonrpc": "2.0", "id": received.id, "result": {}}
        return Reply.events(answer, ending="hang")

    async with open_rig() as rig:
        rig.server.script = script
        start = trio.current_time()
        assert (await rig.call("increment")).result == b"{}"
        assert trio.current_time() == start
        await trio.sleep(5)
        assert rig.bridge.open_responses == 2  # the GET streams


async def test_a_server_that_is_away_is_no_loss(autojump_clock: MockClock) -> None:
    plan = FaultPlan({2: Fault.connect()}, matching=lambda r: b'"tools/call"' in r.content)
    async with open_rig(faults=plan) as rig:
        await rig.call("increment")
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code, outcome.retryable) == ("not_executed", "connect", True)
        assert await rig.text("increment") == "counter: 2"


async def test_the_servers_own_reaper_is_noticed_and_the_agent_told(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        rig.server.script = lambda r: Reply.hang() if r.is_answer else None
        await rig.server.wait_until(lambda: bool(rig.server.happenings("reaped")))
        rig.server.script = None
        await trio.sleep(5)
        outcome = await rig.call("increment")
        assert outcome.reset is not None
        assert "404" in outcome.reset.reason


async def test_a_call_that_nobody_waits_for_ends_by_itself(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        with trio.move_on_after(1):
            await rig.call("slow", seconds=5)
        assert rig.session().in_flight == 1
        await trio.sleep(10)
        assert rig.session().in_flight == 0
        assert rig.server.requests("notifications/cancelled") == []
        assert rig.metric("kars_calls_total", fate="unknown", code="abandoned") == 1


async def test_a_call_that_waits_for_the_stream_of_a_lost_session_is_not_sent_in_it(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig:
        rig.server.script = lambda r: Reply.hang() if r.http_method == "GET" else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, rig, outcomes, "increment")
            await trio.testing.wait_all_tasks_blocked()
            session, first = rig.session(), rig.upstream_id()
            assert session.in_flight == 1
            assert rig.of("a", "tools/call") == []
            rig.server.script = None
            before = trio.current_time()
            session.lose(LossVerdict(True, "a test says so", "test"))
        assert trio.current_time() == before  # it does not use up the grace
        assert rig.slot().generation == 2
        (sent,) = rig.server.requests("tools/call")
        assert sent.session != first
        assert [o.fate for o in outcomes] == ["executed"]
