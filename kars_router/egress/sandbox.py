"""What goes out of the pods of one sandbox and comes into them, before it is written down.

Owns the labels by which everything of a sandbox is found, and what plugins may change of its
policy. Must not know which servers a sandbox may have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import field, frozen

from kars_router.egress.networkpolicy import Dns, sandbox_policy
from kars_router.egress.rules import SourcedRule, to_pods
from kars_router.egress.values import Rule
from kars_router.model import ServerInfo

OPERATOR: Final = "kars-operator"
# Where it is, and what the names of sandboxes' own namespaces begin with, if nothing else is said.
OPERATOR_NAMESPACE: Final = "kars-system"
NAMESPACE_PREFIX: Final = "kars-"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
SANDBOX: Final = "kars.azure.com/sandbox"
SANDBOX_NAMESPACE: Final = "kars.azure.com/sandbox-namespace"
COMPONENT: Final = "kars.azure.com/component"


@frozen(kw_only=True)
class SandboxEgress:
    """What is opened for one sandbox.

    Attributes:
        name: the NetworkPolicy's, which is the sandbox's.
        namespace: of its pods.
        pod_labels: labels that its pods alone have.
        servers: what it may use.
        rules: what the servers need, as `merge` returns it.
        https: whether port 443 of all public addresses is opened because one of the servers needs
            it.
        dns: where names are looked up; None for nowhere, or if one of `objects` opens that.
        ingress: NetworkPolicy ingress rules.
        labels: of all that is written.
        objects: further manifests, which open what NetworkPolicies cannot.
    """

    name: str
    namespace: str
    pod_labels: Mapping[str, str]
    servers: tuple[ServerInfo, ...] = ()
    rules: tuple[SourcedRule, ...] = ()
    https: bool = False
    dns: Dns | None = field(factory=Dns)
    ingress: tuple[Rule, ...] = ()
    labels: Mapping[str, str] = field(factory=dict)
    objects: tuple[Mapping[str, Any], ...] = ()

    def policy(self) -> dict[str, Any]:
        """The NetworkPolicy, which is there whatever plugins do."""
        return sandbox_policy(
            name=self.name,
            namespace=self.namespace,
            pod_labels=self.pod_labels,
            rules=self.rules,
            https=self.https,
            dns=self.dns,
            ingress=self.ingress,
            labels=self.labels,
        )


def labels_of(sandbox: str, namespace: str) -> dict[str, str]:
    """Labels of everything that is made for a sandbox.

    Args:
        sandbox: its name.
        namespace: where its KarsSandbox is.
    """
    return {MANAGED_BY: OPERATOR, SANDBOX: sandbox, SANDBOX_NAMESPACE: namespace}


def pod_labels_of(sandbox: str, namespace: str) -> dict[str, str]:
    """Labels of a sandbox's pods; its NetworkPolicy selects by them."""
    return {**labels_of(sandbox, namespace), COMPONENT: "sandbox"}


def asked_by_operator(namespace: str, port: int) -> Rule:
    """The ingress rule that lets the operator ask a router what it enforces.

    Args:
        namespace: where the operator is.
        port: the router's port for health, metrics and status.
    """
    (peer,) = to_pods(namespace, {"app.kubernetes.io/name": OPERATOR}, port)["to"]
    return {"from": [peer], "ports": [{"protocol": "TCP", "port": port}]}
