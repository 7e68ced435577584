"""The NetworkPolicy around one sandbox: nothing passes but what is in it.

Owns which rules every sandbox has and the order of all of them. Must not know servers, nor what
else is in the cluster.

Source: Kubernetes "Network Policies".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

from kars_router.egress.rules import SourcedRule, tell_sources, to_pods, to_world
from kars_router.egress.values import Rule

HTTPS: Final = 443
_PROTOCOLS: Final = ("UDP", "TCP")


@frozen(kw_only=True)
class Dns:
    """Where the pods of a sandbox look names up.

    Attributes:
        namespace: of the pods that answer.
        pod_labels: theirs; None stands for every pod of the namespace.
        ports: of those pods, not of the Service in front of them.
        networks: CIDR blocks where names are looked up as well, such as the address of a cache on
            every node.
    """

    namespace: str = "kube-system"
    pod_labels: Mapping[str, str] | None = field(factory=lambda: {"k8s-app": "kube-dns"})
    ports: Sequence[int] = (53,)
    networks: Sequence[str] = ()

    def rule(self) -> Rule:
        """The egress rule that lets a pod look names up."""
        peers = list(to_pods(self.namespace, self.pod_labels, 0)["to"])
        peers += [{"ipBlock": {"cidr": network}} for network in self.networks]
        ports = [
            {"protocol": protocol, "port": port} for port in self.ports for protocol in _PROTOCOLS
        ]
        return {"to": peers, "ports": ports}


def sandbox_policy(
    *,
    name: str,
    namespace: str,
    pod_labels: Mapping[str, str],
    rules: Sequence[SourcedRule],
    https: bool,
    dns: Dns | None,
    ingress: Sequence[Rule] = (),
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The policy of one sandbox; the same arguments always make the same manifest.

    Args:
        name: the policy's.
        namespace: the sandbox's.
        pod_labels: labels that its pods alone have.
        rules: what its servers need, as `merge` returns it; stands last, in this order.
        https: whether port 443 of all public addresses is opened.
        dns: where names are looked up; None for nowhere.
        ingress: NetworkPolicy ingress rules; without any, nothing gets in.
        labels: the policy's.
        annotations: the policy's, to which is added what each of `rules` is for.

    Raises:
        ValueError: `pod_labels` is empty, which would select every pod of the namespace.
    """
    if not pod_labels:
        raise ValueError("the policy of a sandbox has to select pods by labels")
    egress: list[Rule] = [] if dns is None else [dns.rule()]
    if https:
        egress.append(to_world(HTTPS))
    egress += [each.rule for each in rules if each.rule not in egress]
    metadata: dict[str, Any] = {"name": name, "namespace": namespace}
    for key, wanted in (
        ("labels", labels or {}),
        ("annotations", {**(annotations or {}), **tell_sources(rules)}),
    ):
        if wanted:
            metadata[key] = dict(sorted(wanted.items()))
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata,
        "spec": {
            "podSelector": {"matchLabels": dict(sorted(pod_labels.items()))},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [dict(rule) for rule in ingress],
            "egress": [dict(rule) for rule in egress],
        },
    }
