"""The work queue: each key once at a time, in a fair order."""

from __future__ import annotations

import trio
from kars_operator.workqueue import Effort
from trio.testing import MockClock
from workqueue_kit import Shop, assert_empty, open_queue


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
