"""GET streams that are continued, and what no stream is continued for."""

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
                await settle()
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
