"""One rule of a NetworkPolicy as what it opens: peers, and ports towards them.

Owns how defaults and empty lists of a rule are read. Must not know policies as a whole.

Source: Kubernetes API reference, NetworkPolicyEgressRule, NetworkPolicyIngressRule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from attrs import frozen

from kars_router.egress.rules import NAMESPACE_LABEL, summary_of_peer
from kars_router.egress.selectors import PRESENT, Labels, Values, read
from kars_router.egress.spans import Spans, UnreadableError, of_block

PORTS: Final = (1, 65_535)  # nothing connects to port 0
# What has no ports, such as ICMP, passes where a rule names no port at all.
OTHER: Final = "other"
_PROTOCOLS: Final = ("TCP", "UDP", "SCTP")


@frozen
class Port:
    """Ports of one protocol.

    Attributes:
        protocol: TCP, UDP, SCTP, or OTHER.
        low: the first one.
        high: the last one.
        name: what the port of a pod has to be called; "" for any.
    """

    protocol: str
    low: int
    high: int
    name: str = ""

    def __str__(self) -> str:
        if self.protocol == OTHER:
            return "other protocols"
        if self.name:
            return f"{self.protocol} {self.name}"
        if (self.low, self.high) == PORTS:
            return f"{self.protocol} any"
        return f"{self.protocol} {self.low}" + (f"-{self.high}" if self.high > self.low else "")


@frozen
class Peer:
    """Addresses, or pods by labels, or everything if it is neither.

    Attributes:
        said: the peer in a few words.
        addresses: None unless it is a block of them.
        pods: conditions on the labels of a namespace, as `namespace/KEY`, and on those of a pod,
            as `pod/KEY`; None unless it selects pods.
    """

    said: str
    addresses: Spans | None = None
    pods: Labels | None = None


@frozen
class Opening:
    """What a rule, or a part of it, opens: each of the ports of each of the peers."""

    peers: tuple[Peer, ...]
    ports: tuple[Port, ...]


EVERYTHING: Final = Peer("anywhere")
EVERY_PORT: Final = (*(Port(each, *PORTS) for each in _PROTOCOLS), Port(OTHER, *PORTS))


def opened(rule: Mapping[str, Any], side: str, namespace: str) -> Opening:
    """Reads a rule.

    Args:
        rule: an egress or ingress rule.
        side: where its peers are, `to` or `from`.
        namespace: the policy's.

    Raises:
        UnreadableError: there is something in it that no API server would take.
    """
    peers = tuple(_peer(peer, namespace) for peer in rule.get(side) or ())
    ports = tuple(_port(port) for port in rule.get("ports") or ())
    return Opening(peers or (EVERYTHING,), ports or EVERY_PORT)


def _peer(peer: Mapping[str, Any], namespace: str) -> Peer:
    said = summary_of_peer(peer)
    block, pods, spaces = (peer.get(key) for key in ("ipBlock", "podSelector", "namespaceSelector"))
    if block is not None:
        if pods is not None or spaces is not None:
            raise UnreadableError("a peer is a block and a selector at once")
        return Peer(said, addresses=of_block(block))
    if pods is None and spaces is None:
        raise UnreadableError("a peer is neither a block nor a selector")
    if spaces is None:
        spaces = {"matchLabels": {NAMESPACE_LABEL: namespace}}
    of_space = {f"namespace/{key}": values for key, values in read(spaces).items()}
    name = f"namespace/{NAMESPACE_LABEL}"  # which every namespace has
    of_space[name] = of_space.get(name, PRESENT) & PRESENT
    of_pod: dict[str, Values] = {f"pod/{key}": values for key, values in read(pods).items()}
    return Peer(said, pods={**of_space, **of_pod})


def _port(port: Mapping[str, Any]) -> Port:
    protocol = port.get("protocol") or "TCP"
    if protocol not in _PROTOCOLS:
        raise UnreadableError(f"{protocol} is no protocol of a port")
    number, last = port.get("port"), port.get("endPort")
    if number is None:
        if last is not None:
            raise UnreadableError("a range of ports has no beginning")
        return Port(protocol, *PORTS)
    if isinstance(number, str):
        if last is not None:
            raise UnreadableError("a range of ports begins with a name")
        return Port(protocol, *PORTS, number)
    high = number if last is None else last
    if not PORTS[0] <= number <= high <= PORTS[1]:
        raise UnreadableError(f"{number} to {high} is no range of ports")
    return Port(protocol, number, high)
