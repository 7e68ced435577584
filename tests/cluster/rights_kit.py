"""The rights of the operator's account: what is granted, what is used, and a path that uses it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import trio
from attrs import frozen
from kars_operator import names
from peers import REPOSITORY
from ruamel.yaml import YAML

from cluster.harness import Cluster
from cluster.operator_kit import Api, Node, sandbox, server
from kars_router.kube import resources as kinds

MANIFESTS: Final = REPOSITORY / "contrib" / "operator" / "manifests"
HOME: Final = "kars-system"
ACCOUNT: Final = "kars-operator"
SANDBOXES: Final = kinds.KARS_SANDBOXES

# A right: verb, group, resource (with its subresource) and, if it is for one object only, its name.
Right = tuple[str, str, str, str]


def documents(text: str) -> list[dict[str, Any]]:
    """The objects in a YAML text."""
    found = YAML(typ="safe", pure=True).load_all(text)
    return [each for each in found if each is not None]


def manifests(name: str) -> list[dict[str, Any]]:
    """The objects in a file of the manifests."""
    return documents((MANIFESTS / name).read_text(encoding="utf-8"))


def uninstall(cluster: Cluster) -> None:
    """Take away all that the manifests make, but for the namespace, which takes time to go."""
    files = [*(MANIFESTS / "operator").glob("*.yaml"), *(MANIFESTS / "options").glob("*.yaml")]
    named = [f"--filename={file}" for file in files if "namespace.yaml" not in file.name]
    cluster.kubectl("delete", "--ignore-not-found", *named)


def granted(manifests: Iterable[Mapping[str, Any]]) -> set[Right]:
    """All that the roles among some objects grant."""
    roles = [each for each in manifests if each["kind"] in {"ClusterRole", "Role"}]
    return {
        (verb, group, resource, name)
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def used(events: Iterable[Mapping[str, Any]]) -> set[Right]:
    """The rights that requests have made use of."""
    found: set[Right] = set()
    for event in events:
        about = event.get("objectRef")
        if about is None:  # such as which version the server is, which everybody may ask
            continue
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        of_one = resource == "leases" and event["verb"] != "create"
        right = about.get("apiGroup", ""), resource, about.get("name", "") if of_one else ""
        found.add((event["verb"], *right))
        if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
            found.add(("create", *right))  # what is applied and was not there is made
    return found


def was_refused(event: Mapping[str, Any]) -> bool:
    return event.get("responseStatus", {}).get("code") in {401, 403}


@frozen
class Scene:
    """One sandbox under the eyes of an operator that is the account.

    Attributes:
        declared: where its resources are.
        made: where its objects are.
        name: of the sandbox.
    """

    declared: Api
    made: Api
    name: str


async def whole_path(scene: Scene, directory: Path) -> None:
    """Declared, enforced by a real router, told, and changed."""
    declared, made, name = scene.declared, scene.made, scene.name
    tools = server("tools", "http://tools.mcp.svc:8931/mcp")
    policy = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "rules"},
        "spec": {"appliesTo": {"sandboxMatchLabels": {"team": "a"}}, "default": "allow"},
    }
    async with trio.open_nursery() as node:
        await declared.apply(tools, policy, sandbox(name, "tools"))
        await node.start(Node(made, directory).run, name)
        await declared.condition(SANDBOXES, name, "Ready", "True")
        await declared.condition(kinds.MCP_SERVERS, "tools", "Ready", "True")
        await declared.condition(kinds.TOOL_POLICIES, "rules", "Ready", "True")
        await has_events(declared, name)
        await declared.apply(server("tools", "http://tools.mcp.svc:9000/mcp"))
        await made.until(kinds.NETWORK_POLICIES, name, lambda found: "9000" in str(found))
        node.cancel_scope.cancel()


async def all_gone(scene: Scene) -> None:
    for kind in (kinds.DEPLOYMENTS, kinds.NETWORK_POLICIES, kinds.SERVICE_ACCOUNTS):
        await scene.made.until(kind, scene.name, lambda found: found is None)
    config_map = names.config_map(scene.name)
    await scene.made.until(kinds.CONFIG_MAPS, config_map, lambda found: found is None)


async def has_events(api: Api, name: str) -> None:
    with trio.fail_after(30):
        while True:
            found = (await api.kube.list(kinds.EVENTS, api.namespace)).items
            if any(each["regarding"]["name"] == name for each in found):
                return
            await trio.sleep(0.05)
