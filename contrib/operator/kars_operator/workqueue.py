"""What is to be done, key by key: each key once at a time, different keys side by side.

Owns the order of the work and the one crash barrier of the operator: what goes wrong with one key
is written down and tried again later, and never stops another. Must not know what a key stands
for. Only keys are queued: whoever handles one looks at how things are by then, so that any number
of changes in the meantime is one piece of work.
"""

from __future__ import annotations

import heapq
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from enum import Enum
from typing import Final, Generic, TypeVar

import trio
from attrs import field, frozen

from kars_operator.backoff import Growth, asked_delay
from kars_router.errors import KarsError
from kars_router.telemetry import log

K = TypeVar("K", bound=Hashable)

# Of so many keys that are taken one is of the background, however busy the foreground is.
_BACKGROUND_SHARE: Final = 4


class Outcome(Enum):
    """How one piece of work has ended."""

    DONE = "done"
    FAILED = "failed"
    TIMEOUT = "timeout"


@frozen(kw_only=True)
class Effort:
    """How a queue works.

    Attributes:
        workers: keys that are handled side by side, at most.
        patience: for one piece of work, in seconds; one that hangs would hold a worker for ever.
        grace: for what is running when the queue is told to stop, in seconds.
        growth: of the delays between tries of a key that fails.
    """

    workers: int = 4
    patience: float = 120.0
    grace: float = 10.0
    growth: Growth = field(factory=lambda: Growth(0.2, 60.0))


