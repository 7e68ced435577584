"""Socket streams that count what the kernel has taken, and do what they can without waiting."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest
import trio

from kars_router.transports.counted_stream import CountedStream


async def counted_pair() -> tuple[CountedStream, CountedStream]:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname())
        far = await listener.accept()
    return CountedStream(near), CountedStream(far)


async def clogged_pair() -> tuple[CountedStream, CountedStream]:
    near, far = await counted_pair()
    for end in (near, far):
        with trio.move_on_after(0.05):
            while True:
                await end.send_all(b"x" * 1_000_000)
    return near, far


async def test_a_counted_stream_is_a_stream_in_every_respect() -> None:
    with trio.fail_after(30):
        await trio.testing.check_two_way_stream(counted_pair, clogged_pair)


async def test_what_needs_no_waiting_is_counted_too() -> None:
    near, far = await counted_pair()
    assert not far.is_readable()
    assert near.send_now(b"hello") == near.sent == 5
    assert await far.receive_next(3) == b"hel"
    assert await far.receive_next(100) == b"lo"
    while taken := near.send_now(b"x" * 1_000_000):
        assert taken <= 1_000_000  # until the kernel takes no more
    assert far.is_readable()
    rest = near.sent - 5
    while rest:
        rest -= len(await far.receive_next(100_000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(far.receive_next, 10)  # waits for something to come
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
    assert await far.receive_next(10) == b""
    with pytest.raises(trio.ClosedResourceError):
        near.send_now(b"x")
    with pytest.raises(trio.ClosedResourceError):
        await near.receive_next(10)
    await far.aclose()


async def test_a_reset_is_an_error_also_where_nothing_waits() -> None:
    near, far = await counted_pair()
    near.send_now(b"unread")
    await trio.lowlevel.wait_readable(far.socket)
    await far.aclose()  # with something unread, so it is a reset
    with pytest.raises(trio.BrokenResourceError):
        await near.receive_next(10)
    with pytest.raises(trio.BrokenResourceError):
        near.send_now(b"x")
    assert near.sent == 6
    await near.aclose()


async def test_closing_wakes_who_waits() -> None:
    near, far = await counted_pair()
    async with far, trio.open_nursery() as nursery:

        async def wait() -> None:
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_next(10)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()


async def test_nothing_is_read_from_whatever_has_its_descriptor_next() -> None:
    """A stream may be closed between the moment its reader is woken and that in which it reads."""
    raced = 0
    while raced < 3:  # which of the two goes first is a matter of chance
        near, far = await counted_pair()
        other, secret = os.pipe()
        os.write(secret, b"another's")
        found: list[bytes] = []

        async def read(near: CountedStream, found: list[bytes]) -> None:
            with suppress(trio.ClosedResourceError):
                found.append(await near.receive_next(100))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, near, found)
            await trio.testing.wait_all_tasks_blocked()
            far.send_now(b"mine")
            await trio.lowlevel.checkpoint()  # wakes both in the same round
            number = near.socket.fileno()
            first = not found
            near.socket.close()
            os.dup2(other, number)
        raced += first
        assert found == ([] if first else [b"mine"])
        for descriptor in (number, other, secret):
            os.close(descriptor)
        await far.aclose()
