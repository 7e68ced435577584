"""A lookout with socket pairs that it watches, on a clock that only the test puts forward.

What one end of a socket pair sends is at once readable at the other, so once all tasks wait,
whatever was going to happen without the passing of time has happened.
"""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.transports.lookout import Lookout

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no epoll")


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
        await self.pass_time(0.1002)
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
