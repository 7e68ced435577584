"""A handler of keys that notes what it does, and a queue that uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import trio
from kars_operator.workqueue import Effort, WorkQueue

Handle = Callable[[str], Awaitable[float | None]]


class Shop:
    """Handles keys: each for one second, and as scripted."""

    def __init__(self) -> None:
        self.started: list[tuple[str, float]] = []
        self.ended: list[tuple[str, float]] = []
        self.running: Counter[str] = Counter()
        self.most = 0
        self.script: Handle = self.second

    async def second(self, key: str) -> None:
        await trio.sleep(1)

    async def __call__(self, key: str) -> float | None:
        self.started.append((key, trio.current_time()))
        self.running[key] += 1
        self.most = max(self.most, self.running.total())
        assert self.running[key] == 1
        try:
            return await self.script(key)
        finally:
            self.running[key] -= 1
            self.ended.append((key, trio.current_time()))

    def keys(self) -> list[str]:
        return [key for key, _ in self.started]

    def times(self, key: str) -> list[float]:
        return [when for each, when in self.started if each == key]


@asynccontextmanager
async def open_queue(shop: Shop, effort: Effort | None = None) -> AsyncIterator[WorkQueue[str]]:
    queue = WorkQueue(shop, effort=effort, random=lambda: 0.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        yield queue
        queue.stop()


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in pairwise(times)]


def assert_empty(queue: WorkQueue[str]) -> None:
    """Nothing is left behind by keys that are done, in what is counted or in memory."""
    assert (queue.waiting, queue.running, queue.delayed) == (0, 0, 0)
    assert not queue._again
    assert not queue._failures
