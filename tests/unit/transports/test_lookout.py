"""The common wait for silent sockets, on a clock that only the test puts forward.

What one end of a socket pair sends is at once readable at the other, so once all tasks wait,
whatever was going to happen without the passing of time has happened.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial

import pytest
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.lookout import Lookout

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll")
pytestmark = [needs_epoll, pytest.mark.usefixtures("mock_clock")]


@define(eq=False)
class Wire:
    """A socket pair: a task reads from one end, the test writes into the other."""

    near: socket.socket
    far: socket.socket
    heard: list[bytes] = field(factory=list)

    async def hear(self, lookout: Lookout) -> None:
        """Reads what comes, until the far end is closed."""
        while not self.heard or self.heard[-1]:
            await lookout.wait_readable(self.near.fileno())
            with suppress(BlockingIOError):
                self.heard.append(self.near.recv(100))

    async def say(self, data: bytes) -> None:
        """Sends something, and waits until nothing more happens at this time."""
        self.far.send(data)
        await wait_all_tasks_blocked()

    def close(self) -> None:
        """Closes both ends."""
        self.near.close()
        self.far.close()


@define(eq=False)
class Site:
    """A lookout that is run, and what it watches."""

    lookout: Lookout
    nursery: trio.Nursery
    clock: MockClock
    running: trio.CancelScope = field(factory=trio.CancelScope)
    wires: list[Wire] = field(factory=list)

    async def wires_up(self, count: int) -> list[Wire]:
        """Opens wires that are listened to."""
        made = [Wire(*socket.socketpair()) for _ in range(count)]
        self.wires += made
        for wire in made:
            wire.near.setblocking(False)
            self.nursery.start_soon(wire.hear, self.lookout)
        await wait_all_tasks_blocked()
        return made

    async def pass_time(self, seconds: float) -> None:
        """Puts the clock forward, and waits until nothing more happens then."""
        self.clock.jump(seconds)
        await wait_all_tasks_blocked()

    async def use_up(self, wire: Wire) -> None:
        """Has it look as often as it does without an interval; it has just looked then."""
        for _ in range(10):
            await wire.say(b"-")
        assert wire.heard[-5:] == [b"-"] * 5
        await self.pass_time(0.0501)
        assert wire.heard[-1] == b"-" * 5
        wire.heard.clear()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128
        """Runs the lookout."""
        with self.running:
            await self.lookout.run(task_status=task_status)


@asynccontextmanager
async def watching(clock: MockClock) -> AsyncIterator[Site]:
    async with trio.open_nursery() as nursery:
        site = Site(Lookout(), nursery, clock)
        await nursery.start(site.run)
        try:
            yield site
        finally:
            nursery.cancel_scope.cancel()
            for wire in site.wires:
                wire.close()


async def some_turns() -> None:
    """Lets the other tasks run, also those that would never come to rest."""
    for _ in range(20):
        await trio.lowlevel.checkpoint()


# --- When it looks -------------------------------------------------------------------------------


async def test_what_comes_rarely_is_seen_at_once_and_with_one_look(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for number in range(1, 30):
            await wire.say(b"x")
            assert len(wire.heard) == site.lookout.looks == number
            await site.pass_time(0.101)
        assert site.lookout.looks == 29


async def test_a_few_things_at_a_time_are_seen_at_once_too(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for time in range(10):
            for number in range(1, 6):
                await wire.say(b"x")
                assert len(wire.heard) == time * 5 + number
            await site.pass_time(0.501)


async def test_what_comes_after_many_waits_for_the_rest_of_an_interval(
    mock_clock: MockClock,
) -> None:
    async with watching(mock_clock) as site:
        [wire, other] = await site.wires_up(2)
        await site.pass_time(3600)  # in which not more is saved up
        await site.use_up(wire)
        await site.pass_time(0.04)
        await other.say(b"y")
        await site.pass_time(0.05)
        assert other.heard == []
        await site.pass_time(0.011)
        assert other.heard == [b"y"]


async def test_what_comes_within_an_interval_shares_a_look(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        wires = await site.wires_up(30)
        await site.use_up(wires[0])
        before = site.lookout.looks
        for look in range(1, 11):
            for wire in wires:
                await wire.say(b"x")
                await site.pass_time(0.0032)
            await site.pass_time(0.0041)
            assert {len(wire.heard) for wire in wires} == {look}
            assert site.lookout.looks == before + look


async def test_while_nothing_comes_it_sleeps(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for _ in range(8):
            await wire.say(b"x")
        await site.pass_time(0.101)
        await site.pass_time(0.101)
        looks = site.lookout.looks
        for _ in range(20):
            await site.pass_time(0.101)
        assert site.lookout.looks == looks
        await wire.say(b"y")
        assert wire.heard[-1] == b"y"


async def test_nothing_waits_longer_than_an_interval_whenever_it_comes(
    mock_clock: MockClock,
) -> None:
    async with watching(mock_clock) as site:
        noise, wire = await site.wires_up(2)
        gaps = [0.0, 0.01, 0.09, 0.1, 0.11, 0.19, 0.05, 0.3, 0.02, 0.0]
        for number, gap in enumerate(gaps * 3, 1):
            for _ in range(3):
                await noise.say(b"-")
                await site.pass_time(gap)
            await wire.say(b"x")
            await site.pass_time(0.1001)
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
        await site.pass_time(0.1001)  # there is no debt to be paid
        assert len(wire.heard) == 61


async def test_a_request_that_begins_ends_the_waiting(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site:
        [wire] = await site.wires_up(1)
        for _ in range(3):
            await site.use_up(wire)
            await site.pass_time(0.03)
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
            await site.pass_time(0.1001)
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
        await site.pass_time(0.1001)
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
        await site.pass_time(0.1001)
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
        await site.pass_time(0.1001)
        # Unless it was told, it may take the new one for the old one, whose end it has seen.
        assert site.lookout.waiting == (1 if resting and not told else 2)
        await new.say(b"x")
        await site.pass_time(0.1001)
        assert new.heard == [b"x"]
        new.far.close()
        await site.pass_time(0.1001)
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


# --- A stream that waits so ----------------------------------------------------------------------


async def shared_pair(lookout: Lookout) -> tuple[CountedStream, CountedStream]:
    made = []
    for end in socket.socketpair():
        stream = CountedStream(trio.SocketStream(trio.socket.from_stdlib_socket(end)))
        stream.share_waits(lookout)
        made.append(stream)
    return made[0], made[1]


async def test_a_stream_that_shares_its_waits_is_a_stream_in_every_respect(
    mock_clock: MockClock,
) -> None:
    async with watching(mock_clock) as site:
        site.lookout.begin()  # as nobody puts the clock forward
        await trio.testing.check_two_way_stream(partial(shared_pair, site.lookout), None)
        assert site.lookout.looks


@pytest.mark.parametrize("how", ["close", "aclose", "forcefully"])
@pytest.mark.parametrize("reader", ["receive_next", "receive_some"])
async def test_a_stream_is_closed_under_its_reader(
    mock_clock: MockClock, how: str, reader: str
) -> None:
    async with watching(mock_clock) as site, trio.open_nursery() as nursery:
        near, far = await shared_pair(site.lookout)
        ended = trio.Event()

        async def read() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await (near.receive_some() if reader == "receive_some" else near.receive_next(9))
            ended.set()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        for _ in range(2):  # it may be done twice
            if how == "close":
                near.close()
            elif how == "aclose":
                await near.aclose()
            else:
                await trio.aclose_forcefully(near)
        await wait_all_tasks_blocked()
        assert ended.is_set()
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_next(100)
        nursery.cancel_scope.cancel()
        far.close()


async def test_a_stream_waits_by_itself_again(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site, trio.open_nursery() as nursery:
        near, far = await shared_pair(site.lookout)
        heard: list[bytes] = []

        async def read() -> None:
            heard.append(await near.receive_next(100))

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        far.send_now(b"one")
        await wait_all_tasks_blocked()
        assert heard == [b"one"]
        assert site.lookout.looks == 1
        near.share_waits(None)
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        far.send_now(b"two")
        await wait_all_tasks_blocked()
        assert heard == [b"one", b"two"]
        assert site.lookout.looks == 1
        near.close()
        far.close()


async def test_of_what_is_long_only_the_first_piece_may_be_late(mock_clock: MockClock) -> None:
    async with watching(mock_clock) as site, trio.open_nursery() as nursery:
        near, far = await shared_pair(site.lookout)
        heard: list[int] = []

        async def read() -> None:
            while data := await near.receive_next(8000):
                heard.append(len(data))

        async def say(size: int) -> None:
            far.send_now(b"x" * size)
            await wait_all_tasks_blocked()

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        for _ in range(5):
            await say(100)
        await say(5000)
        assert heard == [100] * 5
        await site.pass_time(0.1001)
        looks = site.lookout.looks
        for size in (5000, 7000, 5000, 200):
            await say(size)
        assert heard[5:] == [5000, 5000, 7000, 5000, 200]
        assert site.lookout.looks == looks
        await say(100)
        assert heard[10:] == []
        await site.pass_time(0.1001)
        assert heard[10:] == [100]
        far.close()
        await site.pass_time(0.1001)
        near.close()
