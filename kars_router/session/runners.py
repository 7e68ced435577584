"""The tasks in which a session's requests are made: one that is done rests until the next request.

To start a task for each request, with a cancel scope of its own, and to end both takes a seventh
of all that a small call costs the router. Must not know what is made.
"""

from __future__ import annotations

from contextvars import Context, copy_context
from typing import Final

import trio

from kars_router.session.pending import Pending

# As many rest at a time. Each goes when the time limit of its last request is over.
_MOST: Final = 16
# By how much a time limit of a minute or more may be late, so that the deadline of a scope, which
# is costly to move, is not moved with each request.
_LATE: Final = 0.5
_LONG: Final = 60.0


class Runner:
    """A task that makes one request after the other.

    Attributes:
        scope: where it makes them; cancelled, it makes no more.
        due: the deadline that the scope was given, whatever the request has made of it.
        request: what it is to make next.
    """

    __slots__ = ("_task", "due", "request", "scope")

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.due = scope.deadline
        self.request: Pending | None = None
        self._task = trio.lowlevel.current_task()

    def give(self, pending: Pending) -> None:
        """Has it make a request, as if it had been started for that; it has to be at rest."""
        self.request = pending
        self._task.context = copy_context()
        trio.lowlevel.reschedule(self._task)

    def forget(self) -> None:
        """Keeps nothing of the request that it has made."""
        self._task.context = Context()
        if self.scope.deadline != self.due:
            self.scope.deadline = self.due


class Runners:
    """Those of one session that are at rest."""

    def __init__(self) -> None:
        self._resting: list[Runner] = []

    def take(self, time_limit: float) -> Runner | None:
        """One that rests, with that time limit from now on; it must be given a request at once.

        Args:
            time_limit: seconds; it may be late by half a second if it is a minute or more.
        """
        if not self._resting:
            return None
        runner = self._resting.pop()
        due = trio.current_time() + time_limit
        late = _LATE if time_limit >= _LONG else 0.0
        if not due <= runner.due <= due + late:
            runner.scope.deadline = runner.due = due + late
        return runner

    async def rest(self, runner: Runner) -> Pending | None:
        """Has the calling task rest; its next request, or None if it is to end.

        Cancelled, it is given none.
        """
        if len(self._resting) >= _MOST:
            return None
        runner.forget()
        self._resting.append(runner)

        def leave(_: object) -> trio.lowlevel.Abort:
            self._resting.remove(runner)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)
        request, runner.request = runner.request, None
        return request
