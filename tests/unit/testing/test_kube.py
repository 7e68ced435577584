"""The fake API server: what it does to objects, and how it fails."""

from __future__ import annotations

from random import Random
from typing import Any

import httpx
import pytest
import trio
from trio.testing import MockClock

from kars_router.kube import (
    ApiError,
    ConflictError,
    Connection,
    KubeError,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
    open_kube,
)
from kars_router.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    MCP_SERVERS,
    NAMESPACES,
    PODS,
    SELF_REVIEWS,
)
from kars_router.testing import serve
from kars_router.testing._kube_selectors import matcher
from kars_router.testing.kube import FakeCluster

Manifest = dict[str, Any]


def config_map(name: str = "a", **data: str) -> Manifest:
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def deployment(*containers: Manifest, **metadata: Any) -> Manifest:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "d", "namespace": "default", **metadata},
        "spec": {"template": {"spec": {"containers": list(containers)}}},
    }


def containers(found: Manifest) -> list[Manifest]:
    return list(found["spec"]["template"]["spec"]["containers"])


# --- applying -------------------------------------------------------------------------------------


async def test_what_a_manager_no_longer_wants_goes_unless_another_does() -> None:
    async with FakeCluster().open() as kube:
        await kube.apply(config_map(x="1", y="1"), manager="one")
        await kube.apply(config_map(y="1", z="1"), manager="two")
        nothing = {name: value for name, value in config_map().items() if name != "data"}
        left = await kube.apply(nothing, manager="one")
        assert left["data"] == {"y": "1", "z": "1"}
        assert [entry["manager"] for entry in left["metadata"]["managedFields"]] == ["two"]


async def test_elements_of_keyed_lists_have_owners_of_their_own() -> None:
    async with FakeCluster().open() as kube:
        await kube.apply(deployment({"name": "a", "image": "1"}), manager="one")
        both = await kube.apply(deployment({"name": "b", "image": "2"}), manager="two")
        assert containers(both) == [{"name": "a", "image": "1"}, {"name": "b", "image": "2"}]
        with pytest.raises(ConflictError) as caught:
            await kube.apply(deployment({"name": "a", "image": "3"}), manager="two")
        assert [cause.field for cause in caught.value.causes] == [
            '.spec.template.spec.containers[name="a"].image'
        ]
        left = await kube.apply(deployment(), manager="one", force=True)
        assert containers(left) == [{"name": "b", "image": "2"}]


async def test_finalizers_are_a_set() -> None:
    async with FakeCluster().open() as kube:
        await kube.apply(deployment(finalizers=["a/1"]), manager="one")
        both = await kube.apply(deployment(finalizers=["b/2"]), manager="two")
        assert both["metadata"]["finalizers"] == ["a/1", "b/2"]
        left = await kube.apply(deployment(), manager="one")
        assert left["metadata"]["finalizers"] == ["b/2"]


async def test_a_field_may_not_be_taken_by_way_of_what_is_around_it() -> None:
    async with FakeCluster().open() as kube:
        server = {
            "apiVersion": "kars.azure.com/v1alpha1",
            "kind": "McpServer",
            "metadata": {"name": "a", "namespace": "default"},
        }
        await kube.apply({**server, "spec": {"oauth": {"issuer": "x"}}}, manager="one")
        with pytest.raises(ConflictError):
            await kube.apply({**server, "spec": {"oauth": ["x"]}}, manager="two")


async def test_others_take_fields_by_changing_them() -> None:
    async with FakeCluster().open() as kube:
        await kube.apply(config_map(x="1"), manager="one")
        await kube.patch(CONFIG_MAPS, "a", None, {"data": {"x": "2"}}, manager="two")
        with pytest.raises(ConflictError) as caught:
            await kube.apply(config_map(x="1"), manager="one")
        assert 'conflict with "two"' in str(caught.value)


async def test_applying_the_same_again_changes_nothing() -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        first = await kube.apply(deployment({"name": "a"}), manager="one")
        assert await kube.apply(deployment({"name": "a"}), manager="one") == first
        again = await kube.apply(deployment({"name": "b"}), manager="one")
        assert again["metadata"]["generation"] == 2
        labelled = await kube.patch(DEPLOYMENTS, "d", None, {"metadata": {"labels": {"a": "b"}}})
        assert labelled["metadata"]["generation"] == 2


