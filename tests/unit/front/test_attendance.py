"""Whoever waits for an answer is attended to, and nobody else is."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.front.handshake_kit import Kit, open_kit

from kars_router.front.agents import AgentSession
from kars_router.front.attendance import PATIENCE_SECONDS, Attendance
from kars_router.front.exchange import Exchange
from kars_router.front.streams import Outlet, answer


@define(eq=False)
class One:
    """Somebody who is to be attended to."""

    since: float = field(factory=trio.current_time)
    times: list[float] = field(factory=list)

    async def attend(self) -> None:
        self.times.append(trio.current_time() - self.since)
        await trio.sleep(1)


async def test_who_leaves_soon_is_not_attended_to(autojump_clock: MockClock) -> None:
    attendance = Attendance()
    async with trio.open_nursery() as nursery:
        await nursery.start(attendance.run)
        quick, slow = One(), One()
        attendance.enter(quick)
        attendance.enter(slow)
        await trio.sleep(PATIENCE_SECONDS / 2)
        late = One()
        attendance.enter(late)
        attendance.leave(quick)
        await trio.sleep(1)
        assert quick.times == []
        assert slow.times == [pytest.approx(PATIENCE_SECONDS)]
        [time] = late.times
        assert PATIENCE_SECONDS <= time <= 2 * PATIENCE_SECONDS
        nursery.cancel_scope.cancel()


async def test_who_asks_is_attended_to_at_once_and_only_then(autojump_clock: MockClock) -> None:
    attendance = Attendance()
    one = One()
    assert not attendance.attend(one)
    async with trio.open_nursery() as nursery:
        await nursery.start(attendance.run)
        attendance.enter(one)
        assert attendance.attend(one)
        await trio.sleep(1)
        assert one.times == [0.0]
        nursery.cancel_scope.cancel()
    assert not attendance.attend(one)


async def test_nothing_happens_while_there_is_nobody(autojump_clock: MockClock) -> None:
    attendance = Attendance()
    async with trio.open_nursery() as nursery:
        await nursery.start(attendance.run)
        one = One()
        attendance.enter(one)
        attendance.leave(one)
        await trio.sleep(1)
        before = trio.lowlevel.current_statistics().seconds_to_next_deadline
        assert before == float("inf")
        nursery.cancel_scope.cancel()


def session_of(kit: Kit) -> AgentSession:
    [session] = kit.agents.all()
    return session


def exchange(sent: list[Any], left: trio.Event, *, fails: bool = False) -> Exchange:
    async def receive() -> dict[str, Any]:
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if fails:
            raise ValueError("cannot be sent")
        sent.append(message)

    return Exchange({"method": "POST", "path": "/mcp", "headers": []}, receive, send)


async def test_what_goes_wrong_with_a_stream_goes_wrong_for_its_request(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        await kit.connect()

        async def work(outlet: Outlet) -> bytes | None:
            assert outlet.open() is not None
            await trio.sleep(1)
            return b"{}"

        request = exchange([], trio.Event(), fails=True)
        with pytest.RaisesGroup(pytest.RaisesExc(ValueError, match="cannot be sent")):
            await answer(request, session_of(kit), kit.legacy._attendance, work)


@pytest.mark.parametrize("gone", [True, False])
async def test_what_depends_on_the_answers_arrival(autojump_clock: MockClock, gone: bool) -> None:
    """Nobody watches a peer whose answer comes at once; it is asked about before it is written."""
    async with open_kit() as kit:
        await kit.connect()
        undone: list[bool] = []
        left = trio.Event()

        async def work(outlet: Outlet) -> bytes | None:
            outlet.undo.append(lambda: undone.append(True))
            if gone:
                left.set()
            return b"{}"

        sent: list[Any] = []
        await answer(exchange(sent, left), session_of(kit), kit.legacy._attendance, work)
        assert undone == [True] * gone
        assert [message["type"] for message in sent] == [
            "http.response.start",
            "http.response.body",
            "http.response.body",  # the last byte, which says that the others were taken
        ]


async def test_what_is_being_learnt_as_the_answer_comes(autojump_clock: MockClock) -> None:
    """Somebody looks already whether the peer is there, and has not seen yet that it is not."""
    async with open_kit() as kit:
        await kit.connect()
        undone: list[bool] = []
        left = trio.Event()
        left.set()

        async def work(outlet: Outlet) -> bytes | None:
            outlet.undo.append(lambda: undone.append(True))
            assert outlet.attendance.attend(outlet)
            while outlet._attending is None:  # noqa: ASYNC110 - it is made by a task that tells nobody
                await trio.lowlevel.checkpoint()
            return b"{}"

        await answer(exchange([], left), session_of(kit), kit.legacy._attendance, work)
        assert undone == [True]


async def test_a_peer_that_has_left_is_told_nothing(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        await kit.connect()
        left = trio.Event()
        left.set()
        sent: list[Any] = []
        heard: list[bool] = []

        async def work(outlet: Outlet) -> bytes | None:
            stream = outlet.open()
            assert stream is not None
            stream.put(b"1")
            await wait_all_tasks_blocked()
            heard.append(outlet.audible)
            return None

        await answer(exchange(sent, left), session_of(kit), kit.legacy._attendance, work)
        assert heard == [False]
        assert sent == []


async def test_while_it_ends_nobody_is_attended_to_any_more(autojump_clock: MockClock) -> None:
    """Its nursery may close at any time from then on, and would be started in afterwards."""
    attendance, last_words = Attendance(), trio.Event()

    class Slow:
        since = 0.0

        async def attend(self) -> None:
            with trio.CancelScope(shield=True):
                await last_words.wait()

    async with trio.open_nursery() as nursery:
        await nursery.start(attendance.run)
        assert attendance.attend(Slow())
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
            taken = attendance.attend(Slow())
        last_words.set()
    assert not taken
