"""Our Kubernetes client against a real API server."""

from __future__ import annotations

from typing import Any, Final

import pytest
import trio
from attrs import evolve

from cluster.harness import Cluster
from kars_router.kube import (
    ApiError,
    ConflictError,
    ForbiddenError,
    Kube,
    NotFoundError,
    UnauthorizedError,
    UnreachableError,
    open_kube,
)
from kars_router.kube.credentials import Fixed, bearer
from kars_router.kube.resources import CONFIG_MAPS, CRDS, KNOWN, NAMESPACES, PODS, SECRETS

Manifest = dict[str, Any]

_NOT_THE_ROOT: Final = "metadata.name!=kube-root-ca.crt"


def config_map(namespace: str, name: str = "a", **data: str) -> Manifest:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


async def test_the_table_of_kinds_is_right(kube: Kube) -> None:
    own = [each for each in KNOWN if each.group.endswith(".k8s.io") or "." not in each.group]
    assert len(own) > 15
    for resource in own:
        assert await kube.has(resource), resource
    # What discovery says of each kind is what the table says.
    for resource in own:
        manifest = {"apiVersion": resource.api_version, "kind": resource.kind}
        assert await kube._discover(manifest["apiVersion"], manifest["kind"]) == resource


async def test_a_long_list_comes_in_pages(kube: Kube, namespace: str) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(60):
            nursery.start_soon(kube.create, config_map(namespace, f"c{number:02}"))
    for limit in (7, 1000):
        listing = await kube.list(CONFIG_MAPS, namespace, limit=limit, fields=_NOT_THE_ROOT)
        names = [each["metadata"]["name"] for each in listing.items]
        assert names == [f"c{number:02}" for number in range(60)]
        assert {each["kind"] for each in listing.items} == {"ConfigMap"}
        assert int(listing.resource_version) > 0


async def test_a_watch_goes_on_where_a_list_ended(kube: Kube, namespace: str) -> None:
    listing = await kube.list(CONFIG_MAPS, namespace)
    seen = []
    async with kube.watch(
        CONFIG_MAPS, namespace, resource_version=listing.resource_version, seconds=60
    ) as events:
        await kube.create(config_map(namespace, x="1"))
        await kube.apply(config_map(namespace, x="2"), manager="m", force=True)
        await kube.delete(CONFIG_MAPS, "a", namespace)
        async for event in events:
            if event.object["metadata"].get("name") == "a":
                seen.append((event.type, event.object["data"]["x"]))
            if event.type == "DELETED":
                break
    assert seen == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "2")]


async def test_a_watch_ends_in_good_order(kube: Kube, namespace: str) -> None:
    listing = await kube.list(CONFIG_MAPS, namespace)
    with trio.fail_after(60):
        async with kube.watch(
            CONFIG_MAPS,
            namespace,
            resource_version=listing.resource_version,
            fields=_NOT_THE_ROOT,
            seconds=2,
        ) as events:
            found = [event async for event in events]
    assert {event.type for event in found} <= {"BOOKMARK"}


async def test_a_watch_breaks_off_when_the_server_goes_away(
    kube: Kube, cluster: Cluster, namespace: str
) -> None:
    made = await kube.create(config_map(namespace))
    version = made["metadata"]["resourceVersion"]
    async with kube.watch(CONFIG_MAPS, namespace, resource_version=version) as events:
        await trio.to_thread.run_sync(cluster.stop_api_server)
        with trio.fail_after(60):
            try:
                assert [event.type async for event in events if event.type != "BOOKMARK"] == []
            except UnreachableError as error:
                assert "broke off" in str(error)  # noqa: PT017 - both ends are ends
    with pytest.raises(UnreachableError, match="cannot be reached"):
        await kube.get(CONFIG_MAPS, "a", namespace)
    await trio.to_thread.run_sync(cluster.start_api_server)
    assert (await kube.get(CONFIG_MAPS, "a", namespace))["metadata"]["uid"]