async def test_what_an_apply_may_not_hold_is_refused() -> None:
    async with FakeCluster().open() as kube:
        made = await kube.apply(config_map(), manager="one")
        with pytest.raises(ApiError, match="managedFields must be nil"):
            await kube.apply(made, manager="one")
        with pytest.raises(NotFoundError):
            await kube.apply(deployment() | {"status": {}}, manager="o", subresource="status")


# --- deleting -------------------------------------------------------------------------------------


async def test_finalizers_delay_the_end() -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        await kube.create(deployment(finalizers=["a/1"]))
        await kube.delete(DEPLOYMENTS, "d")
        marked = await kube.get(DEPLOYMENTS, "d")
        assert marked["metadata"]["deletionTimestamp"]
        await kube.delete(DEPLOYMENTS, "d")
        assert await kube.get(DEPLOYMENTS, "d") == marked
        await kube.patch(DEPLOYMENTS, "d", None, {"metadata": {"finalizers": None}})
        assert cluster.find(DEPLOYMENTS, "d") is None


async def test_what_was_owned_goes_too() -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        for propagation, left in (("Background", 0), ("Orphan", 1)):
            owner = await kube.create(deployment())
            reference = {"uid": owner["metadata"]["uid"], "kind": "Deployment", "name": "d"}
            owned = config_map(f"c-{propagation.lower()}")
            owned["metadata"]["ownerReferences"] = [reference]
            cluster.put(owned)
            await kube.delete(DEPLOYMENTS, "d", propagation=propagation)
            assert len(cluster.all(CONFIG_MAPS)) == left


async def test_a_namespace_holds_its_objects() -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        manifest = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}
        inside = config_map() | {"metadata": {"name": "a", "namespace": "n"}}
        with pytest.raises(NotFoundError, match='namespaces "n" not found'):
            await kube.create(inside)
        await kube.create(manifest)
        await kube.create(inside)
        await kube.delete(NAMESPACES, "n")
        assert cluster.all(CONFIG_MAPS) == []


# --- requests ------------------------------------------------------------------------------------


async def test_what_does_not_fit_its_url_is_refused() -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        with pytest.raises(ApiError, match="no object"):
            await kube.create({"apiVersion": "v1", "kind": "ConfigMap"})
        with pytest.raises(ApiError, match="unable to parse requirement"):
            await kube.list(PODS, labels="a b")
        with pytest.raises(NotFoundError):
            await kube.list(SELF_REVIEWS.__class__("x", "v1", "xs", "X"))
        review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview"}
        found = await kube.create({**review, "metadata": {}, "spec": {}})
        assert found["status"] == {"allowed": True}
        client = httpx.AsyncClient(transport=cluster)
        for method, path, status in (
            ("POST", "/api/v1/namespaces/default/configmaps/a", 400),
            ("PUT", "/api/v1/namespaces/default/configmaps/a", 404),
            ("OPTIONS", "/api/v1/configmaps", 405),
            ("GET", "/healthz", 404),
            ("GET", "/apis/none/v1", 404),
        ):
            answer = await client.request(method, f"http://k{path}", json=config_map("b"))
            assert answer.status_code == status, path
        body = {**config_map(), "metadata": {"name": "a", "namespace": "other"}}
        url = "http://k/api/v1/namespaces/default/configmaps"
        assert (await client.post(url, json=body)).status_code == 400


async def test_a_token_may_be_needed() -> None:
    cluster = FakeCluster(token="t")
    async with cluster.open() as kube:
        with pytest.raises(UnauthorizedError):
            await kube.list(PODS)


def test_tests_may_look_and_change() -> None:
    cluster = FakeCluster()
    made = cluster.put({**config_map(x="1"), "status": {"a": 1}})
    made["data"]["x"] = "changed here only"
    found = cluster.find(CONFIG_MAPS, "a")
    assert found is not None
    assert (found["data"], found["status"]) == ({"x": "1"}, {"a": 1})
    assert cluster.put(config_map(x="2"))["metadata"]["uid"] == found["metadata"]["uid"]
    assert [each["data"] for each in cluster.all(CONFIG_MAPS, "default")] == [{"x": "2"}]
    cluster.remove(CONFIG_MAPS, "a")
    assert cluster.find(CONFIG_MAPS, "a") is None
    with pytest.raises(KeyError):
        cluster.remove(CONFIG_MAPS, "a")


