"""The work queue: what fails is tried again, stops no other key, and is not lost at the end."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import structlog
import trio
from kars_operator.backoff import Growth
from kars_operator.workqueue import Effort, Outcome, WorkQueue
from trio.testing import MockClock, wait_all_tasks_blocked
from workqueue_kit import Shop, assert_empty, gaps, open_queue

from kars_router.kube.errors import ApiError


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
