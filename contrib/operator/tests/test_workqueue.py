"""The work queue: each key once at a time, none lost, none that stops another."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import structlog
import trio
from kars_operator.backoff import Growth
from kars_operator.workqueue import Effort, Outcome, WorkQueue
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.kube.errors import ApiError

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


async def test_different_keys_run_side_by_side_up_to_the_bound(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with open_queue(shop, Effort(workers=3)) as queue:
        began = trio.current_time()
        for key in "abcdef":
            queue.add(key)
        assert queue.waiting == 6
        await trio.sleep(0.5)
        assert (queue.waiting, queue.running) == (3, 3)
        await trio.sleep(2)
    assert shop.keys() == list("abcdef")
    assert shop.most == 3
    assert [when - began for _, when in shop.started] == [0, 0, 0, 1, 1, 1]
    assert queue.done == 6
    assert_empty(queue)


async def test_a_key_that_waits_is_not_queued_twice(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with open_queue(shop, Effort(workers=1)) as queue:
        for key in ["a", "b", "a", "b", "a"]:
            queue.add(key)
        await trio.sleep(10)
    assert shop.keys() == ["a", "b"]


async def test_a_key_added_while_it_runs_runs_once_more_and_not_at_the_same_time(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    async with open_queue(shop) as queue:
        queue.add("a")
        await trio.sleep(0.5)
        for _ in range(5):
            queue.add("a")
        assert queue.waiting == 1
        await trio.sleep(10)
    assert len(shop.started) == 2
    assert shop.started[1][1] >= shop.ended[0][1]
    assert_empty(queue)


async def test_a_key_added_during_its_failure_runs_again_at_once(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()

    async def fail_first(key: str) -> None:
        await trio.sleep(1)
        if len(shop.started) == 1:
            raise ValueError

    shop.script = fail_first
    async with open_queue(shop, Effort(growth=Growth(30, 60))) as queue:
        queue.add("a")
        await trio.sleep(0.5)
        queue.add("a")
        await trio.sleep(100)
    # The success has made the planned retry needless.
    assert [round(when - shop.started[0][1], 3) for _, when in shop.started] == [0, 1]
    assert_empty(queue)


async def test_the_earliest_of_several_delays_counts(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with open_queue(shop) as queue:
        began = trio.current_time()
        for seconds in (20, 5, 12):
            queue.add_after("a", seconds)
        queue.add_after("now", 0)
        queue.add_after("b", 3)
        assert queue.delayed == 2
        await trio.sleep(60)
    assert [(key, when - began) for key, when in shop.started] == [("now", 0), ("b", 3), ("a", 5)]
    assert_empty(queue)


async def test_a_planned_time_outlives_a_run_in_between(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with open_queue(shop) as queue:
        began = trio.current_time()
        queue.add_after("a", 10)
        queue.add("a")
        await trio.sleep(30)
    assert [when - began for when in shop.times("a")] == [0, 10]


async def test_what_a_handler_returns_is_the_time_of_the_next_run(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()

    async def every_minute(key: str) -> float:
        return 60.0

    shop.script = every_minute
    async with open_queue(shop) as queue:
        began = trio.current_time()
        queue.add("a")
        await trio.sleep(200)
    assert [when - began for when in shop.times("a")] == [0, 60, 120, 180]


async def test_retries_come_ever_more_slowly_and_start_over_after_a_success(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    broken = True

    async def fail(key: str) -> None:
        if broken:
            raise ValueError("no")

    shop.script = fail
    async with open_queue(shop, Effort(growth=Growth(2, 30))) as queue:
        queue.add("a")
        await trio.sleep(100)
        times = shop.times("a")
        # Half of 2, 4, 8, 16, 30 and 30: the random part is nothing here.
        assert gaps(times)[:6] == pytest.approx([1, 2, 4, 8, 15, 15])
        assert queue.failures("a") == len(times) == queue.failed
        broken = False
        await trio.sleep(40)
        assert queue.failures("a") == 0
        assert_empty(queue)
        broken = True
        queue.add("a")
        await trio.sleep(1.5)
        assert gaps(shop.times("a"))[-1] == pytest.approx(1)


async def test_a_failure_in_between_puts_the_retry_off(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def fail(key: str) -> None:
        raise ValueError

    shop.script = fail
    async with open_queue(shop, Effort(growth=Growth(20, 60))) as queue:
        queue.add("a")  # again after ten seconds
        await trio.sleep(1)
        queue.add("a")  # again after twenty
        await trio.sleep(25)
        assert gaps(shop.times("a")) == pytest.approx([1, 20])


async def test_the_delay_that_the_server_asked_for_is_kept(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def busy(key: str) -> None:
        if len(shop.started) == 1:
            raise ApiError(429, "TooManyRequests", "slow down", retry_after=17)

    shop.script = busy
    async with open_queue(shop) as queue:
        queue.add("a")
        await trio.sleep(60)
    assert gaps(shop.times("a")) == pytest.approx([17])


async def test_a_handler_may_ask_for_a_retry_itself(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def again(key: str) -> None:
        if len(shop.started) < 3:
            queue.retry(key)

    shop.script = again
    async with open_queue(shop, Effort(growth=Growth(2, 30))) as queue:
        queue.add("a")
        await trio.sleep(60)
    assert gaps(shop.times("a")) == pytest.approx([1, 2])
    assert_empty(queue)


async def test_what_fails_in_one_key_stops_no_other(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def crash(key: str) -> None:
        if key == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                raise KeyError(key)
        if key == "assert":
            raise AssertionError
        if key == "recursion":
            raise RecursionError
        if key == "inner":  # a cancellation of its own is no cancellation of the queue
            with trio.CancelScope() as scope:
                scope.cancel()
                await trio.sleep_forever()
            raise trio.ClosedResourceError
        await trio.sleep(1)

    shop.script = crash
    with structlog.testing.capture_logs() as lines:
        async with open_queue(shop, Effort(workers=1)) as queue:
            for key in ["group", "assert", "recursion", "inner", "good"]:
                queue.add(key)
            await trio.sleep(30)
            assert "good" in [key for key, _ in shop.ended]
            for key in ["group", "assert", "recursion", "inner"]:
                assert queue.failures(key) > 2
    failures = [line for line in lines if line["event"] == "work_failed"]
    assert {line["key"] for line in failures} == {"group", "assert", "recursion", "inner"}
    # The traceback comes once in a row of failures.
    for key in ("group", "assert"):
        own = [line for line in failures if line["key"] == key]
        assert ["exc_info" in line for line in own] == [True, *[False] * (len(own) - 1)]


async def test_a_handler_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    shop = Shop()
    ends: list[tuple[str, float, Outcome]] = []

    async def hang(key: str) -> None:
        if key == "a" and len(shop.times("a")) == 1:
            await trio.sleep_forever()

    shop.script = hang
    queue = WorkQueue(
        shop,
        effort=Effort(workers=1, patience=5),
        finished=lambda *end: ends.append(end),
        random=lambda: 0.0,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        queue.add("a")
        queue.add("b")
        await trio.sleep(60)
        queue.stop()
    assert ends == [
        ("a", pytest.approx(5), Outcome.TIMEOUT),
        ("b", 0, Outcome.DONE),
        ("a", 0, Outcome.DONE),
    ]
    assert (queue.timeouts, queue.failed, queue.done) == (1, 1, 2)
    assert_empty(queue)


async def test_stop_finishes_what_runs_and_nothing_else(autojump_clock: MockClock) -> None:
    shop = Shop()
    queue = WorkQueue(shop, effort=Effort(workers=2))
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        for key in "abcd":
            queue.add(key)
        queue.add_after("e", 0.5)
        await trio.sleep(0.7)
        queue.stop()
    assert {key for key, _ in shop.ended} == {"a", "b"}
    assert queue.done == 2


async def test_stop_does_not_wait_longer_than_its_grace(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def forever(key: str) -> None:
        await trio.sleep_forever()

    shop.script = forever
    queue = WorkQueue(shop, effort=Effort(grace=4))
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        queue.add("a")
        await trio.sleep(1)
        queue.stop()
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(4)
    assert queue.waiting == 1  # it was not done


async def test_stop_while_nothing_is_to_be_done(autojump_clock: MockClock) -> None:
    async with open_queue(Shop()):
        await wait_all_tasks_blocked()
    early = WorkQueue(Shop())
    early.stop()
    await early.run()


async def test_a_key_whose_work_was_cancelled_is_the_first_thing_of_the_next_run(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    queue = WorkQueue(shop, effort=Effort(workers=2))
    for key in "abc":
        queue.add(key)
    with trio.move_on_after(0.5):
        await queue.run()
    assert shop.keys() == ["a", "b"]
    assert queue.running == 0
    queue.add("d")
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        await trio.sleep(10)
        queue.stop()
    assert Counter(shop.keys()) == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert_empty(queue)


async def test_a_key_that_is_always_added_again_lets_the_others_have_their_turn(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()

    async def greedy(key: str) -> None:
        await trio.sleep(1)
        if key == "hot":
            queue.add("hot")

    shop.script = greedy
    async with open_queue(shop, Effort(workers=1)) as queue:
        queue.add("hot")
        for number in range(20):
            queue.add(f"k{number}")
        await trio.sleep(25)
        assert {f"k{number}" for number in range(20)} <= set(shop.keys())
        shop.script = shop.second


async def test_the_background_comes_last_but_is_not_starved(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with open_queue(shop, Effort(workers=1)) as queue:
        for number in range(100):
            queue.add(f"back{number}", background=True)
        for number in range(8):
            queue.add(f"front{number}")
        queue.add("back99")  # something has changed after all
        await trio.sleep(12.5)
        order = shop.keys()
    assert order[:3] == ["front0", "front1", "front2"]
    assert [each for each in order if each.startswith("back")][:4] == [
        "back0",  # one in four
        "back1",
        "back99",
        "back2",
    ]
    assert order.index("back99") > order.index("front7")


async def test_what_is_added_both_ways_while_it_runs_belongs_to_the_foreground(
    autojump_clock: MockClock,
) -> None:
    shop = Shop()
    async with open_queue(shop, Effort(workers=1)) as queue:
        queue.add("a")
        await trio.sleep(0.5)
        queue.add("x", background=True)
        queue.add("x2", background=True)
        queue.add("a", background=True)
        queue.add("a")
        queue.add("a", background=True)
        await trio.sleep(10)
    assert shop.keys() == ["a", "a", "x", "x2"]


@pytest.mark.parametrize("seed", range(30))
async def test_no_key_is_lost_or_run_twice_at_once_whatever_happens(
    autojump_clock: MockClock, seed: int
) -> None:
    chance = random.Random(seed)
    shop = Shop()
    keys = [f"k{number}" for number in range(12)]
    last_added: dict[str, float] = {}
    faults = True

    async def anything(key: str) -> float | None:
        await trio.sleep(chance.choice([0, 0, 0.1, 1, 3]))
        if faults:
            match chance.randrange(6):
                case 0:
                    raise OSError("out of luck")
                case 1:
                    queue.retry(key)
                case 2:
                    return chance.random() * 5
                case 3:
                    add(chance.choice(keys))
                case 4 if chance.random() < 0.2:
                    await trio.sleep(100)  # longer than anybody waits
        return None

    def add(key: str) -> None:
        last_added[key] = trio.current_time()
        queue.add(key, background=chance.random() < 0.3)

    shop.script = anything
    effort = Effort(workers=chance.randint(1, 5), patience=20, growth=Growth(0.2, 10))
    queue = WorkQueue(shop, effort=effort, random=chance.random)
    async with trio.open_nursery() as nursery:
        await nursery.start(queue.run)
        for _ in range(300):
            await trio.sleep(chance.choice([0, 0, 0.05, 0.5]))
            key = chance.choice(keys)
            if chance.random() < 0.2:
                queue.add_after(key, chance.random() * 10)
            else:
                add(key)
        faults = False
        await trio.sleep(500)
        assert_empty(queue)
        queue.stop()
    assert shop.most <= effort.workers
    for key, when in last_added.items():
        assert shop.times(key)[-1] >= when
