"""The definitions on a real API server: what it takes, and what it says to what it does not."""

from __future__ import annotations

import functools
import operator
from typing import Any

import pytest
import resource_table as table
from resource_mistakes import INVALID

from cluster.harness import Cluster
from kars_router.kube import ApiError, ConflictError, Kube

pytestmark = pytest.mark.usefixtures("definitions")
NAMES = ("mcpservers", "karssandboxes", "toolpolicies")


async def dry_run(kube: Kube, manifest: table.Manifest) -> list[str]:
    """What the API server says to a manifest; nothing if it takes it."""
    placed = {**manifest, "metadata": {**manifest["metadata"], "namespace": "default"}}
    try:
        await kube.apply(placed, manager="test", dry_run=True, strict=True)
    except ApiError as error:
        return [error.message, *(f"{each.field}: {each.message}" for each in error.causes)]
    return []


@pytest.mark.parametrize("name", NAMES)
def test_they_are_established_and_structural(cluster: Cluster, name: str) -> None:
    found = cluster.get("customresourcedefinition", f"{name}.kars.azure.com")
    conditions = {each["type"]: each["status"] for each in found["status"]["conditions"]}
    assert conditions.pop("Established") == "True"
    assert conditions.pop("NamesAccepted") == "True"
    assert conditions == {}  # NonStructuralSchema would be one


@pytest.mark.parametrize("name", table.VALID)
async def test_taken(kube: Kube, name: str) -> None:
    assert await dry_run(kube, table.VALID[name]) == []


@pytest.mark.parametrize("name", INVALID)
async def test_refused(kube: Kube, name: str) -> None:
    manifest, _, said = INVALID[name]
    assert said in "\n".join(await dry_run(kube, manifest))


@pytest.mark.parametrize("name", table.REFUSED_BY_THE_READER)
async def test_taken_though_the_reader_refuses(kube: Kube, name: str) -> None:
    manifest, _ = table.REFUSED_BY_THE_READER[name]
    assert await dry_run(kube, manifest) == []


@pytest.mark.parametrize("name", table.REFUSED_BY_THE_API)
async def test_refused_though_the_reader_takes_it(kube: Kube, name: str) -> None:
    manifest, said = table.REFUSED_BY_THE_API[name]
    assert said in "\n".join(await dry_run(kube, manifest))


@pytest.mark.parametrize("name", table.DROPPED_BY_THE_API)
async def test_dropped_though_the_reader_refuses(kube: Kube, namespace: str, name: str) -> None:
    manifest, path = table.DROPPED_BY_THE_API[name]
    placed = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    kept = await kube.apply(placed, manager="test", strict=True)
    _, section, key = path.split(".")
    assert key not in kept["spec"][section]
    assert kept["spec"][section] != {}


async def test_what_is_somebody_elses_is_kept(kube: Kube, namespace: str) -> None:
    manifest = table.VALID["a sandbox as kars has it"]
    placed = {**manifest, "metadata": {**manifest["metadata"], "namespace": namespace}}
    kept = await kube.apply(placed, manager="test")
    assert kept["spec"] == manifest["spec"]


LISTS: list[tuple[str, ...]] = [
    ("allowedTools",),
    ("allowedResources",),
    ("allowedPrompts",),
    ("allowedSandboxes", "namespaces"),
    ("scopes",),
]


@pytest.mark.parametrize("path", LISTS, ids=".".join)
async def test_nobody_widens_a_list_of_somebody_else_by_accident(
    kube: Kube, namespace: str, path: tuple[str, ...]
) -> None:
    async def listing(manager: str, values: list[str], *, force: bool = False) -> Any:
        spec: Any = values
        for key in reversed(path):
            spec = {key: spec}
        client = {"oauth": table.CLIENT} if path == ("scopes",) else {}
        spec |= {"url": table.HTTPS, **client}
        made = table.manifest("McpServer", spec, namespace=namespace)
        kept = await kube.apply(made, manager=manager, force=force)
        return functools.reduce(operator.getitem, path, kept["spec"])

    await listing("one", ["a"])
    for values in (["b"], ["a", "b"]):
        with pytest.raises(ConflictError) as caught:
            await listing("two", values)
        (cause,) = caught.value.causes
        assert cause.field == f".spec.{'.'.join(path)}"
        assert '"one"' in cause.message
    assert await listing("two", ["b"], force=True) == ["b"]
    with pytest.raises(ConflictError):
        await listing("one", ["a"])


async def test_several_managers_may_each_add_a_reference(kube: Kube, namespace: str) -> None:
    async def refer(manager: str, name: str) -> list[str]:
        spec = {"governance": {"mcpServerRefs": [{"name": name}]}}
        made = table.manifest("KarsSandbox", spec, namespace=namespace)
        kept = await kube.apply(made, manager=manager)
        return [each["name"] for each in kept["spec"]["governance"]["mcpServerRefs"]]

    await refer("one", "a")
    assert await refer("two", "b") == ["a", "b"]


async def test_a_status_is_written_on_its_own(cluster: Cluster, kube: Kube, namespace: str) -> None:
    sandbox = table.manifest("KarsSandbox", {}, namespace=namespace)
    await kube.apply(sandbox, manager="test")
    now = "2026-01-01T00:00:00Z"
    condition = {"status": "True", "reason": "Fine", "message": "", "lastTransitionTime": now}
    status = {
        "phase": "Ready",
        "observedGeneration": 1,
        "conditions": [
            {**condition, "type": "Ready"},
            {**condition, "type": "RouterEnforcing"},
            {**condition, "type": "EgressTight", "status": "Unknown"},
        ],
        "servers": [{"name": name, "egress": "Https"} for name in ("playwright", "github")],
        "serversResolved": "2/3",
        "sandboxPod": "of somebody else",
    }
    told = {key: sandbox[key] for key in ("apiVersion", "kind", "metadata")}
    kept = await kube.apply({**told, "status": status}, manager="operator", subresource="status")
    assert kept["status"] == status
    assert kept["metadata"]["generation"] == 1

    shown = cluster.kubectl("get", "ks", "--namespace", namespace, "--no-headers").split()
    assert shown[:5] == ["one", "True", "True", "Unknown", "2/3"]
    both = cluster.kubectl("get", "kars", "--namespace", namespace, "--output", "name")
    assert both == "karssandbox.kars.azure.com/one\n"


def test_every_field_is_explained(cluster: Cluster) -> None:
    # What kubectl remembers of the server is older than the definitions, until it misses something.
    cluster.kubectl("get", "mcp", "--all-namespaces")
    said = cluster.kubectl("explain", "mcp.spec.timeouts.call")
    assert "For the answer to one request" in said
    assert "5m by" in said
