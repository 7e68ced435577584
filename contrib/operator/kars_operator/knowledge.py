"""What is known of the cluster: one reflector for each resource, and custom resources as values.

Owns which resources are followed, what is kept of their objects and how they are found. Must not
know what follows from a change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, TypeGuard

import trio
from attrs import define, field

from kars_operator import names
from kars_operator.reflector import Reflector
from kars_operator.refs import Unusable
from kars_operator.store import Change, Key, Object, by_namespace, key_of, trim
from kars_router.config.resources import (
    KarsSandboxResource,
    McpServerResource,
    Resource,
    ToolPolicyResource,
    structure_resource,
)
from kars_router.egress import Service, service_from
from kars_router.errors import ConfigError
from kars_router.kube import Kube
from kars_router.kube import resources as kinds
from kars_router.kube.resources import Resource as Kind

Told = Callable[[Kind, Change], None]

# The API server is heard at least every few minutes of each kind that can be read.
_CURRENT_SECONDS: Final = 600.0
_OURS: Final = f"{names.MANAGED_BY}={names.MANAGER}"
# Kinds of which the operator makes objects, in the order in which they are taken away: a pod before
# what bounds it.
OWNED: Final = (
    kinds.DEPLOYMENTS,
    kinds.SERVICE_ACCOUNTS,
    kinds.CONFIG_MAPS,
    kinds.NETWORK_POLICIES,
    kinds.CILIUM_NETWORK_POLICIES,
)
# Kinds that people make; with one namespace to look at, those of others are none of its business.
_DECLARED: Final = (kinds.KARS_SANDBOXES, kinds.MCP_SERVERS, kinds.TOOL_POLICIES)
_KEPT_OF_METADATA: Final = (
    "name",
    "namespace",
    "uid",
    "resourceVersion",
    "generation",
    "labels",
    "ownerReferences",
    "deletionTimestamp",
)


@define(eq=False)
class Knowledge:
    """The reflectors of one operator.

    Args:
        kube: the API server.
        namespace: the only one that is looked at; None for all.
        told: told of every change.
        own_namespaces: whether sandboxes have namespaces of their own.
    """

    kube: Kube
    namespace: str | None
    told: Told
    own_namespaces: bool = False
    reflectors: dict[Kind, Reflector] = field(factory=dict, init=False)
    _parsed: dict[tuple[str, Key], tuple[str, Resource | Unusable]] = field(
        factory=dict, init=False
    )

    def __attrs_post_init__(self) -> None:
        self._follow(
            kinds.KARS_SANDBOXES,
            indexes={"namespace": by_namespace, "server": _servers_of},
        )
        self._follow(kinds.MCP_SERVERS, indexes={})
        self._follow(kinds.TOOL_POLICIES, indexes={"namespace": by_namespace})
        self._follow(kinds.SERVICES, trim=trim_service)
        # Also those of others: what they open is open.
        self._follow(kinds.NETWORK_POLICIES, indexes={"namespace": by_namespace, "sandbox": _home})
        self._follow(kinds.CILIUM_NETWORK_POLICIES, _OURS, trim=trim_owned, optional=True)
        for kind in (kinds.SERVICE_ACCOUNTS, kinds.CONFIG_MAPS):
            self._follow(kind, _OURS, trim=trim_owned)
        self._follow(kinds.DEPLOYMENTS, _OURS, trim=trim_deployment)
        self._follow(kinds.PODS, f"{names.COMPONENT}=sandbox,{_OURS}", trim=trim_pod)
        if self.own_namespaces:
            self._follow(kinds.NAMESPACES, _OURS, trim=trim_owned)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follows everything until cancelled; started once all that there is has been seen."""
        async with trio.open_nursery() as nursery:
            for reflector in self.reflectors.values():
                nursery.start_soon(reflector.run)
            for reflector in self.reflectors.values():
                await reflector.wait_synced()
            task_status.started()

    def sandbox(self, namespace: str, name: str) -> KarsSandboxResource | Unusable | None:
        """A KarsSandbox; what is wrong with it if it cannot be used; None if it is not there."""
        found = self._structured(kinds.KARS_SANDBOXES, namespace, name)
        assert found is None or isinstance(found, KarsSandboxResource | Unusable)
        return found

    def server(self, namespace: str, name: str) -> McpServerResource | Unusable | None:
        """An McpServer, likewise."""
        found = self._structured(kinds.MCP_SERVERS, namespace, name)
        assert found is None or isinstance(found, McpServerResource | Unusable)
        return found

    def policy(self, namespace: str, name: str) -> ToolPolicyResource | Unusable | None:
        """A ToolPolicy, likewise."""
        found = self._structured(kinds.TOOL_POLICIES, namespace, name)
        assert found is None or isinstance(found, ToolPolicyResource | Unusable)
        return found

    def policies(self, namespace: str) -> Mapping[str, ToolPolicyResource | Unusable]:
        """The ToolPolicies of a namespace that are there to stay, by name."""
        found = {}
        for manifest in self.store(kinds.TOOL_POLICIES).by("namespace", namespace):
            name = manifest["metadata"]["name"]
            policy = self.policy(namespace, name)
            if policy is not None and "deletionTimestamp" not in manifest["metadata"]:
                found[name] = policy
        return found

    def service(self, namespace: str, name: str) -> Service | None:
        """What is to be known of a Service; None if it is not there."""
        found = self.store(kinds.SERVICES).get(namespace, name)
        return None if found is None else service_from(found)

    def referring_to_server(self, server: Key) -> tuple[Key, ...]:
        """The sandboxes that refer to an McpServer."""
        found = self.store(kinds.KARS_SANDBOXES).by("server", str(server))
        return tuple(key_of(each) for each in found)

    def under_policy(self, policy: Key) -> tuple[Key, ...]:
        """The sandboxes that name a ToolPolicy, or that it picks by their labels."""
        found = self.policy(*policy)
        labels = found.spec.applies_to.sandbox_match_labels if _is_policy(found) else {}
        return tuple(
            key_of(each)
            for each in self.store(kinds.KARS_SANDBOXES).by("namespace", policy.namespace)
            if _policy_of(each) == policy.name
            or (labels and labels.items() <= (each["metadata"].get("labels") or {}).items())
        )

    def servers_of(self, sandbox: Object) -> tuple[Key, ...]:
        """The McpServers that the manifest of a sandbox refers to."""
        found = (each.partition("/") for each in _servers_of(sandbox))
        return tuple(Key(namespace, name) for namespace, _, name in found)

    def policies_of(self, sandbox: Object) -> tuple[Key, ...]:
        """The ToolPolicies of a sandbox, by its manifest."""
        key = key_of(sandbox)
        found = (
            Key(key.namespace, name)
            for name in self.policies(key.namespace)
            if key in self.under_policy(Key(key.namespace, name))
        )
        return tuple(found)

    def owned(self, sandbox: str, namespace: str) -> Iterable[tuple[Kind, Object]]:
        """The objects that were made for a sandbox, wherever they are."""
        wanted = f"{namespace}/{sandbox}"
        for kind in OWNED:
            for found in self.store(kind).by("sandbox", wanted):
                if _is_ours(found):
                    yield kind, found

    def installed(self) -> frozenset[str]:
        """The optional definitions that the API server has, as `plural.group`."""
        kind = kinds.CILIUM_NETWORK_POLICIES
        there = self.reflectors[kind].served
        return frozenset({f"{kind.plural}.{kind.group}"} if there else ())

    def unseen(self) -> tuple[str, ...]:
        """What bears on how tight egress is and has not been shown by the API server for long."""
        since = trio.current_time() - _CURRENT_SECONDS
        return tuple(
            kind.plural
            for kind in (kinds.NETWORK_POLICIES, kinds.PODS)
            if (self.reflectors[kind].heard_at or 0.0) < since
        )

    def store(self, kind: Kind) -> Any:
        """The objects of a kind."""
        return self.reflectors[kind].store

    def _follow(
        self,
        kind: Kind,
        labels: str = "",
        *,
        trim: Callable[[Object], Object] = trim,
        indexes: Mapping[str, Any] | None = None,
        optional: bool = False,
    ) -> None:
        def changed(change: Change) -> None:
            self._parsed.pop((kind.kind, change.key), None)
            self.told(kind, change)

        self.reflectors[kind] = Reflector(
            self.kube,
            kind,
            self.namespace if kind.namespaced and not self._anywhere(kind) else None,
            labels=labels,
            trim=trim,
            changed=changed,
            indexes={"sandbox": _home} if indexes is None else indexes,
            optional=optional,
        )

    def _anywhere(self, kind: Kind) -> bool:
        # Servers that a sandbox reaches may be elsewhere, and so may what is made for it.
        return kind is kinds.SERVICES or (self.own_namespaces and kind not in _DECLARED)

    def _structured(self, kind: Kind, namespace: str, name: str) -> Resource | Unusable | None:
        manifest = self.store(kind).get(namespace, name)
        if manifest is None:
            return None
        key, version = (kind.kind, Key(namespace, name)), manifest["metadata"]["resourceVersion"]
        known = self._parsed.get(key)
        if known is None or known[0] != version:
            known = self._parsed[key] = (version, structured(manifest))
        return known[1]


