"""The operator in this process, and what a cluster without nodes lacks: somebody to run the pods.

Owns `Node`, which does for one sandbox what a kubelet would: it runs the router on the ConfigMap's
file, keeps that file as the ConfigMap is, and says in the pod's status where it answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
from attrs import define, evolve, frozen
from e2e.router_process import in_thread
from kars_operator import names
from kars_operator.service import Options, run
from kars_operator.settings import Settings
from peers import LOOPBACK, Peer, free_port, listener_option, peer_environment, start_peer

from kars_router.kube import Connection, Kube, NotFoundError
from kars_router.kube import resources as kinds
from kars_router.kube.resources import Resource

PATIENCE = 60.0
IMAGE = "registry.example.com/agent:1"


def new_settings(**changes: Any) -> Settings:
    """Settings for sandboxes whose routers run on this machine."""
    found = Settings(
        router_image="registry.example.com/kars-router:1",
        agent_port=free_port(),
        admin_port=free_port(),
    )
    return evolve(found, **changes)


@asynccontextmanager
async def operator(
    connection: Connection, settings: Settings, namespace: str | None = None, **more: Any
) -> AsyncIterator[str]:
    """The operator, until the block ends; the URL of its health address."""
    stop = trio.Event()
    options = Options(
        settings=evolve(settings, operator_namespace=namespace or settings.operator_namespace),
        namespace=namespace,
        health=f"{LOOPBACK}:0",
        **more,
    )
    async with trio.open_nursery() as nursery:
        url = await nursery.start(run, connection, options, stop)
        yield url
        stop.set()


@frozen
class Api:
    """Questions that tests ask of one namespace, each until the answer is what they wait for."""

    kube: Kube
    namespace: str
    patience: float = PATIENCE

    async def get(self, kind: Resource, name: str) -> dict[str, Any] | None:
        try:
            return await self.kube.get(kind, name, self.namespace if kind.namespaced else None)
        except NotFoundError:
            return None

    async def until(
        self, kind: Resource, name: str, holds: Callable[[dict[str, Any] | None], object]
    ) -> Any:
        """The object, as soon as `holds` says yes of it (or of None, if it is not there)."""
        found: dict[str, Any] | None = None
        with trio.move_on_after(self.patience):
            while True:
                found = await self.get(kind, name)
                if holds(found):
                    return found
                await trio.sleep(0.05)
        raise AssertionError(f"{kind.kind} {name} stays {json.dumps(found, indent=1)}")

    async def apply(self, *manifests: Mapping[str, Any]) -> None:
        """Applies as a person does."""
        for each in manifests:
            metadata = {"namespace": self.namespace, **each["metadata"]}
            await self.kube.apply({**each, "metadata": metadata}, manager="person", force=True)

    async def condition(self, kind: Resource, name: str, type_: str, word: str) -> dict[str, Any]:
        """A condition, as soon as its status is this."""

        def holds(found: dict[str, Any] | None) -> object:
            return condition(found, type_).get("status") == word

        return condition(await self.until(kind, name, holds), type_)

    async def reason(self, kind: Resource, name: str, type_: str, reason: str) -> dict[str, Any]:
        """A condition, as soon as this is its reason."""

        def holds(found: dict[str, Any] | None) -> object:
            return condition(found, type_).get("reason") == reason

        return condition(await self.until(kind, name, holds), type_)


def condition(found: Mapping[str, Any] | None, type_: str) -> dict[str, Any]:
    """A condition of an object's status; empty if it has none of the type."""
    listed = ((found or {}).get("status") or {}).get("conditions") or []
    return next((each for each in listed if each["type"] == type_), {})


def server(name: str, url: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "McpServer",
        "metadata": {"name": name},
        "spec": {"url": url, "allowedTools": ["*"], **spec},
    }


def sandbox(name: str, *servers: str, **spec: Any) -> dict[str, Any]:
    governance = {"mcpServerRefs": [{"name": each} for each in servers]}
    return {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "KarsSandbox",
        "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": {"agent": {"image": IMAGE}, "governance": governance, **spec},
    }


@define
class Node:
    """Runs the router of one sandbox as the pod would have it.

    Attributes:
        file: the configuration as it is mounted.
    """

    api: Api
    directory: Path
    router: Peer | None = None

    @property
    def file(self) -> Path:
        return self.directory / "kars.yaml"

    async def run(
        self, name: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Runs it until cancelled; started once the pod says where it answers."""
        config_map = await self.api.until(
            kinds.CONFIG_MAPS, names.config_map(name), lambda found: found is not None
        )
        await self._mount(config_map)
        async with in_thread(self._start()) as self.router:
            await self._say_where(name)
            task_status.started()
            while True:
                found = await self.api.get(kinds.CONFIG_MAPS, names.config_map(name))
                if found is not None:
                    await self._mount(found)
                await trio.sleep(0.1)

    def _start(self) -> Any:
        argv = [sys.executable, "-m", "kars_router", "run", "-c", str(self.file)]
        argv += listener_option()
        return start_peer(
            argv,
            log_path=self.directory / "router.log",
            env={**peer_environment(), "KARS_STATE_DIR": str(self.directory)},
            ready=lambda peer: '"listening"' in peer.log(),
        )

    async def _mount(self, config_map: Mapping[str, Any]) -> None:
        text = config_map["data"]["kars.yaml"].replace(names.STATE_DIRECTORY, str(self.directory))
        if not self.file.exists() or self.file.read_text(encoding="utf-8") != text:
            new = self.directory / "new"
            new.write_text(text, encoding="utf-8")
            new.rename(self.file)  # at once, as a kubelet does it

    async def _say_where(self, name: str) -> None:
        """The pod's status: a node would say where it answers."""
        with trio.fail_after(PATIENCE):
            while True:
                labels = f"{names.SANDBOX}={name}"
                pods = await self.api.kube.list(kinds.PODS, self.api.namespace, labels=labels)
                if pods.items:
                    break
                await trio.sleep(0.05)
        pod = pods.items[0]["metadata"]["name"]
        status = {"status": {"phase": "Running", "podIP": LOOPBACK, "podIPs": [{"ip": LOOPBACK}]}}
        await self.api.kube.patch(kinds.PODS, pod, self.api.namespace, status, subresource="status")
