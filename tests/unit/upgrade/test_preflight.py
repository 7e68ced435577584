"""The pre-flight against the fake API server: what is asked, and what faults come to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from attrs import evolve

from kars_router.errors import UndeterminedError, UserError
from kars_router.kube import ApiError, Kube, UnreachableError
from kars_router.kube.resources import CONFIG_MAPS, CRDS, DEPLOYMENTS
from kars_router.testing.kube import FakeCluster
from kars_router.upgrade import definitions
from kars_router.upgrade.preflight import Preflight
from kars_router.upgrade.rollout import workloads


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def kube(cluster: FakeCluster) -> AsyncIterator[Kube]:
    async with cluster.open() as kube:
        yield kube


@pytest.fixture
async def preflight(kube: Kube) -> Preflight:
    return Preflight(kube=kube, release="it", namespace="default")


def config(name: str = "conf", **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


async def install(preflight: Preflight, *manifests: dict[str, Any]) -> None:
    """As Helm does it."""
    survey = await preflight.survey(manifests, [])
    for each in survey.checked:
        await preflight.kube.apply(each.wanted, manager="helm")


def written(cluster: FakeCluster) -> list[str]:
    """The requests that changed something."""
    return [
        f"{each.verb} {each.name}"
        for each in cluster.seen
        if each.verb not in {"get", "list", "watch", "discovery"} and "dryRun" not in each.query
    ]


async def test_what_is_asked(cluster: FakeCluster, preflight: Preflight) -> None:
    await install(preflight, config(key="a"))
    cluster.seen.clear()
    survey = await preflight.survey([config(key="b"), config("new")], [config(key="a")])
    assert [each.change.action for each in survey.checked] == ["change", "create"]
    assert survey.checked[0].change.fields == (".data.key",)
    assert written(cluster) == []
    applied = [each.query for each in cluster.seen if each.verb == "apply"]
    expected = {"fieldManager": "helm", "dryRun": "All", "force": "false"}
    assert applied == [expected | {"fieldValidation": "Strict"}] * 2


async def test_a_conflict(cluster: FakeCluster, preflight: Preflight) -> None:
    await install(preflight, config(key="a", other="x"))
    cluster.put({**config(key="theirs", other="x"), "metadata": {"name": "conf"}})
    survey = await preflight.survey([config(key="b", other="x")], [config(key="a")])
    (checked,) = survey.checked
    (conflict,) = checked.conflicts
    assert (conflict.owner.manager, conflict.field) == ("somebody", ".data.key")
    assert (conflict.theirs, conflict.ours) == ("theirs", "b")
    assert (checked.problem, checked.change.action) == ("", "change")
    assert written(cluster)[-1:] != ["apply conf"] or len(written(cluster)) == 1


async def test_objects_that_go(cluster: FakeCluster, preflight: Preflight) -> None:
    kept = config("kept")
    kept["metadata"]["annotations"] = {"helm.sh/resource-policy": "keep"}
    before = [config("gone"), kept, config("away")]
    await install(preflight, *before)
    cluster.remove(CONFIG_MAPS, "away")
    cluster.seen.clear()
    survey = await preflight.survey([], before)
    found = [(each.reference.name, each.action) for each in survey.removed]
    assert found == [("gone", "delete"), ("kept", "keep")]
    assert survey.problems == ()
    assert written(cluster) == []
    cluster.trouble(403, verb="delete")
    survey = await preflight.survey([], before)
    ((reference, problem),) = survey.problems
    assert (reference.name, bool(problem)) == ("gone", True)


async def test_an_object_of_a_kind_that_is_gone(preflight: Preflight) -> None:
    old = {"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "a"}}
    assert (await preflight.survey([], [old])).removed == ()
    (checked,) = (await preflight.survey([old], [])).checked
    assert "serves no Thing of example.com/v1" in checked.problem


async def test_an_object_in_a_namespace_that_is_made_first(preflight: Preflight) -> None:
    there = config()
    there["metadata"]["namespace"] = "new"
    (checked,) = (await preflight.survey([there], [])).checked
    assert 'namespaces "new" not found' in checked.problem
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "new"}}
    _, checked = (await preflight.survey([namespace, there], [])).checked
    assert (checked.problem, checked.change.action) == ("", "create")
    assert checked.change.note == "its namespace is made first"


async def test_what_the_server_finds_wrong(cluster: FakeCluster, preflight: Preflight) -> None:
    cluster.checks[CONFIG_MAPS] = lambda _: [(".data.key", "must be nice")]
    (checked,) = (await preflight.survey([config(key="x")], [])).checked
    assert "must be nice" in checked.problem
    cluster.checks.clear()
    await install(preflight, config(key="x"))
    cluster.checks[CONFIG_MAPS] = lambda _: [(".data.key", "must be nice")]
    (checked,) = (await preflight.survey([config(key="y")], [])).checked
    assert ("must be nice" in checked.problem, checked.conflicts) == (True, ())


async def test_a_conflict_that_force_would_not_end(
    cluster: FakeCluster, preflight: Preflight
) -> None:
    await install(preflight, config(key="x"))
    cluster.put(config(key="theirs"))
    refused = b'{"kind": "Status", "message": "Apply failed with 1 conflict", "code": 409}'
    cluster.trouble(409, verb="apply", body=(refused, "application/json"))
    cluster.trouble(422, verb="apply")
    (checked,) = (await preflight.survey([config(key="y")], [])).checked
    assert (checked.problem[:8], checked.conflicts) == ("injected", ())


async def test_a_conflict_of_another_kind(cluster: FakeCluster, preflight: Preflight) -> None:
    await install(preflight, config(key="x"))
    cluster.trouble(409, verb="apply")
    (checked,) = (await preflight.survey([config(key="y")], [])).checked
    assert (checked.problem[:8], checked.conflicts) == ("injected", ())


STATUS = (
    b'{"kind": "Status", "code": 400, "message": "admission webhook x does not support dry run"}'
)


async def test_a_webhook_that_cannot_be_asked(cluster: FakeCluster, preflight: Preflight) -> None:
    cluster.trouble(400, verb="apply", body=(STATUS, "application/json"))
    with pytest.raises(UndeterminedError, match=r"ConfigMap default/conf cannot be checked bef"):
        await preflight.survey([config()], [])


async def test_a_server_that_does_not_answer(cluster: FakeCluster, preflight: Preflight) -> None:
    cluster.trouble(503, verb="apply")
    with pytest.raises(ApiError):
        await preflight.survey([config()], [])
    cluster.trouble(403, verb="get")
    with pytest.raises(UndeterminedError, match=r"ConfigMap default/conf may not be looked at"):
        await preflight.survey([config()], [])
    cluster.stop()
    with pytest.raises(UnreachableError):
        await preflight.survey([config()], [])


async def test_every_request_may_fail(cluster: FakeCluster, preflight: Preflight) -> None:
    """Whichever it is: an error that says so, or a finding, and nothing is ever changed."""
    before = [config(key="a"), config("gone")]
    await install(preflight, *before)
    cluster.put(config(key="theirs"))
    cluster.seen.clear()
    await preflight.survey([config(key="b")], before)
    count = len(cluster.seen)
    assert count > 4
    for failing in range(count):
        cluster.calm()
        cluster.trouble(0, times=failing, seconds=0.0)
        cluster.trouble(503)
        with pytest.raises(ApiError):
            await preflight.survey([config(key="b")], before)
    assert written(cluster) == []


async def test_an_object_that_somebody_writes_to_meanwhile(
    cluster: FakeCluster, preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a controller does between the two questions is not taken for the work of Helm."""
    await install(preflight, config(key="a"))
    apply = Kube.apply

    def control(number: str) -> None:
        found = cluster.find(CONFIG_MAPS, "conf")
        assert found is not None
        cluster.put({**found, "data": {"key": "a", "mine": number}}, manager="controller")

    control("1")
    writes = iter("23")

    async def disturbed(self: Kube, manifest: Any, **more: Any) -> Any:
        number = next(writes, None)
        if number is not None:
            control(number)
        return await apply(self, manifest, **more)

    monkeypatch.setattr(Kube, "apply", disturbed)
    (checked,) = (await preflight.survey([config(key="a")], [])).checked
    assert (checked.conflicts, checked.change.action) == ((), "none")


