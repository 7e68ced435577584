"""Agents whose connections break and who come back for what they missed."""

from __future__ import annotations

import pytest
import trio
from agent_kit import Listening
from trio.testing import MockClock
from unit.front.handshake_kit import (
    ELICIT,
    QUESTION,
    Kit,
    ask,
    done,
    open_kit,
    result_of,
    settle,
)

from kars_router.front.callers import AgentCaller
from kars_router.front.operations import Answer

pytestmark = pytest.mark.usefixtures("each_listener")

PROGRESS = "notifications/progress"
CHANGED = "notifications/prompts/list_changed"


def tell(caller: AgentCaller, number: int) -> None:
    caller.notify(PROGRESS, b'{"progressToken":"t","progress":%d}' % number)


def progress(listening: Listening) -> list[int]:
    """The progress that came, in order."""
    return [m["params"]["progress"] for m in listening.messages if m.get("method") == PROGRESS]


def steps(kit: Kit, count: int, undone: list[int] | None = None) -> None:
    """Has the tool `work` tell its progress, once a second."""

    taken_back: list[int] = [] if undone is None else undone

    @kit.on("work")
    async def work(caller: AgentCaller) -> Answer:
        for number in range(count):
            tell(caller, number)
            await trio.sleep(1)
        return done(b'{"steps":%d}' % count, undo=(lambda: taken_back.append(1),))