class WorkQueue(Generic[K]):
    """A queue of keys and the workers that handle them.

    Args:
        handle: does the work of one key. What it returns is the number of seconds after which
            the key is to be handled again in any case, or None. If it raises, it is tried again.
        effort: how it works.
        finished: told of each piece of work: its key, how long it took and how it ended; must not
            raise or wait.
        random: returns a float in [0, 1).

    Attributes:
        done: pieces of work that went well.
        failed: those that did not, timeouts among them.
        timeouts: those that were given up for taking too long.
    """

    def __init__(
        self,
        handle: Callable[[K], Awaitable[float | None]],
        *,
        effort: Effort | None = None,
        finished: Callable[[K, float, Outcome], None] = lambda *_: None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.done = 0
        self.failed = 0
        self.timeouts = 0
        self._handle = handle
        self._effort = effort or Effort()
        self._finished = finished
        self._random = random
        self._foreground: OrderedDict[K, None] = OrderedDict()
        self._background: OrderedDict[K, None] = OrderedDict()
        self._taken = 0
        self._running: set[K] = set()
        self._again: dict[K, bool] = {}  # added while running; whether for the background
        self._failures: dict[K, int] = {}
        self._planned: dict[K, float] = {}
        self._retries: dict[K, float] = {}
        self._alarms: list[tuple[float, int, K]] = []
        self._alarm_count = 0
        self._idle = trio.lowlevel.ParkingLot()
        self._alarm_set = trio.Event()
        self._stopping = trio.Event()

    @property
    def waiting(self) -> int:
        """Keys that wait for a worker."""
        return len(self._foreground) + len(self._background) + len(self._again)

    @property
    def running(self) -> int:
        """Keys that are being handled."""
        return len(self._running)

    @property
    def delayed(self) -> int:
        """Keys whose time has not come."""
        return len(self._planned.keys() | self._retries.keys())

    def failures(self, key: K) -> int:
        """How often a key has failed in a row."""
        return self._failures.get(key, 0)

    def add(self, key: K, *, background: bool = False) -> None:
        """Has a key handled as soon as a worker is free; never waits.

        Args:
            key: one that waits already stays where it is; one that is being handled is handled
                again afterwards.
            background: lets all others go first, but for one turn in four. For what is only
                looked at again, so that a change does not queue behind a resync.
        """
        if key in self._running:
            self._again[key] = background and self._again.get(key, True)
        elif key in self._foreground:
            pass
        elif background:
            if key not in self._background:
                self._background[key] = None
                self._idle.unpark()
        elif key in self._background:
            del self._background[key]
            self._foreground[key] = None
        else:
            self._foreground[key] = None
            self._idle.unpark()

    def add_after(self, key: K, seconds: float) -> None:
        """Has a key handled once so much time has passed, or earlier if that was planned."""
        if seconds <= 0:
            self.add(key)
        else:
            self._plan(self._planned, key, seconds)

    def retry(self, key: K, *, floor: float = 0.0) -> float:
        """Has a key handled after a delay that grows with each time in a row.

        Args:
            key: which one.
            floor: the delay in seconds that is not undercut.

        Returns:
            The delay in seconds.
        """
        failures = self._failures[key] = self.failures(key) + 1
        seconds = self._effort.growth.delay(failures, self._random, floor=floor)
        self._retries.pop(key, None)
        self._plan(self._retries, key, seconds)
        return seconds

    def forget(self, key: K) -> None:
        """Forgets that a key has failed, and the retry that was planned for it."""
        self._failures.pop(key, None)
        self._retries.pop(key, None)

    def stop(self) -> None:
        """Has `run` finish what is being handled, and nothing else; never waits."""
        self._stopping.set()
        self._idle.unpark_all()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handles keys until `stop` is called and what was running has ended, or its grace has.

        To cancel it ends all work at once. A key whose work was cut short waits in the queue
        again.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ring)
            async with trio.open_nursery() as workers:
                for _ in range(self._effort.workers):
                    workers.start_soon(self._work)
                task_status.started()
                await self._stopping.wait()
                workers.cancel_scope.deadline = trio.current_time() + self._effort.grace
            if workers.cancel_scope.cancelled_caught:
                log().warning("work_cut_short", seconds=self._effort.grace, waiting=self.waiting)
            nursery.cancel_scope.cancel()

    async def _work(self) -> None:
        while not self._stopping.is_set():
            if not (self._foreground or self._background):
                await self._idle.park()
                continue
            await self._turn(self._next())

    def _next(self) -> K:
        self._taken += 1
        behind = self._background and self._taken % _BACKGROUND_SHARE == 0
        lane = self._background if behind or not self._foreground else self._foreground
        return lane.popitem(last=False)[0]

    async def _turn(self, key: K) -> None:
        self._running.add(key)
        ended = False
        try:
            await self._attempt(key)
            ended = True
        finally:
            self._running.discard(key)
            again = self._again.pop(key, None)
            if again is not None or not ended:
                self.add(key, background=bool(again))

    async def _attempt(self, key: K) -> None:
        began, before = trio.current_time(), self.failures(key)
        outcome = Outcome.DONE
        try:
            with trio.move_on_after(self._effort.patience) as patience:
                after = await self._handle(key)
            if patience.cancelled_caught:
                outcome = Outcome.TIMEOUT
                self.timeouts += 1
                self._failed_with(key, trio.TooSlowError(f"took {self._effort.patience:g} s"))
            else:
                if self.failures(key) == before:  # it has not asked for a retry itself
                    self.forget(key)
                if after is not None:
                    self.add_after(key, after)
                self.done += 1
        except Exception as error:  # noqa: BLE001 - crash barrier: one object of the operator
            outcome = Outcome.FAILED
            self._failed_with(key, error)
        self._finished(key, trio.current_time() - began, outcome)

    def _failed_with(self, key: K, error: Exception) -> None:
        self.failed += 1
        seconds = self.retry(key, floor=asked_delay(error))
        tries = self.failures(key)
        ours = isinstance(error, KarsError | trio.TooSlowError)
        # A mistake of ours is worth a traceback, but not the same one every minute.
        detail = {"exc_info": error} if not ours and tries == 1 else {}
        log().log(
            30 if ours else 40,
            "work_failed",
            key=str(key),
            error=str(error) if ours else repr(error),
            tries=tries,
            again_in=round(seconds, 1),
            **detail,
        )

    def _plan(self, plans: dict[K, float], key: K, seconds: float) -> None:
        when = trio.current_time() + seconds
        if plans.get(key, when) < when:
            return
        plans[key] = when
        self._alarm_count += 1
        heapq.heappush(self._alarms, (when, self._alarm_count, key))
        if self._alarms[0][0] == when:
            self._alarm_set.set()

    async def _ring(self) -> None:
        """Adds keys whose time has come; alarms of plans that were dropped ring unheard."""
        while True:
            now = trio.current_time()
            while self._alarms and self._alarms[0][0] <= now:
                when, _, key = heapq.heappop(self._alarms)
                for plans in (self._planned, self._retries):
                    if plans.get(key) == when:
                        del plans[key]
                        self.add(key)
            self._alarm_set = trio.Event()
            next_time = self._alarms[0][0] if self._alarms else float("inf")
            with trio.move_on_at(next_time):
                await self._alarm_set.wait()
