"""The common wait for silent sockets."""

from __future__ import annotations

import errno
import os
import select
import socket
from typing import Self

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.transports.lookout_kit import Site, Wire, needs_epoll, some_turns, watching

from kars_router.transports.lookout import Lookout

pytestmark = [needs_epoll, pytest.mark.usefixtures("mock_clock")]


# --- When it looks -------------------------------------------------------------------------------


async def test_what_comes_rarely_is_seen_at_once_and_with_one_look(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for number in range(1, 30):
            await wire.say(b"x")
            assert len(wire.heard) == site.lookout.looks == number
            await site.pass_time(0.202)
        assert site.lookout.looks == 29


async def test_a_few_things_at_a_time_are_seen_at_once_too(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for time in range(10):
            for number in range(1, 6):
                await wire.say(b"x")
                assert len(wire.heard) == time * 5 + number
            await site.pass_time(1.002)


async def test_what_comes_after_many_waits_for_the_rest_of_an_interval(
    mock_clock: MockClock,
) -> None:
    async with watching(mock_clock) as site:
        [wire, other] = await site.wires_up(2)
        await site.pass_time(3600)  # in which not more is saved up
        await site.use_up(wire)
        await site.pass_time(0.08)
        await other.say(b"y")
        await site.pass_time(0.1)
        assert other.heard == []
        await site.pass_time(0.022)
        assert other.heard == [b"y"]


async def test_what_comes_within_an_interval_shares_a_look(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        wires = await site.wires_up(30)
        await site.use_up(wires[0])
        before = site.lookout.looks
        for look in range(1, 11):
            for wire in wires:
                await wire.say(b"x")
                await site.pass_time(0.0064)
            await site.pass_time(0.0082)
            assert {len(wire.heard) for wire in wires} == {look}
            assert site.lookout.looks == before + look


async def test_while_nothing_comes_it_sleeps(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for _ in range(8):
            await wire.say(b"x")
        await site.pass_time(0.202)
        await site.pass_time(0.202)
        looks = site.lookout.looks
        for _ in range(20):
            await site.pass_time(0.202)
        assert site.lookout.looks == looks
        await wire.say(b"y")
        assert wire.heard[-1] == b"y"


async def test_nothing_waits_longer_than_an_interval_whenever_it_comes(
    mock_clock: MockClock,
) -> None:
    async with watching(mock_clock) as site:
        noise, wire = await site.wires_up(2)
        gaps = [0.0, 0.02, 0.18, 0.2, 0.22, 0.38, 0.1, 0.6, 0.04, 0.0]
        for number, gap in enumerate(gaps * 3, 1):
            for _ in range(3):
                await noise.say(b"-")
                await site.pass_time(gap)
            await wire.say(b"x")
            await site.pass_time(0.2002)
            assert len(wire.heard) == number


# --- While a request is made ---------------------------------------------------------------------


async def test_while_a_request_is_made_everything_is_seen_at_once(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        site.lookout.begin()
        site.lookout.begin()
        site.lookout.end()
        for number in range(1, 60):
            await wire.say(b"x")
            assert len(wire.heard) == number
        site.lookout.end()
        await wire.say(b"x")  # still, as it waits for something to come
        assert len(wire.heard) == 60
        await wire.say(b"x")
        assert len(wire.heard) == 60
        await site.pass_time(0.2002)  # there is no debt to be paid
        assert len(wire.heard) == 61


async def test_a_request_that_begins_ends_the_waiting(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for _ in range(3):
            await site.use_up(wire)
            await site.pass_time(0.06)
            await wire.say(b"y")
            assert wire.heard == []
            site.lookout.begin()
            await wait_all_tasks_blocked()
            assert wire.heard.pop().endswith(b"y")
            await wire.say(b"z")
            assert wire.heard.pop() == b"z"
            site.lookout.end()
            await wire.say(b"z")
            assert wire.heard.pop() == b"z"
            await wire.say(b"again")
            assert wire.heard == []
            await site.pass_time(0.2002)
            assert wire.heard.pop() == b"again"
            await site.pass_time(3600)


async def test_a_request_that_begins_while_nothing_waits_changes_nothing(
    mock_clock: MockClock,
) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for _ in range(3):
            site.lookout.begin()
            await wait_all_tasks_blocked()
            site.lookout.end()
        assert site.lookout.looks == 0
        await wire.say(b"x")
        assert wire.heard == [b"x"]


# --- Who waits -----------------------------------------------------------------------------------


async def test_who_was_cancelled_is_forgotten(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        wire = Wire(*socket.socketpair())
        site.wires.append(wire)
        with trio.CancelScope() as scope:
            site.nursery.start_soon(cancel_when_blocked, scope)
            await site.lookout.wait_readable(wire.near.fileno())
        assert scope.cancelled_caught
        await wire.say(b"x")  # nobody hears it
        site.nursery.start_soon(wire.hear, site.lookout)
        await site.pass_time(0.2002)
        assert wire.heard == [b"x"]


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_two_cannot_wait_for_the_same(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        with trio.CancelScope() as scope:
            site.nursery.start_soon(cancel_when_blocked, scope)
            with pytest.raises(trio.BusyResourceError):
                await site.lookout.wait_readable(wire.near.fileno())
        await wire.say(b"x")
        assert wire.heard == [b"x"]


async def test_what_nobody_reads_wakes_the_router_once(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        wire = Wire(*socket.socketpair())
        site.wires.append(wire)
        site.nursery.start_soon(site.lookout.wait_readable, wire.near.fileno())
        await wait_all_tasks_blocked()
        wire.far.send(b"x")
        for _ in range(3):
            await some_turns()
            assert site.lookout.looks == 1
            mock_clock.jump(1)


async def test_an_end_is_seen_at_once_however_much_comes(mock_clock: MockClock) -> None:
    """A server that pings while the stream is not open again gets no answer."""
    async with watching(mock_clock) as site:
        [talks, ends, says_goodbye] = await site.wires_up(3)
        await site.use_up(talks)
        await talks.say(b"x")
        assert talks.heard == []
        ends.far.close()
        says_goodbye.far.send(b"bye")
        says_goodbye.far.close()
        await wait_all_tasks_blocked()
        assert ends.heard == [b""]
        assert says_goodbye.heard == [b"bye", b""]
        assert talks.heard == []
        await site.pass_time(0.2002)
        assert talks.heard == [b"x"]


async def test_the_far_end_is_closed(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        wire.far.close()
        await wait_all_tasks_blocked()
        assert wire.heard == [b""]


@pytest.mark.parametrize("resting", [True, False])
@pytest.mark.parametrize("told", [True, False])
async def test_a_number_is_used_again(mock_clock: MockClock, told: bool, resting: bool) -> None:
    async with watching(mock_clock) as site:
        [old, talks] = await site.wires_up(2)
        if resting:
            await site.use_up(talks)
        old.far.close()
        await wait_all_tasks_blocked()
        assert old.heard == [b""]
        number = old.near.fileno()
        if told:
            site.lookout.forget(number)
        old.near.close()
        near, far = socket.socketpair()  # which gets the lowest numbers that are free
        new = Wire(near, far) if near.fileno() == number else Wire(far, near)
        assert new.near.fileno() == number
        site.wires.append(new)
        new.near.setblocking(False)
        site.nursery.start_soon(new.hear, site.lookout)
        await site.pass_time(0.2002)
        # Unless it was told, it may take the new one for the old one, whose end it has seen.
        assert site.lookout.waiting == (1 if resting and not told else 2)
        await new.say(b"x")
        await site.pass_time(0.2002)
        assert new.heard == [b"x"]
        new.far.close()
        await site.pass_time(0.2002)
        assert new.heard == [b"x", b""]


async def test_a_thousand_are_woken_by_one_look(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        handles = [os.eventfd(0) for _ in range(1200)]
        woken: list[int] = []

        async def wait(handle: int) -> None:
            await site.lookout.wait_readable(handle)
            woken.append(handle)

        for handle in handles:
            site.nursery.start_soon(wait, handle)
        await wait_all_tasks_blocked()
        for handle in handles:
            os.eventfd_write(handle, 1)
        await wait_all_tasks_blocked()
        assert sorted(woken) == sorted(handles)
        assert site.lookout.looks == 1
        for handle in handles:
            os.close(handle)


# --- Who runs it ---------------------------------------------------------------------------------


async def test_while_nobody_runs_it_each_waits_by_itself(mock_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        site = Site(Lookout(), nursery, mock_clock)
        [wire] = await site.wires_up(1)
        await wire.say(b"x")
        await wire.say(b"y")
        wire.far.close()
        site.lookout.forget(999_999)  # as of whatever it does not know
        site.lookout.begin()
        site.lookout.end()
    assert wire.heard == [b"x", b"y", b""]
    assert site.lookout.looks == 0
    wire.near.close()


@pytest.mark.parametrize("resting", [True, False])
async def test_its_end_leaves_nobody_waiting(mock_clock: MockClock, resting: bool) -> None:
    async with watching(mock_clock) as site:
        wires = await site.wires_up(3)
        if resting:
            await site.use_up(wires[0])
        looks = site.lookout.looks
        site.running.cancel()
        await wait_all_tasks_blocked()
        for wire in wires:
            await wire.say(b"z")
            assert b"".join(wire.heard).endswith(b"z")
        assert site.lookout.looks == looks


async def test_there_is_no_epoll(mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        await wire.say(b"x")
        await wire.say(b"y")
        assert wire.heard == [b"x", b"y"]
        assert site.lookout.looks == 0


@pytest.mark.parametrize("refused", [{1}, {2}, {1, 2}])
async def test_what_the_system_will_not_watch_is_waited_for_by_itself(
    mock_clock: MockClock, monkeypatch: pytest.MonkeyPatch, refused: set[int]
) -> None:
    asked = 0

    class Full:
        """An epoll that has no room at times."""

        def __init__(self) -> None:
            self._real = real()

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self._real.close()

        def register(self, handle: int, wanted: int) -> None:
            nonlocal asked
            asked += 1
            if asked in refused:
                raise OSError(errno.ENOSPC, "No space left on device")
            self._real.register(handle, wanted)

    real = select.epoll
    monkeypatch.setattr(select, "epoll", Full)
    with capture_logs() as logs:
        async with watching(mock_clock) as site:
            [wire] = await site.wires_up(1)
            assert site.lookout.waiting == 0
            for number in range(1, 4):
                await wire.say(b"x")
                assert wire.heard == [b"x"] * number
            assert site.lookout.waiting == 1  # there is space again
    # Every ping may find it so.
    assert [line["event"] for line in logs] == ["not_waited_for_together"]