@pytest.mark.parametrize(("revision", "primed"), [("2025-06-18", False), ("2025-11-25", True)])
async def test_a_stream_begins_with_an_event_without_data_for_those_who_know_it(
    autojump_clock: MockClock, revision: str, primed: bool
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect(revision)
        steps(kit, 2)
        async with agent.listen() as standing, agent.call() as listening:
            await listening.end()
            for stream in (standing, listening):
                first = stream.chunks[0][1]
                if primed:
                    assert first == f"id: {stream.ids[0]}\ndata: \n\n".encode()
                else:
                    assert first == b": keepalive\n\n" or first.startswith(b":")
                    assert b"data: \n" not in stream.content
            # All other events have an id, whoever they are for.
            assert len(listening.ids) == 3 + primed
            assert len(set(listening.ids)) == len(listening.ids)


async def test_ids_are_unique_in_the_session(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        steps(kit, 3)
        seen: list[str] = []
        for _ in range(3):
            async with agent.call(ident=1) as one, agent.call(ident=2) as two:
                await one.end()
                await two.end()
                seen += one.ids + two.ids
        assert len(set(seen)) == len(seen) == 3 * 2 * 5


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-11-25"])
async def test_a_broken_stream_is_continued_to_its_end(
    autojump_clock: MockClock, revision: str
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect(revision)
        undone: list[int] = []
        steps(kit, 10, undone)
        async with agent.call() as listening:
            await listening.wait_for(lambda it: len(progress(it)) == 4)
            last = listening.ids[-1]
        await trio.sleep(2.5)
        async with agent.listen(last) as again:
            await again.wait_for(lambda it: progress(it) == [4, 5, 6])
            assert again.response.headers["content-type"] == "text/event-stream"
            await again.end()
            assert progress(again) == [4, 5, 6, 7, 8, 9]
            assert result_of(again) == {"steps": 10}
            assert len(set(again.ids) | set(listening.ids)) == len(again.ids) + len(listening.ids)
        await trio.sleep(1000)
        assert (undone, len(agent.session.log)) == ([], 0)


async def test_a_stream_may_be_continued_from_any_event(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        steps(kit, 5)
        async with agent.call() as listening:
            await listening.wait_for(lambda it: len(progress(it)) == 5)
            ids = listening.ids
        for number, ident in enumerate(ids[:-1]):
            async with agent.listen(ident) as again:
                await settle()
                assert progress(again)[0] == number


async def test_an_answer_waits_for_its_agent(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        undone: list[int] = []
        steps(kit, 3, undone)
        async with agent.call() as listening:
            await settle()
            last = listening.ids[-1]
        await trio.sleep(280)
        assert (kit.operations.unsent, agent.session.in_flight, undone) == (0, 0, [])
        async with agent.listen(last) as again:
            await again.end()
            assert result_of(again) == {"steps": 3}
        # It was written, which the agent need not have got: nothing is taken back, all is kept.
        assert len(agent.session.log) == 4
        await trio.sleep(1000)
        assert (undone, len(agent.session.log)) == ([], 0)
        assert kit.sample("kars_agent_replays_dropped_total") == 0


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-11-25"])
async def test_an_answer_that_was_written_but_not_received_is_written_again(
    autojump_clock: MockClock, revision: str
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect(revision)
        undone: list[int] = []
        steps(kit, 1, undone)
        async with agent.call() as listening:
            await listening.end()
        first, last = listening.ids[-2:]
        for _ in range(2):  # the second connection breaks as well
            async with agent.listen(first) as again:
                await again.end()
                assert again.messages == listening.messages[-1:]
                assert result_of(again) == {"steps": 1}
        assert len(agent.session.log) == 2
        # Who names the last event has got the answer, so that it is kept no longer.
        async with agent.listen(last) as standing:
            await settle()
            assert (standing.messages, standing.ended.is_set()) == ([], False)
            assert len(agent.session.log) == 0
        assert undone == []


async def test_an_answer_that_was_written_is_kept_for_five_minutes(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        steps(kit, 1)
        async with agent.call() as listening:
            await listening.end()
        await trio.sleep(295)
        assert agent.session.log.find(listening.ids[0]) is not None
        await trio.sleep(30)
        assert agent.session.log.find(listening.ids[0]) is None


async def test_whoever_has_got_an_answer_begins_no_stream_while_the_router_stops(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        steps(kit, 1)
        async with agent.call() as listening:
            await listening.end()
        await kit.legacy.drain()
        async with agent.listen(listening.ids[0]) as again:
            await again.end()
            assert result_of(again) == {"steps": 1}
        refused = await kit.get(agent.ident, headers={"last-event-id": listening.ids[-1]})
        assert refused.status_code == 503


async def test_an_answer_that_nobody_fetches_is_taken_back_after_five_minutes(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        undone: list[int] = []
        steps(kit, 3, undone)
        async with agent.call() as listening:
            await settle()
            last = listening.ids[-1]
        await trio.sleep(3 + 299)
        assert undone == []
        await trio.sleep(20)
        assert (undone, len(agent.session.log)) == ([1], 0)
        async with agent.listen(last) as again:
            await trio.sleep(60)
            assert again.messages == []
            assert not again.ended.is_set()  # a GET stream like any other
        assert kit.sample("kars_agent_notifications_dropped_total") == 1


async def test_an_agent_that_leaves_before_it_heard_anything_cannot_come_back(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        ended = trio.Event()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(10)
            return done(undo=(ended.set,))

        with trio.move_on_after(1):
            async with agent.call():
                pass
        with trio.fail_after(9.5):
            await ended.wait()
        assert len(agent.session.log) == 0


async def test_a_silent_call_can_be_come_back_to_after_fifteen_seconds(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(1000)
            return done(b'{"x":1}')

        async with agent.call() as listening:
            await trio.sleep(1)
            assert len(listening.ids) == 1
            assert listening.messages == []
        await trio.sleep(900)
        async with agent.listen(listening.ids[0]) as again:
            await again.end()
            assert result_of(again) == {"x": 1}
            # It knows how to come back already.
            assert again.chunks[0][1].startswith(b":")
            assert len(again.comments) == 6


async def test_an_answer_is_written_once_although_the_old_connection_lives(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        steps(kit, 10)
        async with agent.call() as old:
            await old.wait_for(lambda it: len(progress(it)) == 3)
            async with agent.listen(old.ids[1]) as new:
                await old.end()
                await new.end()
                assert progress(old) == [0, 1, 2]
                assert progress(new) == list(range(1, 10))
                assert "result" not in old.messages[-1]
                assert result_of(new) == {"steps": 10}


async def test_a_question_waits_for_its_agent_and_is_put_again(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        kit.on("work")(ask)
        async with agent.call() as listening:
            await settle()
            (question,) = listening.messages
        await trio.sleep(100)
        async with agent.listen(listening.ids[0]) as again:
            await settle()
            assert again.messages == [question]
            async with agent.listen(again.ids[-1]) as third:
                await settle()
                assert third.messages == []  # it has got it
                await agent.answer(question["id"], {"a": 1})
                await third.end()
                assert result_of(third) == {"answer": {"a": 1}}


async def test_a_question_that_was_answered_is_not_put_again(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await caller.ask(ELICIT, QUESTION)
            await trio.sleep(30)
            return done()

        async with agent.call() as listening:
            await settle()
            await agent.answer(listening.messages[0]["id"], {})
        async with agent.listen(listening.ids[0]) as again:
            await again.end()
            assert [m.get("method") for m in again.messages] == [None]


async def test_a_question_is_refused_when_its_agent_does_not_come_back(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        times: list[float] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            for _ in range(2):
                await caller.ask(ELICIT, QUESTION)
                times.append(trio.current_time())
            await trio.sleep(10)
            return done(b'{"x":1}')

        async with agent.call() as listening:
            await trio.sleep(1000)
            started = trio.current_time()
        await trio.sleep(320)
        first, second = [when - started for when in times]
        assert first == pytest.approx(300, abs=16)
        assert second == first  # it has been away for too long to be asked
        # The answer may be fetched all the same.
        async with agent.listen(listening.ids[-1]) as again:
            await again.end()
            assert result_of(again) == {"x": 1}
