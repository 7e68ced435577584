"""Resources as tests write them, and the operator in a cluster that is in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
from attrs import frozen
from kars_operator.controller import Controller
from kars_operator.knowledge import structured
from kars_operator.refs import Unusable
from kars_operator.settings import Settings
from kars_operator.store import Key
from kars_operator.workqueue import Effort

from kars_router.config.digests import digest_of_all, enforced_by
from kars_router.config.load import parse
from kars_router.config.resources import (
    KarsSandboxResource,
    McpServerResource,
    ToolPolicyResource,
)
from kars_router.kube import resources as kinds
from kars_router.plugins import Plugins
from kars_router.testing.kube import FakeCluster

API = "kars.azure.com/v1alpha1"
URL = "http://tools.mcp.svc:8931/mcp"


def manifest(kind: str, name: str, spec: Mapping[str, Any], **metadata: Any) -> dict[str, Any]:
    """A custom resource, in the namespace `team` unless told otherwise."""
    whole = {"name": name, "namespace": "team", **metadata}
    return {"apiVersion": API, "kind": kind, "metadata": whole, "spec": dict(spec)}


def server_manifest(name: str = "tools", url: str | None = URL, **more: Any) -> dict[str, Any]:
    """An McpServer; `metadata` in `more` adds to its metadata."""
    metadata = more.pop("metadata", {})
    spec = {**({"url": url, "allowedTools": ["*"]} if url else {}), **more}
    return manifest("McpServer", name, spec, **metadata)


def sandbox_manifest(name: str = "box", *servers: str, **more: Any) -> dict[str, Any]:
    """A KarsSandbox; `metadata` in `more` adds to its metadata."""
    metadata = more.pop("metadata", {})
    governance = {"mcpServerRefs": [{"name": each} for each in servers]}
    governance |= more.pop("governance", {})
    spec = {"agent": {"image": "agent:1"}, "governance": governance, **more}
    return manifest("KarsSandbox", name, spec, **metadata)


def policy_manifest(name: str = "rules", **spec: Any) -> dict[str, Any]:
    return manifest("ToolPolicy", name, spec)


def sandbox(name: str = "box", *servers: str, **more: Any) -> KarsSandboxResource:
    found = structured(sandbox_manifest(name, *servers, **more))
    assert isinstance(found, KarsSandboxResource), found
    return found


def server(name: str = "tools", url: str | None = URL, **more: Any) -> McpServerResource:
    found = structured(server_manifest(name, url, **more))
    assert isinstance(found, McpServerResource), found
    return found


def policy(name: str = "rules", **spec: Any) -> ToolPolicyResource:
    found = structured(policy_manifest(name, **spec))
    assert isinstance(found, ToolPolicyResource), found
    return found


UNUSABLE = Unusable(problems=("spec.url: must be a URL",))


@frozen
class Bench:
    """The operator at work in a cluster in memory.

    Attributes:
        cluster: it.
        controller: the operator.
    """

    cluster: FakeCluster
    controller: Controller

    async def settle(self) -> None:
        """Until there is nothing to do: with a virtual clock this takes no time."""
        with trio.fail_after(3600):
            while True:
                await trio.testing.wait_all_tasks_blocked()
                work = self.controller.work
                if not (work.waiting or work.running):
                    return
                await trio.sleep(0.05)

    def find(self, kind: Any, name: str = "box", namespace: str = "team") -> Any:
        return self.cluster.find(kind, name, namespace)

    def condition(self, type_: str, name: str = "box") -> tuple[str, str]:
        """Status and reason of a sandbox's condition; empty without one."""
        found = self.find(kinds.KARS_SANDBOXES, name)
        return condition(found, type_)


def condition(found: Any, type_: str = "Ready") -> tuple[str, str]:
    """Status and reason of an object's condition; empty without one."""
    listed = ((found or {}).get("status") or {}).get("conditions") or []
    for each in listed:
        if each["type"] == type_:
            return each["status"], each["reason"]
    return "", ""


class FakeRouters:
    """Routers that enforce what the ConfigMap of their sandbox says."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self.refused: dict[str, list[str]] = {}
        self.asked = 0

    def start(self, name: str = "box", namespace: str = "team", home: str = "team") -> None:
        """Has the pod of a sandbox run; its address stands for the ConfigMap."""
        labels = {
            "app.kubernetes.io/managed-by": "kars-operator",
            "kars.azure.com/sandbox": name,
            "kars.azure.com/sandbox-namespace": home,
            "kars.azure.com/component": "sandbox",
        }
        self._cluster.put(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": f"{name}-pod", "namespace": namespace, "labels": labels},
                "spec": {
                    "initContainers": [
                        {"name": "router", "ports": [{"name": "admin", "containerPort": 9090}]}
                    ],
                    "containers": [{"name": "agent"}],
                },
                "status": {"phase": "Running", "podIP": f"{name}.{namespace}"},
            }
        )

    async def get(self, url: str) -> bytes:
        """What the router at a URL answers."""
        self.asked += 1
        name, namespace = url.removeprefix("http://").split(":")[0].split(".")
        found = self._cluster.find(kinds.CONFIG_MAPS, f"{name}-router", namespace)
        if found is None:
            raise ValueError("there is no such router")
        enforced = enforced_by(parse(found["data"]["kars.yaml"]))
        refused = self.refused.get(name)
        entries = [{"kind": e.kind, "name": e.name, "digest": e.digest} for e in enforced]
        said = {
            "digest": "sha256:old" if refused else digest_of_all(enforced),
            "entries": [] if refused else entries,
            "refused": {"at": "", "problems": refused} if refused else None,
        }
        return msgspec.json.encode(said)


@asynccontextmanager
async def operator(
    cluster: FakeCluster,
    *,
    settings: Settings | None = None,
    routers: FakeRouters | None = None,
    change: Callable[[Controller], None] = lambda _: None,
) -> AsyncIterator[Bench]:
    """The operator, until the block ends."""
    async with cluster.open() as kube, trio.open_nursery() as nursery:
        controller = Controller(
            kube,
            settings or Settings(),
            Plugins.load(),
            instance="test",
            effort=Effort(workers=4),
        )
        if routers is not None:
            controller.routers.get = routers.get
        change(controller)
        await nursery.start(controller.run)
        yield Bench(cluster, controller)
        nursery.cancel_scope.cancel()


def new_cluster() -> FakeCluster:
    """A cluster with the namespace `team`."""
    cluster = FakeCluster()
    for name in ("team", "mcp", "other"):
        labels = {"kubernetes.io/metadata.name": name}
        metadata = {"name": name, "labels": labels}
        cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    return cluster


TEAM = Key("team", "box")