def definition(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", **spec},
    }


async def test_definitions(cluster: FakeCluster, kube: Kube, preflight: Preflight) -> None:
    preflight = evolve(preflight, migrates=True)
    (checked,) = await definitions.check(preflight, [definition(scope="Cluster")])
    assert checked.change.action == "create"
    assert "labels" not in checked.wanted["metadata"]  # Helm does not mark them either
    cluster.put({**definition(scope="Cluster"), "status": {}}, manager="helm")
    (checked,) = await definitions.check(preflight, [definition(scope="Namespaced")])
    # Helm's own update; whoever it was.
    assert (checked.change.action, checked.conflicts) == ("change", ())
    await definitions.apply(kube, [checked], force=False)
    found = cluster.find(CRDS, "things.example.com")
    assert found is not None
    assert found["spec"]["scope"] == "Namespaced"


async def test_a_new_kind_is_waited_for(
    cluster: FakeCluster,
    kube: Kube,
    preflight: Preflight,
    autojump_clock: trio.testing.MockClock,
) -> None:
    await kube.apply(same := definition(scope="Cluster"), manager="helm")
    new = definition(scope="Cluster")
    new["metadata"]["name"] = "new.example.com"
    found = await definitions.check(preflight, [same, new])
    assert [each.change.action for each in found] == ["none", "create"]

    async def establish() -> None:
        await trio.sleep(5)
        for status in ("False", "True"):
            conditions = [{"type": "Established", "status": status}]
            cluster.put({**new, "status": {"conditions": conditions}})
            await trio.sleep(5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(establish)
        began = trio.current_time()
        await definitions.apply(kube, found, force=False)
        assert 10 <= trio.current_time() - began < 11
    applied = [
        each.name for each in cluster.seen if each.verb == "apply" and not each.query.get("dryRun")
    ]
    assert applied == ["things.example.com", "new.example.com"]


async def test_a_definition_that_somebody_takes_meanwhile(
    cluster: FakeCluster, kube: Kube, preflight: Preflight
) -> None:
    await kube.apply(definition(scope="Cluster"), manager="helm")
    (checked,) = await definitions.check(preflight, [definition(scope="Namespaced")])
    cluster.put(definition(scope="Other"), manager="somebody")
    with pytest.raises(UserError, match="was changed by somebody else meanwhile"):
        await definitions.apply(kube, [checked], force=False)
    await definitions.apply(kube, [checked], force=True)


async def test_workloads_are_recognised(preflight: Preflight) -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "app"},
        "spec": {"template": {"spec": {"containers": [{"name": "main", "image": "a"}]}}},
    }
    survey = await preflight.survey([manifest, config()], [])
    (watched,) = workloads(survey.checked, exact=True)
    assert (watched.resource, str(watched.reference)) == (DEPLOYMENTS, "Deployment default/app")
    assert watched.template == manifest["spec"]["template"]
    (watched,) = workloads(survey.checked, exact=False)
    assert watched.template is None
    old = {**manifest, "spec": {"template": {}}}
    await install(preflight, manifest)
    preflight = evolve(preflight, migrates=True)
    (checked,) = (await preflight.survey([manifest], [old])).checked
    assert (checked.change.action, checked.change.pods) == ("change", 1)
