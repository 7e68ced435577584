"""The reflector: what happens in the cluster is known, and told once."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
import trio
from kars_operator.reflector import Pace
from reflector_kit import SOON, config, open_rig, server
from trio.testing import MockClock

from kars_router.kube.resources import CILIUM_NETWORK_POLICIES, CONFIG_MAPS, MCP_SERVERS
from kars_router.testing.kube import FakeCluster


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