@pytest.mark.parametrize(
    ("labels", "fields", "selected"),
    [
        ("", "", True),
        ("a=1", "", True),
        ("a==1,b", "", True),
        ("a!=1", "", False),
        ("c!=1", "", True),
        ("!b", "", False),
        ("!c", "", True),
        ("a in (1, 2),b notin (3)", "", True),
        ("a in (2)", "", False),
        ("x/y.z=1", "", False),
        ("", "metadata.name=n", True),
        ("", "metadata.name!=n", False),
        ("", "metadata.name==n,spec.x=", True),
    ],
)
def test_selectors(labels: str, fields: str, selected: bool) -> None:
    manifest = {"metadata": {"name": "n", "labels": {"a": "1", "b": "2"}}}
    assert matcher(labels, fields)(manifest) is selected


# --- faults --------------------------------------------------------------------------------------


async def test_only_what_is_meant_fails() -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        cluster.trouble(500, verb="apply", resource=CONFIG_MAPS, name="b", times=2)
        await kube.apply(config_map("a"), manager="m")
        for _ in range(2):
            with pytest.raises(ApiError, match="injected InternalError"):
                await kube.apply(config_map("b"), manager="m")
        await kube.apply(config_map("b"), manager="m")
        cluster.trouble(503, times=9)
        cluster.calm()
        await kube.list(PODS)


async def test_chaos_is_repeatable() -> None:
    async def outcomes(seed: int) -> list[str]:
        cluster = FakeCluster()
        cluster.chaos(Random(seed), 0.3)
        found = []
        async with cluster.open() as kube:
            for number in range(60):
                try:
                    await kube.apply(config_map(f"c{number % 7}", x=str(number)), manager="m")
                except KubeError as error:
                    found.append(str(error))
        return found

    first = await outcomes(3)
    assert 8 < len(first) < 30
    assert await outcomes(3) == first
    assert await outcomes(4) != first


async def test_a_server_that_is_stopped_keeps_its_objects(autojump_clock: MockClock) -> None:
    cluster = FakeCluster()
    async with cluster.open() as kube:
        await kube.create(config_map())
        async with kube.watch(CONFIG_MAPS, resource_version="0") as events:
            assert (await anext(events)).type == "ADDED"
            cluster.stop()
            with pytest.raises(UnreachableError):
                await anext(events)
        with pytest.raises(UnreachableError):
            await kube.get(CONFIG_MAPS, "a")
        cluster.start()
        await kube.get(CONFIG_MAPS, "a")
        assert cluster.watching == 0


async def test_a_version_that_is_yet_to_come_is_waited_for_in_silence(
    autojump_clock: MockClock,
) -> None:
    cluster = FakeCluster(bookmark_seconds=60)
    ahead = cluster.store.version + 2
    async with cluster.open() as kube:
        async with kube.watch(CONFIG_MAPS, resource_version=str(ahead), seconds=150) as events:
            assert [event async for event in events] == []
        async with kube.watch(CONFIG_MAPS, resource_version=str(ahead), seconds=150) as events:
            for name in ("a", "b", "c"):
                cluster.put(config_map(name))
            found = [(event.type, event.resource_version) async for event in events]
    assert found == [("ADDED", str(ahead + 1)), *[("BOOKMARK", str(ahead + 1))] * 3]


async def test_the_log_may_be_short() -> None:
    cluster = FakeCluster(remember=2)
    for number in range(5):
        cluster.put(config_map(f"c{number}"))
    assert [change.version for change in cluster.store.since(0)] == [7, 8]
    assert cluster.store.oldest == 6


# --- on a socket ----------------------------------------------------------------------------------


async def test_it_may_listen_on_a_socket() -> None:
    cluster = FakeCluster()
    async with serve(cluster) as url:
        connection = Connection(server=url.rstrip("/"), seconds=10.0)
        async with open_kube(connection) as kube:
            await kube.apply(config_map(x="1"), manager="m")
            assert (await kube.get(CONFIG_MAPS, "a"))["data"] == {"x": "1"}
            async with kube.watch(CONFIG_MAPS, resource_version="0") as events:
                assert (await anext(events)).type == "ADDED"
                cluster.remove(CONFIG_MAPS, "a")
                assert (await anext(events)).type == "DELETED"
                cluster.drop_watches()
                with pytest.raises(UnreachableError):
                    await anext(events)
            async with kube.watch(CONFIG_MAPS, resource_version="0"):
                pass
            with trio.fail_after(5):
                while cluster.watching:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            cluster.trouble(error=httpx.ReadError)
            with pytest.raises(UnreachableError):
                await kube.create(config_map("b"))
            cluster.trouble(seconds=0.01)
            await kube.list(MCP_SERVERS)
