"""Egress rules of a NetworkPolicy: making them, telling them apart, saying what they are for.

Must not know URLs.

Source: Kubernetes "Network Policies".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from attrs import frozen

from kars_router.egress.values import Rule

ANNOTATION: Final = "kars.azure.com/egress-sources"
NAMESPACE_LABEL: Final = "kubernetes.io/metadata.name"

# What a rule for the world outside leaves out, by version of IP.
PRIVATE: Final[Mapping[int, tuple[str, ...]]] = {
    4: ("10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"),
    6: ("fc00::/7", "fe80::/10"),
}
_WORLD: Final = {4: "0.0.0.0/0", 6: "::/0"}
_NETWORKS: Final = tuple(ipaddress.ip_network(each) for part in PRIVATE.values() for each in part)


@frozen(kw_only=True)
class SourcedRule:
    """A rule, and the servers that need it, sorted by name."""

    rule: Rule
    servers: tuple[str, ...]


def is_private(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether a rule for the world outside leaves an address out."""
    return any(address in network for network in _NETWORKS)


def to_world(port: int, networks: Sequence[str] = ()) -> Rule:
    """All public addresses, and these networks."""
    blocks = [
        {"ipBlock": {"cidr": cidr, "except": list(PRIVATE[version])}}
        for version, cidr in _WORLD.items()
    ]
    return _rule([*blocks, *_blocks(networks)], port)


def to_networks(networks: Sequence[str], port: int) -> Rule:
    """These networks alone, which are CIDR blocks."""
    return _rule(_blocks(networks), port)


def to_pods(namespace: str, selector: Mapping[str, str] | None, port: int | str) -> Rule:
    """The pods of a namespace with these labels; all of them if `selector` is None."""
    peer: dict[str, Any] = {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: namespace}}}
    if selector is not None:
        peer["podSelector"] = {"matchLabels": dict(sorted(selector.items()))}
    return _rule([peer], port)


def merge(needed: Iterable[tuple[str, Sequence[Rule]]]) -> tuple[SourcedRule, ...]:
    """The rules of several servers without duplicates, in an order that depends on them only.

    Args:
        needed: each server's name and rules; rules are plain data.
    """
    found: dict[bytes, tuple[Rule, set[str]]] = {}
    for server, rules in needed:
        for rule in rules:
            key = msgspec.json.encode(rule, order="sorted")
            found.setdefault(key, (rule, set()))[1].add(server)
    return tuple(
        SourcedRule(rule=rule, servers=tuple(sorted(servers)))
        for _, (rule, servers) in sorted(found.items(), key=lambda item: item[0])
    )


def tell_sources(rules: Sequence[SourcedRule]) -> dict[str, str]:
    """Annotations for the policy that holds these rules, which say what each of them is for."""
    if not rules:
        return {}
    listed = [{"servers": each.servers, "for": summary(each.rule)} for each in rules]
    return {ANNOTATION: msgspec.json.encode(listed).decode()}


def summary(rule: Rule) -> str:
    """A rule in a few words, such as `namespace tools, TCP 8931`.

    Args:
        rule: a NetworkPolicy egress rule.
    """
    peers = " and ".join(summary_of_peer(peer) for peer in rule.get("to") or [{}])
    ports = [f"{p.get('protocol', 'TCP')} {p.get('port', 'any')}" for p in rule.get("ports") or []]
    return f"{peers}, {' and '.join(ports) or 'every port'}"


def summary_of_peer(peer: Mapping[str, Any]) -> str:
    """A peer of a rule in a few words, such as `namespace tools pods app=db`."""
    if peer.get("ipBlock") is not None:
        block = peer["ipBlock"]
        left_out = block.get("except") or ()
        if not left_out:
            return str(block.get("cidr"))
        private = any(list(left_out) == list(each) for each in PRIVATE.values())
        said = "private ones" if private else ", ".join(map(str, left_out))
        return f"{block.get('cidr')} without {said}"
    parts = []
    for key, what in (("namespaceSelector", "namespace"), ("podSelector", "pods")):
        if peer.get(key) is not None:
            labels: Mapping[str, str] = peer[key].get("matchLabels") or {}
            more = [_condition(each) for each in peer[key].get("matchExpressions") or ()]
            named = labels.get(NAMESPACE_LABEL) if len(labels) == 1 and not more else None
            said = ",".join([*(f"{name}={labels[name]}" for name in sorted(labels)), *more])
            parts.append(f"{what} {named or said or 'any'}")
    return " ".join(parts) or "anywhere"


def _condition(said: Mapping[str, Any]) -> str:
    values = ",".join(map(str, said.get("values") or ()))
    return f"{said.get('key')} {said.get('operator')}" + (f" ({values})" if values else "")


def _blocks(networks: Sequence[str]) -> list[dict[str, Any]]:
    return [{"ipBlock": {"cidr": network}} for network in networks]


def _rule(peers: list[dict[str, Any]], port: int | str) -> Rule:
    return {"to": peers, "ports": [{"protocol": "TCP", "port": port}]}