async def test_a_dry_run_and_strictness(kube: Kube, namespace: str) -> None:
    found = await kube.apply(config_map(namespace, x="1"), manager="m", dry_run=True, strict=True)
    assert found["metadata"]["uid"]
    with pytest.raises(NotFoundError):
        await kube.get(CONFIG_MAPS, "a", namespace)
    with pytest.raises(ApiError, match="field not declared in schema"):
        await kube.apply({**config_map(namespace), "dats": {}}, manager="m", strict=True)


async def test_conflicts_name_the_fields_and_the_managers(kube: Kube, namespace: str) -> None:
    await kube.apply(config_map(namespace, x="1", y="1"), manager="one")
    with pytest.raises(ConflictError) as caught:
        await kube.apply(config_map(namespace, x="2", y="2"), manager="two")
    found = [(cause.reason, cause.field, cause.message) for cause in caught.value.causes]
    assert found == [
        ("FieldManagerConflict", ".data.x", 'conflict with "one"'),
        ("FieldManagerConflict", ".data.y", 'conflict with "one"'),
    ]


async def test_a_name_that_is_none_is_invalid(kube: Kube, namespace: str) -> None:
    with pytest.raises(ApiError) as caught:
        await kube.create(config_map(namespace, "Not a name"))
    assert (caught.value.status, caught.value.reason) == (422, "Invalid")
    assert [cause.field for cause in caught.value.causes] == ["metadata.name"]


async def test_an_account_may_do_what_its_roles_say(cluster: Cluster, namespace: str) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "r", "namespace": namespace},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]}],
    }
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "r", "namespace": namespace},
        "subjects": [{"kind": "ServiceAccount", "name": "a", "namespace": namespace}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
    }
    metadata = {"name": "a", "namespace": namespace}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    async with open_kube(cluster.connection()) as kube:
        for manifest in (account, role, binding):
            await kube.create(manifest)
    kubeconfig = await trio.to_thread.run_sync(cluster.kubeconfig, namespace, "a")
    acting = evolve(
        cluster.connection(),
        impersonate=(("impersonate-user", f"system:serviceaccount:{namespace}:a"),),
    )
    for connection in (cluster.connection(kubeconfig), acting):
        async with open_kube(connection) as kube:
            with trio.fail_after(30):  # until the server has seen the role
                while not await _may_list(kube, namespace):
                    await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(ForbiddenError, match="cannot get resource"):
                await kube.get(SECRETS, "a", namespace)
            with pytest.raises(ForbiddenError):
                async with kube.watch(CONFIG_MAPS, namespace, resource_version="0"):
                    pytest.fail("it may not")


async def _may_list(kube: Kube, namespace: str) -> bool:
    try:
        await kube.list(CONFIG_MAPS, namespace)
    except ForbiddenError:
        return False
    return True


async def test_a_stranger_is_not_let_in(cluster: Cluster) -> None:
    stranger = evolve(cluster.connection(), credentials=Fixed(bearer("no-such-token")))
    async with open_kube(stranger) as kube:
        with pytest.raises(UnauthorizedError):
            await kube.list(PODS)


async def test_kinds_may_be_found_out(kube: Kube) -> None:
    cron = {"apiVersion": "batch/v1", "kind": "CronJob"}
    assert (await kube.resource_of(cron)).plural == "cronjobs"
    with pytest.raises(NotFoundError, match="serves no Nothing of none/v1"):
        await kube.resource_of({"apiVersion": "none/v1", "kind": "Nothing"})
    role = {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService"}
    assert not (await kube.resource_of(role)).namespaced


async def test_many_requests_at_once(kube: Kube, namespace: str) -> None:
    """More than there are connections; and none of them is lost."""

    async def put(number: int) -> None:
        await kube.apply(
            config_map(namespace, f"c{number % 20}", **{f"k{number}": "1"}), manager=f"m{number}"
        )

    async with trio.open_nursery() as nursery:
        for number in range(200):
            nursery.start_soon(put, number)
    listing = await kube.list(CONFIG_MAPS, namespace, fields=_NOT_THE_ROOT)
    assert sum(len(each["data"]) for each in listing.items) == 200
    assert (await kube.list(NAMESPACES)).items
    assert isinstance((await kube.list(CRDS)).items, list)