def structured(manifest: Object) -> Resource | Unusable:
    """A custom resource as a value, or what is wrong with it."""
    try:
        return structure_resource(manifest)
    except ConfigError as error:
        return Unusable(problems=tuple(error.problems), labels=_meant_for(manifest))


def _meant_for(manifest: Object) -> dict[str, str]:
    """The labels by which a ToolPolicy picks sandboxes, even if the rest of it is unusable."""
    found: Any = manifest.get("spec")
    for key in ("appliesTo", "sandboxMatchLabels"):
        found = found.get(key) if isinstance(found, dict) else None
    pairs = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in pairs if isinstance(value, str)}


def trim_service(found: Object) -> Object:
    """A Service without what nobody here reads: a cluster may have thousands."""
    kept = ("type", "externalName", "selector", "ports", "clusterIP")
    spec = found.get("spec") or {}
    return {"metadata": _identity(found), "spec": {key: spec[key] for key in kept if key in spec}}


def trim_owned(found: Object) -> Object:
    """Whose an object is, and which version of it: what it holds is compared by the server."""
    return {"metadata": _identity(found)}


def trim_deployment(found: Object) -> Object:
    """As `trim_owned`, with how far the roll-out is."""
    return {"metadata": _identity(found), "status": found.get("status") or {}}


