"""Streams that wait for what comes together with others."""

from __future__ import annotations

import socket
from functools import partial

import pytest
import trio
import trio.testing
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.transports.lookout_kit import needs_epoll, watching

from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.lookout import Lookout

pytestmark = [needs_epoll, pytest.mark.usefixtures("mock_clock")]


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


@pytest.mark.parametrize("resting", [True, False])
async def test_a_stream_that_has_ended_leaves_its_number_to_the_next(
    mock_clock: MockClock, resting: bool
) -> None:
    """Else each that ends would take one number more from those that are waited for together."""
    async with watching(mock_clock) as site, trio.open_nursery() as nursery:
        near, far = await shared_pair(site.lookout)
        heard: list[bytes] = []

        async def read(stream: CountedStream) -> None:
            heard.append(await stream.receive_next(100))

        if resting:
            [talks] = await site.wires_up(1)
            await site.use_up(talks)
        nursery.start_soon(read, near)
        await wait_all_tasks_blocked()
        far.close()
        await site.pass_time(0.2002)
        assert heard == [b""]
        number = near.socket.fileno()
        near.share_waits(None)  # its response is complete
        near.close()
        ends = await shared_pair(site.lookout)
        (again,) = (end for end in ends if end.socket.fileno() == number)
        before = site.lookout.waiting
        nursery.start_soon(read, again)
        await wait_all_tasks_blocked()
        assert site.lookout.waiting == before + 1
        nursery.cancel_scope.cancel()
        for end in ends:
            end.close()


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
        await site.pass_time(0.2002)
        looks = site.lookout.looks
        for size in (5000, 7000, 5000, 200):
            await say(size)
        assert heard[5:] == [5000, 5000, 7000, 5000, 200]
        assert site.lookout.looks == looks
        await say(100)
        assert heard[10:] == []
        await site.pass_time(0.2002)
        assert heard[10:] == [100]
        far.close()
        await site.pass_time(0.2002)
        near.close()
