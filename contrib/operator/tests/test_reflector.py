"""The reflector: whatever happens, in the end its store is what the cluster has."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random
from typing import Any

import httpx
import pytest
import structlog
import trio
from attrs import define, field
from kars_operator.backoff import Growth
from kars_operator.reflector import Pace, Reflector
from kars_operator.store import Change, Key, key_of
from trio.testing import MockClock

from kars_router.kube import open_kube
from kars_router.kube.resources import CILIUM_NETWORK_POLICIES, CONFIG_MAPS, MCP_SERVERS
from kars_router.testing.kube import FakeCluster

# Longer than any delay of a reflector with its usual pace, shorter than its silence, and never at
# the moment of a bookmark.
SOON = 55.0


def config(name: str, value: str = "1", **metadata: Any) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", **metadata},
        "data": {"value": value},
    }


def server(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": MCP_SERVERS.api_version, "kind": "McpServer", "metadata": metadata}


@define
class Told:
    """Applies what a reflector tells to a copy, and finds out what does not fit."""

    changes: list[Change] = field(factory=list)
    copy: dict[Key, Any] = field(factory=dict)

    def __call__(self, change: Change) -> None:
        self.changes.append(change)
        known = self.copy.get(change.key)
        if change.after is None:
            assert known is not None
            del self.copy[change.key]
        else:
            assert known == change.before
            self.copy[change.key] = change.after

    def take(self) -> list[tuple[str, str]]:
        """What was told since the last time: names, and `+`, `-` or `*`."""
        found = [
            (each.key.name, "+" if each.before is None else "-" if each.after is None else "*")
            for each in self.changes
        ]
        self.changes.clear()
        return found


class Way(httpx.AsyncBaseTransport):
    """The way to a cluster; while it is `muffled`, watches open but bring nothing."""

    def __init__(self, cluster: FakeCluster, failing: int = -1, fault: Any = None) -> None:
        self.cluster = cluster
        self.muffled = False
        self.asked: list[tuple[str, float]] = []
        self._failing = failing
        self._fault = fault

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if len(self.asked) == self._failing:
            self.cluster.trouble(**self._fault)
        watch = "watch" in request.url.params
        self.asked.append(("watch" if watch else "list", trio.current_time()))
        response = await self.cluster.handle_async_request(request)
        if self.muffled and watch:
            await response.aclose()
            return httpx.Response(200, stream=Nothing())
        return response


class Nothing(httpx.AsyncByteStream):
    async def __aiter__(self) -> AsyncIterator[bytes]:
        await trio.Event().wait()
        yield b""


@define
class Rig:
    cluster: FakeCluster
    way: Way
    reflector: Reflector
    told: Told

    def values(self) -> dict[Key, tuple[str, str]]:
        """What is known: uid and version of each object."""
        return _identities(self.reflector.store)

    def assert_same(self) -> None:
        """What is known, and what was told, is what there is."""
        resource = self.reflector.resource
        assert self.values() == _identities(self.cluster.all(resource))
        assert self.values() == _identities(self.told.copy.values())

    def times(self, verb: str) -> list[float]:
        return [when for each, when in self.way.asked if each == verb]

    def state(self) -> str:
        return self.reflector.state.value

    def served(self) -> bool | None:
        return self.reflector.served


def _identities(found: Any) -> dict[Key, tuple[str, str]]:
    metadata = {key_of(each): each["metadata"] for each in found}
    return {key: (each["uid"], each["resourceVersion"]) for key, each in metadata.items()}


@asynccontextmanager
async def open_rig(
    cluster: FakeCluster,
    resource: Any = CONFIG_MAPS,
    *,
    way: Way | None = None,
    synced: bool = True,
    **options: Any,
) -> AsyncIterator[Rig]:
    told, way = Told(), way or Way(cluster)
    options = {"changed": told, "random": lambda: 0.0, **options}
    async with open_kube(cluster.connection(), transport=way) as kube:
        reflector = Reflector(kube, resource, **options)
        async with trio.open_nursery() as nursery:
            await nursery.start(reflector.run)
            if synced:
                await reflector.wait_synced()
            yield Rig(cluster, way, reflector, told)
            nursery.cancel_scope.cancel()
    assert cluster.watching == 0


async def test_all_there_is_is_known_before_it_is_synced(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    for number in range(1201):  # three pages
        cluster.put(config(f"c{number}"))
    async with open_rig(cluster) as rig:
        assert len(rig.reflector.store) == len(rig.told.take()) == 1201
        rig.assert_same()
        assert rig.reflector.synced
        assert len(rig.times("list")) == 3
        assert rig.reflector.relists == 1


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


async def test_objects_know_their_kind_and_are_trimmed(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.put(config("a", annotations={"x": "y"}))
    async with open_rig(cluster) as rig:
        cluster.put(config("b"))
        await trio.sleep(SOON)
        for each in rig.reflector.store:
            assert (each["apiVersion"], each["kind"]) == ("v1", "ConfigMap")
            assert "managedFields" not in each["metadata"]
        assert "managedFields" in cluster.all(CONFIG_MAPS)[0]["metadata"]


async def test_what_is_kept_and_how_it_is_found_is_the_callers_choice(
    autojump_clock: MockClock,
) -> None:
    def only_name(found: dict[str, Any]) -> dict[str, Any]:
        kept = ("name", "namespace", "uid", "resourceVersion")
        return {"metadata": {each: found["metadata"][each] for each in kept}}

    cluster = FakeCluster()
    cluster.put(config("a"))
    indexes = {"first": lambda found: found["metadata"]["name"][:1]}
    async with open_rig(cluster, trim=only_name, indexes=indexes) as rig:
        (found,) = rig.reflector.store.by("first", "a")
        assert set(found) == {"metadata"}


async def test_only_what_is_selected_is_followed(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.put(config("a", labels={"ours": "yes"}))
    cluster.put(config("b"))
    cluster.put(config("c", labels={"ours": "yes"}, namespace="kube-system"))
    async with open_rig(cluster, namespace="default", labels="ours=yes") as rig:
        assert rig.told.take() == [("a", "+")]
        cluster.put(config("a", labels={}))
        await trio.sleep(SOON)
        assert rig.told.take() == [("a", "-")]


async def test_what_happens_between_the_list_and_the_watch_is_not_missed(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster()
    for name in "abc":
        cluster.put(config(name))
    cluster.trouble(verb="watch", seconds=10)
    async with open_rig(cluster) as rig:
        cluster.remove(CONFIG_MAPS, "a")
        cluster.remove(CONFIG_MAPS, "b")
        cluster.put(config("b"))  # another one
        cluster.put(config("d"))
        await trio.sleep(SOON)
        rig.assert_same()
        assert rig.reflector.relists == 1


async def test_a_dropped_watch_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.put(config("a"))
    async with open_rig(cluster) as rig:
        await trio.sleep(SOON)
        cluster.stop()
        cluster.remove(CONFIG_MAPS, "a")
        cluster.put(config("b"))
        cluster.put(config("a"))
        await trio.sleep(SOON)
        assert rig.state() == "failing"
        assert "configmaps cannot be followed" in rig.reflector.problem
        cluster.start()
        await trio.sleep(SOON)
        assert (rig.state(), rig.reflector.problem) == ("watching", "")
        # It was deleted and made anew: two objects, even if both are called the same.
        assert rig.told.take() == [("a", "+"), ("a", "-"), ("b", "+"), ("a", "+")]
        rig.assert_same()


async def test_a_short_interruption_needs_no_list(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    async with open_rig(cluster) as rig:
        await trio.sleep(SOON)
        for number in range(20):
            cluster.put(config(f"c{number}"))
            cluster.drop_watches()
            await trio.sleep(SOON)
        rig.assert_same()
        assert rig.reflector.relists == 1
        assert rig.reflector.restarts == 20


@pytest.mark.parametrize("how", ["status", "event"])
async def test_what_was_missed_while_the_version_was_forgotten_is_found_by_a_list(
    autojump_clock: MockClock, how: str
) -> None:
    cluster = FakeCluster()
    for name in ("stays", "changes", "goes", "again"):
        cluster.put(config(name))
    async with open_rig(cluster) as rig:
        rig.told.take()
        cluster.stop()
        await trio.sleep(SOON)
        cluster.put(config("changes", "2"))
        cluster.remove(CONFIG_MAPS, "goes")
        cluster.remove(CONFIG_MAPS, "again")
        cluster.put(config("again"))
        cluster.put(config("new"))
        if how == "event":
            cluster.forget()
        else:
            cluster.trouble(410, verb="watch")
        cluster.start()
        await trio.sleep(SOON)
        assert sorted(rig.told.take()) == [
            ("again", "+"),
            ("again", "-"),
            ("changes", "*"),
            ("goes", "-"),
            ("new", "+"),
        ]
        rig.assert_same()
        assert rig.reflector.relists == 2


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


async def test_bookmarks_keep_the_version_fresh_where_nothing_happens(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster(remember=10)
    cluster.put(config("a"))
    async with open_rig(cluster) as rig:
        for number in range(60):
            cluster.put(server(f"s{number}"))
            await trio.sleep(30)
        cluster.drop_watches()
        cluster.put(config("b"))
        await trio.sleep(SOON)
        rig.assert_same()
        assert (rig.reflector.relists, rig.reflector.events) == (1, 1)
        assert rig.reflector.silences == 0


async def test_watches_that_end_in_good_order_are_opened_again(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster()
    async with open_rig(cluster, pace=Pace(watch=100, relist=1e6)) as rig:
        await trio.sleep(3600)
        assert 30 <= rig.reflector.restarts <= 36
        assert (rig.reflector.relists, rig.reflector.failures) == (1, 0)


def muffled(cluster: FakeCluster) -> Way:
    way = Way(cluster)
    way.muffled = True
    return way


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


async def test_a_definition_that_is_installed_later_is_followed_from_then_on(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster(served=[*FakeCluster().served - {MCP_SERVERS}])
    with structlog.testing.capture_logs() as lines:
        async with open_rig(cluster, MCP_SERVERS, synced=False) as rig:
            await trio.sleep(600)
            assert rig.state() == "absent"
            assert not rig.reflector.synced
            assert rig.served() is False
            assert "does not serve mcpservers" in rig.reflector.problem
            assert 30 <= len(rig.times("list")) <= 90
            cluster.served.add(MCP_SERVERS)
            cluster.put(server("a"))
            await trio.sleep(SOON)
            assert rig.state() == "watching"
            assert rig.served() is True
            assert rig.told.take() == [("a", "+")]
    assert [line["event"] for line in lines] == [
        "reflector_waits",
        "reflector_synced",
        "reflector_recovered",
    ]


async def test_nobody_waits_for_what_is_optional(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    async with open_rig(cluster, CILIUM_NETWORK_POLICIES, optional=True) as rig:
        assert rig.state() == "absent"
        assert len(rig.reflector.store) == 0


async def test_a_definition_that_seems_to_be_gone_deletes_nothing(
    autojump_clock: MockClock,
) -> None:
    # A server that is starting up says so for a moment.
    cluster = FakeCluster()
    cluster.put(server("a"))
    cluster.put(server("b"))
    async with open_rig(cluster, MCP_SERVERS) as rig:
        await trio.sleep(SOON)
        cluster.served.remove(MCP_SERVERS)
        cluster.drop_watches()
        await trio.sleep(SOON)
        assert rig.state() == "absent"
        assert len(rig.reflector.store) == 2
        cluster.remove(MCP_SERVERS, "a")
        cluster.served.add(MCP_SERVERS)
        await trio.sleep(SOON)
        assert rig.told.take() == [("a", "+"), ("b", "+"), ("a", "-")]


async def test_a_right_that_is_given_later_is_used(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    cluster.trouble(403, verb="list", times=10)
    async with open_rig(cluster, synced=False) as rig:
        await trio.sleep(30)
        assert rig.state() == "forbidden"
        assert "may not list and watch configmaps" in rig.reflector.problem
        await trio.sleep(300)
        assert rig.state() == "watching"
        cluster.trouble(403, verb="watch", times=1)
        cluster.drop_watches()
        await trio.sleep(5)
        assert rig.state() == "forbidden"
        await trio.sleep(SOON)
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


async def test_everything_is_offered_again_from_time_to_time(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    for name in "abc":
        cluster.put(config(name))
    async with open_rig(cluster, pace=Pace(resync=600)) as rig:
        rig.told.take()
        await trio.sleep(530)
        assert rig.told.take() == []
        await trio.sleep(20)
        assert all(each.before is each.after for each in rig.told.changes)
        assert sorted(rig.told.take()) == [("a", "*"), ("b", "*"), ("c", "*")]


async def test_one_knows_when_the_server_was_heard_last(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    async with open_rig(cluster, synced=False) as rig:
        await trio.sleep(600)
        assert rig.reflector.heard_at is not None
        assert trio.current_time() - rig.reflector.heard_at <= 60
        cluster.stop()
        await trio.sleep(600)
        assert trio.current_time() - rig.reflector.heard_at >= 600


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
