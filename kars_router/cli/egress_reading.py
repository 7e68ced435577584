"""Reading of a cluster what `kars egress verify` needs: once each, and only what is asked for.

Must not know what is judged by it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from kars_router.cli.egress_declared import Around, Declared, Operator, by_sandbox
from kars_router.config.resources import (
    KarsSandboxResource,
    McpServerResource,
    structure_resource,
)
from kars_router.egress import Service, service_from
from kars_router.errors import ConfigError, UndeterminedError
from kars_router.kube import Kube, NotFoundError, Resource
from kars_router.kube import resources as kinds
from kars_router.plugins import Plugins

Manifest = Mapping[str, Any]
Key = tuple[str, str]  # namespace and name

_ROUNDS: Final = 8  # a Service that is read may lead to another name once


@define(eq=False)
class Reading:
    """What has been read of a cluster so far.

    Args:
        kube: the cluster.
        operator: what the operator was told.
        plugins: have the last word on rules.
        others: kinds of policies beside NetworkPolicies that the cluster serves.
    """

    kube: Kube
    operator: Operator
    plugins: Plugins
    others: Sequence[Resource]
    _servers: dict[Key, McpServerResource | str | None] = field(factory=dict, init=False)
    _services: dict[Key, Service | None] = field(factory=dict, init=False)
    _missing: dict[tuple[Resource, Key], None] = field(factory=dict, init=False)
    _lists: dict[tuple[Resource, str | None], Sequence[Manifest]] = field(factory=dict, init=False)

    async def declared(self, sandbox: KarsSandboxResource, namespace: str) -> Declared:
        """What a sandbox declares for its pods in a namespace.

        Raises:
            KubeError: the cluster does not answer, or does not let us look.
            UndeterminedError: there is no end to what would have to be read.
        """
        around = Around(
            operator=self.operator,
            plugins=self.plugins,
            services=self._service,
            installed=frozenset(f"{each.plural}.{each.group}" for each in self.others),
        )
        # What is needed is known only when it is asked for, by code that does not wait.
        for _ in range(_ROUNDS):
            declared = by_sandbox(sandbox, self._server, around, namespace)
            if not self._missing:
                return declared
            for resource, key in list(self._missing):
                await self._read(resource, key)
            self._missing.clear()
        where = f"{sandbox.meta.namespace}/{sandbox.meta.name}"
        raise UndeterminedError(f"KarsSandbox {where}: its Services lead from one to the next")

    async def all(self, resource: Resource, namespace: str | None) -> Sequence[Manifest]:
        """The objects of a kind, as they were when they were first asked for."""
        key = resource, namespace
        if key not in self._lists:
            self._lists[key] = (await self.kube.list(resource, namespace)).items
        return self._lists[key]

    def _server(self, namespace: str, name: str) -> McpServerResource | str | None:
        key = namespace, name
        if key not in self._servers:
            self._missing[kinds.MCP_SERVERS, key] = None
        return self._servers.get(key)

    def _service(self, namespace: str, name: str) -> Service | None:
        key = namespace, name
        if key not in self._services:
            self._missing[kinds.SERVICES, key] = None
        return self._services.get(key)

    async def _read(self, resource: Resource, key: Key) -> None:
        try:
            manifest: Manifest | None = await self.kube.get(resource, key[1], key[0])
        except NotFoundError:
            manifest = None
        if resource == kinds.SERVICES:
            self._services[key] = None if manifest is None else service_from(manifest)
            return
        try:
            found = None if manifest is None else structure_resource(manifest)
        except ConfigError as error:
            self._servers[key] = error.problems[0]
            return
        assert found is None or isinstance(found, McpServerResource)
        self._servers[key] = found
