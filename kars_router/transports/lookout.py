"""Waiting for many silent sockets at once, so that what comes on them shares wake-ups.

An idle router is woken by pings, each for one of many sessions, and finds the processor's caches
cold every time; that costs more than what there is to be done. So where more than five things come
in a second, streams on which hardly anything comes are looked at together, five times a second. A
connection that ends is seen at once all the same: until its stream is opened again, a ping is lost.
Must not know what comes, nor what a request is: it is only told that one is being made, as nothing
may be late meanwhile.
"""

from __future__ import annotations

import contextlib
import select
from typing import Final

import trio

from kars_router.telemetry import log

# Between two looks, if more comes than that; what comes waits at most as long.
_INTERVAL: Final = 0.2
# Intervals in which it did not look are saved up, enough for five looks in a row. So where little
# comes nothing waits, and no timer wakes the router as well.
_SPARE: Final = 4.5 * _INTERVAL
# Each once only, so that what nobody reads yet does not wake the router over and over.
_ANYTHING: Final = getattr(select, "EPOLLIN", 0) | getattr(select, "EPOLLONESHOT", 0)
_END: Final = getattr(select, "EPOLLRDHUP", 0) | getattr(select, "EPOLLET", 0)


class Lookout:
    """Looks out for what comes on the sockets of one router.

    While nobody runs it, and where there is no epoll, each socket is waited for by itself.

    Attributes:
        looks: how often it has looked and found something, ever.
    """

    def __init__(self) -> None:
        self.looks = 0
        self._things: select.epoll | None = None
        self._ends: select.epoll | None = None
        self._over: set[int] = set()  # whose connection has ended
        self._waiting: dict[int, trio.lowlevel.Task] = {}
        self._requests = 0
        self._refused = False  # whether the system has refused to watch one, which is logged once
        self._rest: trio.CancelScope | None = None

    @property
    def waiting(self) -> int:
        """How many wait together."""
        return len(self._waiting)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks out until cancelled; whoever waits then goes on waiting, by itself."""
        if not hasattr(select, "epoll"):
            task_status.started()
            await trio.sleep_forever()
        with select.epoll() as things, select.epoll() as ends:
            self._things, self._ends = things, ends
            task_status.started()
            try:
                await self._look_out(things, ends)
            finally:
                self._things = self._ends = None
                self._over.clear()
                for handle in list(self._waiting):
                    self._wake(handle)

    async def wait_readable(self, handle: int) -> None:
        """Waits until something has come, or the peer has closed; it may be neither.

        As for `trio.lowlevel.wait_readable` otherwise. Whoever closes the file says so by
        `forget` before; then it returns as well.

        Args:
            handle: the number of an open file.

        Raises:
            trio.BusyResourceError: somebody waits for it already.
        """
        things, ends = self._things, self._ends
        if things is None or ends is None or handle in self._over:
            await trio.lowlevel.wait_readable(handle)
            return
        if handle in self._waiting:
            raise trio.BusyResourceError("another task waits for this file")
        try:
            things.modify(handle, _ANYTHING)
        except FileNotFoundError:  # new, or a number that is used again
            try:
                ends.register(handle, _END)
                things.register(handle, _ANYTHING)
            except OSError as error:  # the system watches as much as it wants to, for one
                if not self._refused:
                    log().warning("not_waited_for_together", error=str(error))
                self._refused = True
                self.forget(handle)
                await trio.lowlevel.wait_readable(handle)
                return
        self._waiting[handle] = trio.lowlevel.current_task()

        def leave(_: object) -> trio.lowlevel.Abort:
            # It stays armed, for one look in vain at most: it is closed next, or waited for again.
            del self._waiting[handle]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    def forget(self, handle: int) -> None:
        """Wakes who waits for a file that is about to be closed; never waits."""
        for epoll in (self._things, self._ends):
            if epoll is not None:
                with contextlib.suppress(OSError):
                    epoll.unregister(handle)
        self._over.discard(handle)
        self._wake(handle)

    def begin(self) -> None:
        """Takes note of a request: until it ends, whatever comes is seen at once."""
        self._requests += 1
        if self._rest is not None:
            self._rest.cancel()

    def end(self) -> None:
        """Takes note of the end of a request."""
        self._requests -= 1

    async def _look_out(self, things: select.epoll, ends: select.epoll) -> None:
        full = trio.current_time()  # when as much is saved up as may be
        while True:
            soonest = full - _SPARE
            # Before something comes: to be woken for the first of much is once too often.
            if not self._requests and trio.current_time() < soonest:
                with trio.CancelScope(deadline=soonest) as self._rest:
                    await self._see_ends(ends)
                self._rest = None
            # Where something is there by now, to wait is a turn too much.
            if not self._look(things):
                await trio.lowlevel.wait_readable(things.fileno())
                self._look(things)
            now = trio.current_time()
            full = min(max(full, now), now + _SPARE) + _INTERVAL

    async def _see_ends(self, ends: select.epoll) -> None:
        while True:
            await trio.lowlevel.wait_readable(ends.fileno())
            for handle, _ in ends.poll(0, len(self._waiting) + 1):
                self._over.add(handle)
                self._wake(handle)

    def _look(self, things: select.epoll) -> bool:
        ready = things.poll(0, len(self._waiting) + 1)
        for handle, _ in ready:
            self._wake(handle)
        self.looks += bool(ready)
        return bool(ready)

    def _wake(self, handle: int) -> None:
        if (task := self._waiting.pop(handle, None)) is not None:
            trio.lowlevel.reschedule(task)
