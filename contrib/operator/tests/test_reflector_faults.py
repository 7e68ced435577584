"""The reflector: whatever goes wrong, in the end its store is what the cluster has."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from random import Random
from typing import Any

import httpx
import pytest
import structlog
import trio
from kars_operator.backoff import Growth
from kars_operator.reflector import Pace
from reflector_kit import SOON, Way, config, muffled, open_rig, server
from trio.testing import MockClock

from kars_router.kube.resources import CONFIG_MAPS
from kars_router.testing.kube import FakeCluster


async def test_changes_are_told_with_what_was_before(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    async with open_rig(cluster) as rig:
        cluster.put(config("a", "1"))
        cluster.put(config("a", "2"))
        cluster.remove(CONFIG_MAPS, "a")
        await trio.sleep(SOON)
        made, changed, gone = rig.told.changes
        assert made.after is changed.before
        assert changed.after is not None
        assert changed.after["data"] == gone.object["data"] == {"value": "2"}
        assert rig.told.take() == [("a", "+"), ("a", "*"), ("a", "-")]
        assert rig.reflector.events == 3
        rig.assert_same()


async def test_versions_that_are_always_forgotten_do_not_become_a_storm_of_lists(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster()
    cluster.trouble(410, verb="watch", times=10_000)
    async with open_rig(cluster) as rig:
        await trio.sleep(600)
        assert len(rig.times("list")) < 60
        # Lists alone keep up, if slowly.
        cluster.put(config("a"))
        await trio.sleep(SOON)
        rig.assert_same()


async def test_a_watch_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.put(config("a"))
    async with open_rig(cluster, way=muffled(cluster)) as rig:
        cluster.remove(CONFIG_MAPS, "a")
        await trio.sleep(149)
        assert rig.told.take() == [("a", "+")]
        rig.way.muffled = False
        await trio.sleep(5)
        assert rig.told.take() == [("a", "-")]
        assert (rig.reflector.silences, rig.reflector.relists) == (1, 2)


async def test_where_no_watch_brings_anything_lists_do(autojump_clock: MockClock) -> None:
    # A proxy keeps what is sent; or the version is one that the server has yet to come to.
    cluster = FakeCluster()
    async with open_rig(cluster, way=muffled(cluster)) as rig:
        for number in range(5):
            cluster.put(config(f"c{number}"))
            await trio.sleep(160)
            rig.assert_same()
        assert rig.reflector.relists <= 6


async def test_what_no_watch_has_told_is_found_in_time(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.put(config("a"))
    async with open_rig(cluster, pace=Pace(resync=1e6)) as rig:
        await trio.sleep(SOON)
        rig.reflector._version = "99"  # as if the server had been restored from a backup
        cluster.remove(CONFIG_MAPS, "a")
        cluster.drop_watches()
        await trio.sleep(SOON)
        while cluster.store.version < 100:
            cluster.put(server("s"))
            cluster.put({**server("s"), "spec": {"url": str(cluster.store.version)}})
        await trio.sleep(1800)
        assert rig.told.take() == [("a", "+")]
        await trio.sleep(2400)
        assert rig.told.take() == [("a", "-")]


async def test_a_list_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.trouble(verb="list", seconds=1e9)
    async with open_rig(cluster, pace=Pace(listing=20)) as rig:
        assert rig.reflector.failures == 1


async def test_a_version_that_the_server_refuses_for_ever_is_given_up(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster()
    async with open_rig(cluster) as rig:
        await trio.sleep(SOON)
        cluster.trouble(504, verb="watch", times=3)
        cluster.drop_watches()
        await trio.sleep(SOON)
        assert rig.reflector.relists == 2
        assert rig.state() == "watching"


async def test_the_delay_that_the_server_asks_for_is_kept(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.trouble(429, verb="list", retry_after=40)
    cluster.trouble(503, verb="watch", retry_after=50)
    async with open_rig(cluster) as rig:
        await trio.sleep(100)
        first, second = rig.times("list")
        assert second - first == pytest.approx(40)
        first, second = rig.times("watch")
        assert second - first == pytest.approx(50)


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_what_keeps_failing_is_tried_ever_more_slowly(
    autojump_clock: MockClock, verb: str
) -> None:
    cluster = FakeCluster()
    cluster.trouble(500, verb=verb, times=15)
    with structlog.testing.capture_logs() as lines:
        async with open_rig(cluster, synced=False, pace=Pace(growth=Growth(0.2, 30))) as rig:
            await trio.sleep(1000)
            waits = [after - before for before, after in pairwise(rig.times(verb))][:14]
            assert waits == sorted(waits)
            assert waits[0] == pytest.approx(0.1)
            assert waits[-1] == pytest.approx(15)
            assert rig.state() == "watching"
    # One line says that it fails, and one that it works again.
    said = [line["event"] for line in lines if line["log_level"] in {"warning", "info"}]
    assert said.count("reflector_failing") == said.count("reflector_recovered") == 1


async def test_watches_that_end_as_soon_as_they_are_open_are_no_storm(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster()
    cluster.trouble(200, verb="watch", times=10_000, body=(b"", "application/json"))
    async with open_rig(cluster) as rig:
        await trio.sleep(1000)
        assert len(rig.times("watch")) < 100
        cluster.put(config("a"))
        await trio.sleep(2 * SOON)
        rig.assert_same()


@pytest.mark.parametrize(
    "line",
    [
        b'{"type": "ADDED", "object": {"kind": "ConfigMap"}}\n',
        b'{"type": "ADDED", "object": {"metadata": {"name": null}}}\n',
        b'{"type": "BOOKMARK", "object": {"metadata": null}}\n',
        b'{"type": "BOOKMARK", "object": {}}\n',
        b'{"type": "ADDED", "object": {"metadata": "x"}}\n',
        b'{"type": "BOOKMARK", "object": {"metadata": "x"}}\n',
        b"<html>",
    ],
)
async def test_nonsense_does_not_end_a_reflector(autojump_clock: MockClock, line: bytes) -> None:
    cluster = FakeCluster()
    cluster.trouble(200, verb="watch", times=5, body=(line, "application/json"))
    async with open_rig(cluster) as rig:
        cluster.put(config("a"))
        await trio.sleep(SOON)
        rig.assert_same()


@pytest.mark.parametrize("item", ["{}", '{"metadata": {}}', '{"metadata": {"name": 1}}'])
async def test_a_list_of_nonsense_is_tried_again(autojump_clock: MockClock, item: str) -> None:
    cluster = FakeCluster()
    body = f'{{"kind": "List", "metadata": {{"resourceVersion": "1"}}, "items": [{item}]}}'
    cluster.trouble(200, verb="list", times=3, body=(body.encode(), "application/json"))
    cluster.put(config("a"))
    async with open_rig(cluster) as rig:
        rig.assert_same()


FAULTS: dict[str, dict[str, Any]] = {
    "410": {"status": 410},
    "429": {"status": 429, "retry_after": 2},
    "500": {"status": 500},
    "404": {"status": 404},
    "403": {"status": 403},
    "refused": {"error": httpx.ConnectError},
    "broken": {"error": httpx.ReadError},
    "slow": {"seconds": 45.0},
    "html": {"status": 200, "body": (b"<html>", "text/html")},
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_any_single_request_may_fail(autojump_clock: MockClock, fault: str) -> None:
    """The n-th request fails, for every n, while objects come, change and go."""
    for failing in range(8):
        cluster = FakeCluster()
        for number in range(750):  # two pages, so that one may fail between them
            cluster.put(config(f"c{number}"))
        way = Way(cluster, failing, FAULTS[fault])
        async with open_rig(cluster, way=way, synced=False) as rig:
            for number in range(20):
                cluster.remove(CONFIG_MAPS, f"c{number}")
                cluster.put(config(f"d{number}"))
                cluster.put(config("changes", str(number)))
                if number % 5 == 0:
                    cluster.drop_watches()
                if number % 7 == 0:
                    cluster.forget()
                await trio.sleep(3)
            await trio.sleep(400)
            assert rig.reflector.synced
            rig.assert_same()


@pytest.mark.parametrize("seed", range(25))
async def test_after_any_chaos_the_store_is_what_the_cluster_has(
    autojump_clock: MockClock, seed: int
) -> None:
    chance = Random(seed)
    cluster = FakeCluster(remember=chance.choice([5, 50, 10_000]))
    async with open_rig(cluster, synced=False, random=chance.random) as rig:
        cluster.chaos(chance, 0.3)
        for _ in _steps(cluster, chance, 300):
            await trio.sleep(chance.choice([0, 0, 0.1, 1, 20]))
        cluster.calm()
        cluster.start()
        await trio.sleep(400)
        assert rig.state() == "watching"
        rig.assert_same()


def _steps(cluster: FakeCluster, chance: Random, count: int) -> Iterator[None]:
    """Somebody else's changes, and what happens to the server itself."""
    for step in range(count):
        name = f"c{chance.randrange(30)}"
        there = cluster.find(CONFIG_MAPS, name) is not None
        match chance.randrange(12):
            case 0 | 1 | 2 if there:
                cluster.remove(CONFIG_MAPS, name)
            case 3 if there:
                cluster.remove(CONFIG_MAPS, name)
                cluster.put(config(name, "anew"))
            case 4:
                cluster.drop_watches()
            case 5:
                cluster.stop()
            case 6 | 7:
                cluster.start()
            case 8 if chance.random() < 0.3:
                cluster.forget()
            case _:
                cluster.put(config(name, str(step)))
        yield