def trim_pod(found: Object) -> Object:
    """What a pod is called, where it answers, and whether it does."""
    status = found.get("status") or {}
    containers = [
        *(found["spec"].get("initContainers") or ()),
        *found["spec"]["containers"],
    ]
    ports = [port for each in containers for port in each.get("ports") or ()]
    return {
        "metadata": _identity(found),
        "spec": {"ports": ports},
        "status": {"phase": status.get("phase"), "podIP": status.get("podIP")},
    }


def _identity(found: Object) -> dict[str, Any]:
    metadata = found["metadata"]
    return {key: metadata[key] for key in _KEPT_OF_METADATA if key in metadata}


def _is_policy(found: object) -> TypeGuard[ToolPolicyResource]:
    return isinstance(found, ToolPolicyResource)


def _governance(sandbox: Object) -> dict[str, Any]:
    spec = sandbox.get("spec")
    found = spec.get("governance") if isinstance(spec, dict) else None
    return found if isinstance(found, dict) else {}


def _servers_of(sandbox: Object) -> Iterable[str]:
    """The McpServers that a KarsSandbox refers to, even if the rest of it is unusable."""
    governance = _governance(sandbox)
    home = sandbox["metadata"].get("namespace", "")
    listed = governance.get("mcpServerRefs")
    refs = [*(listed if isinstance(listed, list) else ()), governance.get("mcpServerRef")]
    named = (each for each in refs if isinstance(each, dict))
    return {f"{each.get('namespace') or home}/{each.get('name')}" for each in named}


def _policy_of(sandbox: Object) -> str:
    found = _governance(sandbox).get("toolPolicyRef")
    return str(found.get("name") or "") if isinstance(found, dict) else ""


def _home(found: Object) -> Iterable[str]:
    """The KarsSandbox that an object was made for, as `namespace/name`."""
    labels = found["metadata"].get("labels") or {}
    if names.SANDBOX not in labels:
        return ()
    return (f"{labels.get(names.SANDBOX_NAMESPACE, '')}/{labels[names.SANDBOX]}",)


def _is_ours(found: Object) -> bool:
    return (found["metadata"].get("labels") or {}).get(names.MANAGED_BY) == names.MANAGER
