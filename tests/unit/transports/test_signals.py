from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from kars_router.transports.signals import Signal


async def test_whoever_waits_is_woken_and_whoever_comes_later_does_not_wait() -> None:
    signal = Signal()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await signal.wait()
        woken.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, 1)
        nursery.start_soon(wait, 2)
        await wait_all_tasks_blocked()
        assert not signal.is_set()
        assert woken == []
        signal.set()
        assert signal.is_set()
        await wait_all_tasks_blocked()
        assert sorted(woken) == [1, 2]
        await wait(3)
    assert woken[2:] == [3]


async def test_what_has_happened_unheard_is_not_waited_for() -> None:
    signal = Signal()
    signal.set()
    with trio.fail_after(1):
        await signal.wait()


async def test_waiting_can_be_cancelled_even_if_it_has_happened() -> None:
    signal = Signal()
    signal.set()
    with trio.CancelScope() as scope:
        scope.cancel()
        await signal.wait()
    assert scope.cancelled_caught
