"""The kinds of objects that an API server keeps, and where in its URLs they are.

Owns the table of kinds that this project uses. Pure.

Source: https://kubernetes.io/docs/reference/using-api/api-concepts/#resource-uris.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from attrs import frozen

KARS: Final = "kars.azure.com"


@frozen
class Resource:
    """One kind of object in one version.

    Attributes:
        group: its API group; empty for the core group.
        version: of the group.
        plural: the word in URLs.
        kind: the word in manifests.
        namespaced: whether its objects are in namespaces.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The `apiVersion` of its manifests."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """The path of the group's version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str = ""
    ) -> str:
        """The path of an object, or of all of them.

        Args:
            namespace: None for all namespaces; left out if the kind is not in namespaces.
            name: None for the collection.
            subresource: such as `status`; empty for the object itself.

        Raises:
            ValueError: a name is none: it would lead to another path.
        """
        parts = [self.root]
        if self.namespaced and namespace is not None:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        if name is not None:
            parts.append(_segment(name))
        if subresource:
            parts.append(_segment(subresource))
        return "/".join(parts)


def _segment(name: str) -> str:
    if name in {"", ".", ".."}:
        raise ValueError(f"{name!r} is no name of a Kubernetes object")
    return quote(name, safe="")


PODS: Final = Resource("", "v1", "pods", "Pod")
SERVICES: Final = Resource("", "v1", "services", "Service")
NAMESPACES: Final = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
SERVICE_ACCOUNTS: Final = Resource("", "v1", "serviceaccounts", "ServiceAccount")
CONFIG_MAPS: Final = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS: Final = Resource("", "v1", "secrets", "Secret")
EVENTS: Final = Resource("events.k8s.io", "v1", "events", "Event")
ENDPOINT_SLICES: Final = Resource("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
LEASES: Final = Resource("coordination.k8s.io", "v1", "leases", "Lease")
DEPLOYMENTS: Final = Resource("apps", "v1", "deployments", "Deployment")
REPLICA_SETS: Final = Resource("apps", "v1", "replicasets", "ReplicaSet")
NETWORK_POLICIES: Final = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ROLES: Final = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS: Final = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
CLUSTER_ROLES: Final = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterroles", "ClusterRole", namespaced=False
)
CLUSTER_ROLE_BINDINGS: Final = Resource(
    "rbac.authorization.k8s.io", "v1", "clusterrolebindings", "ClusterRoleBinding", namespaced=False
)
CRDS: Final = Resource(
    "apiextensions.k8s.io",
    "v1",
    "customresourcedefinitions",
    "CustomResourceDefinition",
    namespaced=False,
)
SELF_REVIEWS: Final = Resource(
    "authorization.k8s.io",
    "v1",
    "selfsubjectaccessreviews",
    "SelfSubjectAccessReview",
    namespaced=False,
)
MCP_SERVERS: Final = Resource(KARS, "v1alpha1", "mcpservers", "McpServer")
KARS_SANDBOXES: Final = Resource(KARS, "v1alpha1", "karssandboxes", "KarsSandbox")
TOOL_POLICIES: Final = Resource(KARS, "v1alpha1", "toolpolicies", "ToolPolicy")
CILIUM_NETWORK_POLICIES: Final = Resource(
    "cilium.io", "v2", "ciliumnetworkpolicies", "CiliumNetworkPolicy"
)

KNOWN: Final = (
    PODS,
    SERVICES,
    NAMESPACES,
    NODES,
    SERVICE_ACCOUNTS,
    CONFIG_MAPS,
    SECRETS,
    EVENTS,
    ENDPOINT_SLICES,
    LEASES,
    DEPLOYMENTS,
    REPLICA_SETS,
    NETWORK_POLICIES,
    ROLES,
    ROLE_BINDINGS,
    CLUSTER_ROLES,
    CLUSTER_ROLE_BINDINGS,
    CRDS,
    SELF_REVIEWS,
    MCP_SERVERS,
    KARS_SANDBOXES,
    TOOL_POLICIES,
    CILIUM_NETWORK_POLICIES,
)
_BY_KIND: Final = {(each.api_version, each.kind): each for each in KNOWN}


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The resource of a manifest, if its kind is one of `KNOWN`.

    Raises:
        KeyError: it is not; `Kube` asks the server then.
    """
    key = (str(manifest.get("apiVersion", "")), str(manifest.get("kind", "")))
    if key not in _BY_KIND:
        raise KeyError(f"{key[1] or 'a kind without a name'} in {key[0] or 'no apiVersion'}")
    return _BY_KIND[key]


def name_of(manifest: Mapping[str, Any]) -> tuple[str | None, str]:
    """The namespace and the name of a manifest.

    Returns:
        None for the namespace if it names none, and an empty name likewise.
    """
    metadata = manifest.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    return metadata.get("namespace") or None, metadata.get("name") or ""
