"""Answers to POSTs that are not there at once: whoever has to wait for one is attended to.

Owns the tasks that do so, which most POSTs need not have: their answer is there before anybody
would look. Must not know what is waited for, nor what attending to it means.
"""

from __future__ import annotations

from typing import Protocol

import trio

# A peer that leaves sooner than that is missed only by who asks for it.
PATIENCE_SECONDS = 0.1


class Attended(Protocol):
    """What may have to be attended to.

    Attributes:
        since: trio's clock when it began, in seconds.
    """

    since: float

    async def attend(self) -> None:
        """Attends to it, until cancelled or done; raises nothing."""
        ...


class Attendance:
    """Attends to what takes longer than a tenth of a second, or asks for it."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None
        self._waiting: dict[Attended, None] = {}
        self._some = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Looks after what is there, until cancelled; then nothing is attended to any more."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await self._some.wait()
                    await trio.sleep(PATIENCE_SECONDS)
                    self._look()
            finally:
                # Before the nursery waits for its tasks: it may close any time from then on.
                self._nursery = None

    def enter(self, one: Attended) -> None:
        """Has one attended to, unless it leaves before long; never waits."""
        self._waiting[one] = None
        self._some.set()

    def attend(self, one: Attended) -> bool:
        """Has one attended to at once; whether that is possible. Never waits."""
        if self._nursery is None:
            return False
        self._waiting.pop(one, None)
        self._nursery.start_soon(one.attend)
        return True

    def leave(self, one: Attended) -> None:
        """Notes that one need not be attended to; ends nothing that has begun."""
        self._waiting.pop(one, None)

    def _look(self) -> None:
        due = trio.current_time() - PATIENCE_SECONDS
        for one in [*self._waiting]:  # in the order in which they came
            if one.since > due:
                return
            self.attend(one)
        self._some = trio.Event()
