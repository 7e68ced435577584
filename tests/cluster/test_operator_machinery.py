"""What the operator stands on, against a real API server: reflector, leader election, events."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from attrs import evolve
from kars_operator.backoff import Growth
from kars_operator.events import Recorder, Restraint
from kars_operator.lease import Election
from kars_operator.reflector import Pace, Reflector
from kars_operator.store import Change, key_of

from cluster.harness import Cluster
from kars_router.kube import Kube, Resource, open_kube
from kars_router.kube.resources import CONFIG_MAPS, CRDS, EVENTS, LEASES

_QUICK: Final = Pace(absent=0.2, growth=Growth(0.1, 1.0))
_OURS: Final = "from=test"
_WIDGETS: Final = Resource("machinery.example.com", "v1", "widgets", "Widget")


def config(namespace: str, name: str, value: str = "1") -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": {"from": "test"}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"value": value},
    }


async def until(true: Callable[[], bool]) -> None:
    """Waits until something is true."""
    with trio.fail_after(60):
        while not true():  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.05)


@asynccontextmanager
async def following(
    kube: Kube, resource: Resource, namespace: str, pace: Pace = _QUICK
) -> AsyncIterator[tuple[Reflector, list[Change]]]:
    changes: list[Change] = []
    reflector = Reflector(
        kube, resource, namespace, labels=_OURS, changed=changes.append, pace=pace
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(reflector.run)
        yield reflector, changes
        nursery.cancel_scope.cancel()


async def agree(kube: Kube, reflector: Reflector, namespace: str) -> None:
    """Waits until the store is what the API server has."""
    listing = await kube.list(reflector.resource, namespace, labels=_OURS)
    wanted = versions(listing.items)
    await until(lambda: versions(reflector.store) == wanted)


def versions(found: Any) -> dict[Any, tuple[str, str]]:
    metadata = {key_of(each): each["metadata"] for each in found}
    return {key: (each["uid"], each["resourceVersion"]) for key, each in metadata.items()}


async def test_a_reflector_outlives_a_restart_of_the_api_server(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    async with following(kube, CONFIG_MAPS, namespace) as (reflector, changes):
        await kube.create(config(namespace, "goes"))
        await kube.create(config(namespace, "stays"))
        await agree(kube, reflector, namespace)
        await trio.to_thread.run_sync(cluster.stop_api_server)
        await until(lambda: reflector.state.value == "failing")
        await trio.to_thread.run_sync(cluster.start_api_server)
        async with open_kube(cluster.connection()) as other:
            await other.delete(CONFIG_MAPS, "goes", namespace)
            await other.delete(CONFIG_MAPS, "stays", namespace)
            await other.create(config(namespace, "stays", "anew"))
            await agree(other, reflector, namespace)
        assert reflector.state.value == "watching"
        told = [(each.key.name, each.before is None, each.after is None) for each in changes]
        assert told.count(("goes", False, True)) == told.count(("stays", False, True)) == 1
        assert told[-1] == ("stays", True, False)


async def test_a_version_that_is_too_old_is_listed_anew(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    await kube.create(config(namespace, "a"))
    async with following(kube, CONFIG_MAPS, namespace) as (reflector, _):
        await agree(kube, reflector, namespace)
        await trio.to_thread.run_sync(cluster.stop_api_server)
        await until(lambda: reflector.state.value == "failing")
        reflector._version = "1"
        await trio.to_thread.run_sync(cluster.start_api_server)
        await until(lambda: reflector.relists == 2)
        async with open_kube(cluster.connection()) as other:
            await other.create(config(namespace, "b"))
            await agree(other, reflector, namespace)


async def test_a_version_that_the_server_never_had_is_listed_anew(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    """As after a backup was restored: the server says nothing at all until it has come so far."""
    pace = evolve(_QUICK, silence=3.0)
    async with following(kube, CONFIG_MAPS, namespace, pace) as (reflector, _):
        await reflector.wait_synced()
        await trio.to_thread.run_sync(cluster.stop_api_server)
        await until(lambda: reflector.state.value == "failing")
        reflector._version = "9" * 15
        await trio.to_thread.run_sync(cluster.start_api_server)
        await until(lambda: reflector.state.value == "watching")
        async with open_kube(cluster.connection()) as other:
            await other.create(config(namespace, "b"))
            await agree(other, reflector, namespace)
        assert (reflector.relists, reflector.silences) == (2, 1)


def definition() -> dict[str, Any]:
    return {
        "apiVersion": CRDS.api_version,
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{_WIDGETS.plural}.{_WIDGETS.group}"},
        "spec": {
            "group": _WIDGETS.group,
            "names": {"plural": _WIDGETS.plural, "singular": "widget", "kind": _WIDGETS.kind},
            "scope": "Namespaced",
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": {"type": "object"}},
                }
            ],
        },
    }


async def test_a_definition_comes_and_goes_and_comes(kube: Kube, namespace: str) -> None:
    widget = {**config(namespace, "w"), "apiVersion": _WIDGETS.api_version, "kind": "Widget"}
    del widget["data"]
    async with following(kube, _WIDGETS, namespace) as (reflector, changes):
        await until(lambda: reflector.state.value == "absent")
        for round_ in (1, 2):
            await kube.create(definition())
            await until(lambda: reflector.state.value == "watching")
            await kube.create(widget)
            await until(lambda: len(reflector.store) == 1)
            # What there was of it is deleted before it is.
            await kube.delete(CRDS, definition()["metadata"]["name"])
            await until(lambda: len(reflector.store) == 0)
            await until(lambda: reflector.state.value == "absent")
            assert [each.after is None for each in changes] == [False, True] * round_


async def test_a_right_that_is_given_later_is_used(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    cluster.kubectl("create", "serviceaccount", "reader", "--namespace", namespace)
    kubeconfig = await trio.to_thread.run_sync(cluster.kubeconfig, namespace, "reader")
    await kube.create(config(namespace, "a"))
    async with (
        open_kube(cluster.connection(kubeconfig)) as reader,
        following(reader, CONFIG_MAPS, namespace) as (reflector, _),
    ):
        await until(lambda: reflector.state.value == "forbidden")
        assert not reflector.synced
        role = ["--clusterrole=view", f"--serviceaccount={namespace}:reader"]
        cluster.kubectl("create", "rolebinding", "reads", *role, "--namespace", namespace)
        await until(lambda: reflector.state.value == "watching")
        await agree(kube, reflector, namespace)


async def test_the_lease_is_one_that_the_api_server_takes(kube: Kube, namespace: str) -> None:
    async def lead(name: str, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
        async def work() -> None:
            await trio.sleep_forever()

        with trio.CancelScope() as scope:
            task_status.started(scope)
            await elections[name].run(work)

    elections = {
        name: Election(kube, "operator", namespace, identity=name) for name in ("first", "second")
    }
    async with trio.open_nursery() as nursery:
        first = await nursery.start(lead, "first")
        await until(lambda: elections["first"].leading)
        await nursery.start(lead, "second")
        await until(lambda: elections["second"].holder == "first")
        lease = await kube.get(LEASES, "operator", namespace)
        assert lease["spec"]["holderIdentity"] == "first"
        assert not elections["second"].leading
        first.cancel()
        await until(lambda: elections["second"].leading)
        assert not elections["first"].leading
        lease = await kube.get(LEASES, "operator", namespace)
        assert lease["spec"]["leaseTransitions"] == 1
        nursery.cancel_scope.cancel()
    lease = await kube.get(LEASES, "operator", namespace)
    assert not lease["spec"]["holderIdentity"]


async def test_events_are_ones_that_the_api_server_takes(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    regarding: Mapping[str, Any] = await kube.create(config(namespace, "a"))
    recorder = Recorder(kube, "operator-1", restraint=Restraint(heartbeat=0.0))
    async with trio.open_nursery() as nursery:
        await nursery.start(recorder.run)
        recorder.event(regarding, "Warning", "ServerMissing", "there is no server x")
        recorder.event(regarding, "Normal", "Made", "é" * 2000, action="Create")
        await until(lambda: recorder.sent == 2)
        recorder.event(regarding, "Warning", "ServerMissing", "there is no server x")
        await until(lambda: recorder.sent == 3)
        cluster_wide = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
        recorder.event(cluster_wide, "Normal", "Seen", f"about {namespace}")
        await until(lambda: recorder.sent == 4)
        nursery.cancel_scope.cancel()
    assert recorder.failed == 0
    listing = await kube.list(EVENTS, namespace)
    counts = {each["reason"]: each.get("series", {}).get("count") for each in listing.items}
    assert counts == {"ServerMissing": 2, "Made": None}
    shown = json.loads(
        cluster.kubectl("events", "--for", "configmap/a", "--output=json", "--namespace", namespace)
    )
    assert {each["reason"] for each in shown["items"]} == {"ServerMissing", "Made"}
