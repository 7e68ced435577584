"""Agents whose connections break and who come back for what they missed."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from agent_kit import Listening
from trio.testing import MockClock
from unit.front.handshake_kit import (
    ELICIT,
    QUESTION,
    Agent,
    Kit,
    ask,
    done,
    open_kit,
    result_of,
    settle,
)

from kars_router.front.callers import AgentCaller
from kars_router.front.operations import Answer
from kars_router.wire import jsonrpc

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


async def test_nothing_of_another_stream_is_replayed(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent, stranger = await kit.connect(), await kit.connect()
        steps(kit, 5)
        async with (
            agent.listen() as standing,
            agent.call(ident="a") as one,
            agent.call(ident="b") as two,
        ):
            await settle()
            agent.port.notify("box", CHANGED, b"")
            await settle()
            ids = [stream.ids[0] for stream in (standing, one, two)]
        await trio.sleep(10)
        async with stranger.listen(ids[1]) as foreign, agent.listen(ids[0]) as listening:
            await settle()
            assert foreign.messages == []
            assert [m["method"] for m in listening.messages] == [CHANGED]
        for ident, name in ((ids[2], "b"), (ids[1], "a")):
            async with agent.listen(ident) as again:
                await again.end()
                assert progress(again) == [0, 1, 2, 3, 4]
                assert again.messages[-1]["id"] == name


async def test_a_get_stream_is_continued(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        def log(number: int) -> None:
            agent.port.notify(
                "box", "notifications/message", b'{"level":"info","data":%d}' % number
            )

        def data(listening: Listening) -> list[int]:
            return [m["params"]["data"] for m in listening.messages]

        async with agent.listen() as first:
            await settle()
            for number in range(3):
                log(number)
            await settle()
            assert data(first) == [0, 1, 2]
        await settle()
        log(3)
        async with agent.listen(first.ids[1]) as second:
            await settle()
            assert data(second) == [1, 2, 3]
            log(4)
            await settle()
            assert data(second) == [1, 2, 3, 4]
            assert agent.port.bystander("box") is not None
            # Another one gets nothing of that, and all that is new.
            async with agent.listen() as third:
                log(5)
                await settle()
                assert (data(second), data(third)) == ([1, 2, 3, 4], [5])


@pytest.mark.parametrize(("got", "missed"), [(1, [2]), (2, [])])
async def test_a_get_stream_that_the_router_had_ended_is_continued(
    autojump_clock: MockClock, got: int, missed: list[int]
) -> None:
    async with open_kit() as kit, AsyncExitStack() as stack:
        agent = await kit.connect()

        def log(number: int) -> None:
            agent.port.notify(
                "box", "notifications/message", b'{"level":"info","data":%d}' % number
            )

        first = await stack.enter_async_context(agent.listen())
        log(1)
        log(2)
        await settle()
        for _ in range(4):
            await stack.enter_async_context(agent.listen())
        await first.end()
        async with agent.listen(first.ids[got]) as again:
            log(3)
            await settle()
            assert [m["params"]["data"] for m in again.messages] == [*missed, 3]
            assert not again.ended.is_set()


async def test_what_a_get_stream_had_not_sent_goes_to_another_that_is_open(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        session = (await kit.connect()).session
        (stays, reader), (leaves, gone) = session.listen(""), session.listen("")
        session.notify(b"1", once=False)
        session.leave(leaves, gone)
        session.notify(b"2", once=False)
        events = [stays.take(reader) for _ in range(3)]
        assert [event and event.data for event in events] == [b"1", b"2", None]


async def test_what_belongs_to_a_request_goes_to_no_get_stream(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        session = (await kit.connect()).session
        standing, listener = session.listen("")
        stream = session.log.open()
        event = stream.put(b"1")
        _, reader = session.listen(stream.ident(0))
        session.leave(stream, reader)
        assert standing.take(listener) is None
        assert stream.take(session.listen(stream.ident(0))[1]) is event


async def test_a_get_stream_full_of_events_loses_its_reader(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        session = agent.session
        stream, reader = session.listen("")
        bystander = agent.port.bystander("box")
        assert bystander is not None
        nursery.start_soon(bystander.ask, ELICIT, QUESTION)
        await settle()
        for number in range(513):
            session.notify(b"%d" % number, once=False)
        # Now the question counts as well, which is one too many.
        session.leave(stream, reader)
        assert session.streams == []
        stream, reader = session.listen("")
        events = [stream.take(reader) for _ in range(512)]
        assert [event and event.data for event in events[1:]] == [b"%d" % n for n in range(2, 513)]
        nursery.cancel_scope.cancel()


async def test_a_get_stream_goes_on_when_it_is_taken_over(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        async with agent.listen() as old:
            agent.port.notify("box", CHANGED, b"")
            await settle()
            async with agent.listen(old.ids[-1]) as new:
                await old.end()
                agent.port.notify("box", CHANGED, b"")
                await settle()
                assert (len(old.messages), len(new.messages)) == (1, 1)


@pytest.mark.parametrize("ident", ["x", "1", "00000000-1-1", "-", "é", " "])
async def test_an_unknown_event_begins_a_get_stream(autojump_clock: MockClock, ident: str) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        headers = {
            "accept": "text/event-stream",
            "mcp-session-id": agent.ident,
            "last-event-id": ident.encode("latin-1"),
        }
        async with kit.stream("GET", headers=headers) as listening:
            agent.port.notify("box", CHANGED, b"")
            await settle()
            assert listening.response.status_code == 200
            assert [m["method"] for m in listening.messages] == [CHANGED]


async def test_an_id_of_an_earlier_process_is_unknown(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        steps(kit, 5)
        async with agent.call() as listening:
            await settle()
        async with open_kit() as later:
            same = Agent(later, agent.ident)
            steps(later, 5)
            async with same.call(), same.listen(listening.ids[-1]) as again:
                await settle()
                assert again.messages == []
                assert not again.ended.is_set()


async def test_who_has_got_everything_gets_a_get_stream(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        undone: list[int] = []
        steps(kit, 1, undone)
        async with agent.call() as listening:
            await settle()
        # Where the answer was written, but its reader seemed to be gone.
        await trio.sleep(2)
        (event,) = agent.session.log._held
        async with agent.listen(event.ident) as again:
            await trio.sleep(20)
            assert (again.messages, again.ended.is_set()) == ([], False)
        await trio.sleep(1000)
        assert undone == []
        assert listening.messages


async def test_a_result_that_is_too_much_to_keep_is_taken_back(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        undone: list[str] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            tell(caller, 1)
            await trio.sleep(5)
            name = str(len(undone) + 1)
            return done(jsonrpc.encode(["x" * 3_000_000]), undo=(lambda: undone.append(name),))

        last: list[str] = []
        for ident in range(2):
            async with agent.call(ident=ident) as listening:
                await settle()
                last.append(listening.ids[-1])
            await trio.sleep(1)
        await trio.sleep(6)
        assert undone == ["1"]
        async with agent.listen(last[1]) as again:
            await again.end()
            assert again.messages[-1]["id"] == 1
        await trio.sleep(1000)
        assert undone == ["1"]


async def test_large_answers_to_those_who_read_are_never_given_up(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        sizes: list[int] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            tell(caller, 1)
            await trio.sleep(5)
            return done(jsonrpc.encode(["x" * 1_000_000]))

        async def call(ident: int) -> None:
            async with agent.call(ident=ident) as listening:
                await listening.end()
                sizes.append(len(result_of(listening)[0]))

        for ident in range(12):
            nursery.start_soon(call, ident)
        await trio.sleep(20)
        assert sizes == [1_000_000] * 12


async def test_a_large_answer_that_nothing_went_before_is_plain_json(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(14)
            return done(jsonrpc.encode(["x" * 3_000_000]))

        answer = await agent.request("tools/call", {"name": "work"})
        assert len(answer["result"][0]) == 3_000_000
        assert len(agent.session.log) == 0


async def test_a_deleted_session_is_not_continued(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        undone: list[int] = []
        steps(kit, 30, undone)
        async with agent.call() as left:
            await settle()
        async with agent.call() as read:
            await settle()
            headers = {"mcp-session-id": agent.ident}
            assert (
                await kit.client.delete("http://localhost/mcp", headers=headers)
            ).status_code == 200
            refused = await kit.get(agent.ident, headers={"last-event-id": left.ids[-1]})
            assert refused.status_code == 404
            await read.end()
            assert result_of(read) == {"steps": 30}
        assert undone == [1]  # of the one that was left


async def test_while_the_router_stops_only_calls_are_continued(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        steps(kit, 30)
        async with agent.listen() as standing, agent.call() as listening:
            await settle()
            agent.port.notify("box", CHANGED, b"")
            await settle()
            nursery.start_soon(kit.legacy.drain)
            await standing.end()
            last = listening.ids[-1]
        for headers in ({}, {"last-event-id": standing.ids[-1]}, {"last-event-id": "x"}):
            assert (await kit.get(agent.ident, headers=headers)).status_code == 503
        async with agent.listen(last) as again:
            await again.end()
            assert result_of(again) == {"steps": 30}


async def test_a_work_that_is_cut_off_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    undone: list[Any] = []
    async with open_kit() as kit:
        agent = await kit.connect()
        session = agent.session
        kit.on("work")(ask)
        async with agent.call() as listening:
            await settle()
        assert len(session.questions) == 1
    assert (len(session.questions), len(session.log), undone) == (0, 0, [])
    assert session.log.find(listening.ids[0]) is None
