"""The CiliumNetworkPolicy: which hosts at which ports, and how names are looked up.

Must not know servers, nor why a host is opened.

Source: Cilium documentation, "Layer 3 Policies" (DNS based) and "Layer 7 Policies" (DNS policy and
IP discovery).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from kars_router.egress import ANNOTATION, Dns, SandboxEgress

_NAMESPACE: Final = "k8s:io.kubernetes.pod.namespace"

# A host and a port, and the servers that need them.
Hosts = Mapping[tuple[str, int], frozenset[str]]


def policy(sandbox: SandboxEgress, hosts: Hosts, dns: Dns) -> dict[str, Any]:
    """Makes the manifest; the same arguments always make the same one.

    Args:
        sandbox: whose pods it is for.
        hosts: what is opened, and for which servers.
        dns: where names are looked up. Cilium only knows the addresses of names whose answers have
            passed its proxy, so that this is where that rule has to be.
    """
    metadata: dict[str, Any] = {"name": sandbox.name, "namespace": sandbox.namespace}
    if sandbox.labels:
        metadata["labels"] = dict(sorted(sandbox.labels.items()))
    metadata["annotations"] = {ANNOTATION: _sources(hosts)}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": metadata,
        "spec": {
            "endpointSelector": {"matchLabels": dict(sorted(sandbox.pod_labels.items()))},
            "egress": [*_look_ups(dns), *_connections(hosts)],
        },
    }


def _sources(hosts: Hosts) -> str:
    listed = [
        {"servers": sorted(servers), "for": f"{host}, TCP {port}"}
        for (host, port), servers in sorted(hosts.items())
    ]
    return msgspec.json.encode(listed).decode()


def _look_ups(dns: Dns) -> Iterator[dict[str, Any]]:
    # Every name: resolvers try several endings, and give up at the first one that is refused.
    ports = [
        {
            "ports": [{"port": str(port), "protocol": "ANY"} for port in dns.ports],
            "rules": {"dns": [{"matchPattern": "*"}]},
        }
    ]
    labels = {f"k8s:{key}": value for key, value in sorted((dns.pod_labels or {}).items())}
    there = {"matchLabels": {_NAMESPACE: dns.namespace, **labels}}
    yield {"toEndpoints": [there], "toPorts": ports}
    if dns.networks:
        yield {"toCIDR": list(dns.networks), "toPorts": ports}


def _connections(hosts: Hosts) -> Iterator[dict[str, Any]]:
    for port in sorted({port for _, port in hosts}):
        names = sorted(host for host, there in hosts if there == port)
        yield {
            "toFQDNs": [{"matchName": name} for name in names],
            "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}],
        }
