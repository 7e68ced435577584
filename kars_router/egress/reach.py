"""The proof: what all NetworkPolicies together open to a pod, beyond what was declared for it.

What is reported may be more than is reachable; that nothing is reported means that nothing beyond
the declared policy is admitted by any NetworkPolicy. Sets of addresses and of labels are compared
exactly, but an address is never taken for a pod or the other way round, as networks differ in
that, and the port behind a name is not known.

Must not know policies of other kinds, nor who asks.

Source: Kubernetes "Network Policies": a pod that no policy selects for a direction is open in it;
one that is selected admits what any rule of any of its policies admits.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from kars_router.egress.openings import EVERY_PORT, EVERYTHING, Opening, Peer, Port, opened
from kars_router.egress.selectors import match, outside, read
from kars_router.egress.spans import UnreadableError, join, minus, networks

Manifest = Mapping[str, Any]

_MOST_NETWORKS: Final = 4  # in a sentence


class Kind(enum.StrEnum):
    """What a finding is about."""

    EGRESS = "egress"
    INGRESS = "ingress"
    UNSELECTED = "unselected"


_SIDES: Final = {Kind.EGRESS: ("Egress", "to"), Kind.INGRESS: ("Ingress", "from")}


@frozen(kw_only=True)
class Excess:
    """Something that is open and was not declared.

    Attributes:
        kind: out of the pod, into it, or that the declared policy does not select it.
        policy: the one that opens it; "" if it is open because there is none.
        namespace: the pod's.
        rule: where in the policy, such as `spec.egress[0]`, or "".
        what: ports and peers in a few words.
    """

    kind: Kind
    policy: str
    namespace: str
    rule: str
    what: str


def excess(
    pod_labels: Mapping[str, str], declared: Manifest, policies: Sequence[Manifest]
) -> tuple[Excess, ...]:
    """What policies open to a pod beyond what was declared.

    Args:
        pod_labels: the pod's labels.
        declared: the NetworkPolicy that was meant to be all that selects the pod.
        policies: the NetworkPolicies that there are, the declared one among them as it is now;
            those of other namespaces do not matter.

    Returns:
        Findings, in an order that depends on them only.
    """
    name, namespace = _name(declared)
    here, unclear = _selecting(pod_labels, namespace, policies)

    def note(kind: Kind, policy: str, rule: str, what: str) -> Excess:
        return Excess(kind=kind, policy=policy, namespace=namespace, rule=rule, what=what)

    found = [
        note(Kind.EGRESS, who, "spec.podSelector", f"something that cannot be read: {why}")
        for who, why in unclear
    ]
    if all(_name(policy)[0] != name for policy in here):
        there = any(_name(policy) == (name, namespace) for policy in policies)
        what = f"{name} does not select the pod" if there else f"there is no NetworkPolicy {name}"
        found.append(note(Kind.UNSELECTED, "", "", what))
    for kind, (kind_of_rule, _) in _SIDES.items():
        meant = [each for each, _ in _openings(declared, kind) if isinstance(each, Opening)]
        those = [policy for policy in here if kind_of_rule in types(policy)]
        if not those:
            rest = _beyond(Opening((EVERYTHING,), EVERY_PORT), meant, kind)
            found += [note(kind, "", "", what) for what in rest]
        found += [
            note(kind, _name(policy)[0], rule, what)
            for policy in those
            for opening, rule in _openings(policy, kind)
            for what in _beyond(opening, meant, kind)
        ]
    return tuple(found)


def lacking(
    pod_labels: Mapping[str, str], declared: Manifest, policies: Sequence[Manifest]
) -> tuple[str, ...]:
    """What was declared to get out of a pod and is not open, in a few words each.

    Args:
        pod_labels: the pod's labels.
        declared: the NetworkPolicy that says what is to be open.
        policies: the NetworkPolicies that there are.
    """
    selecting, _ = _selecting(pod_labels, _name(declared)[1], policies)
    here = [policy for policy in selecting if "Egress" in types(policy)]
    if not here:
        return ()
    there = [
        opening
        for policy in here
        for opening, _ in _openings(policy, Kind.EGRESS)
        if isinstance(opening, Opening)
    ]
    return tuple(
        what
        for opening, _ in _openings(declared, Kind.EGRESS)
        for what in _beyond(opening, there, Kind.EGRESS)
    )


def types(policy: Manifest) -> tuple[str, ...]:
    """The directions that a policy is for, with the API server's defaults."""
    spec = policy.get("spec") or {}
    if said := spec.get("policyTypes"):
        return tuple(said)
    return ("Ingress", "Egress") if spec.get("egress") else ("Ingress",)


def _selecting(
    pod_labels: Mapping[str, str], namespace: str, policies: Sequence[Manifest]
) -> tuple[list[Manifest], list[tuple[str, str]]]:
    """The policies that select a pod, and those of which that cannot be said, with the reason."""
    here, unclear = [], []
    for policy in sorted(policies, key=_name):
        name, where = _name(policy)
        selector = (policy.get("spec") or {}).get("podSelector")
        if where != namespace or _misses(selector, pod_labels):
            continue
        try:
            if match(read(selector), pod_labels):
                here.append(policy)
        except UnreadableError as error:
            unclear.append((name, str(error)))
    return here, unclear


def _misses(selector: object, pod_labels: Mapping[str, str]) -> bool:
    """Whether a label is missing; told at a glance, as there may be hundreds of policies."""
    wanted = selector.get("matchLabels") if isinstance(selector, Mapping) else None
    return isinstance(wanted, Mapping) and any(
        isinstance(value, str) and pod_labels.get(key) != value for key, value in wanted.items()
    )


def _name(policy: Manifest) -> tuple[str, str]:
    metadata = policy.get("metadata") or {}
    return str(metadata.get("name") or ""), str(metadata.get("namespace") or "default")


def _openings(policy: Manifest, kind: Kind) -> Iterator[tuple[Opening | UnreadableError, str]]:
    """Each rule, and where it stands."""
    key, (_, side) = kind.value, _SIDES[kind]
    for index, rule in enumerate((policy.get("spec") or {}).get(key) or ()):
        try:
            opening: Opening | UnreadableError = opened(rule, side, _name(policy)[1])
        except UnreadableError as error:
            opening = error
        yield opening, f"spec.{key}[{index}]"


def _beyond(
    opening: Opening | UnreadableError, declared: Sequence[Opening], kind: Kind
) -> Iterator[str]:
    """What a rule opens that none of the declared ones does."""
    if isinstance(opening, UnreadableError):
        yield f"something that cannot be read: {opening}"
        return
    side = _SIDES[kind][1]
    for peer in opening.peers:
        left: dict[str, list[Port]] = {}
        for port in opening.ports:
            for part, rest in _left(peer, port, declared):
                left.setdefault(rest, []).append(part)
        for rest, ports in left.items():
            yield f"{_say(ports)} {side} {rest}"


def _left(peer: Peer, port: Port, declared: Sequence[Opening]) -> Iterator[tuple[Port, str]]:
    """The parts of a port on which a peer, or the rest of it that is said, is not declared."""
    alike = [
        (theirs, opening.peers)
        for opening in declared
        for theirs in opening.ports
        if theirs.protocol == port.protocol and theirs.name in ("", port.name)
    ]
    before: tuple[int, str] | None = None  # where a part begins, and what is said of it
    ends = {theirs.high + 1 for theirs, _ in alike}
    cuts = sorted({theirs.low for theirs, _ in alike} | ends | {port.low})
    for low in [cut for cut in cuts if port.low <= cut <= port.high]:
        there = [
            each for theirs, peers in alike if theirs.low <= low <= theirs.high for each in peers
        ]
        rest = _uncovered(peer, there)
        if before is not None and before[1] != rest:
            if before[1]:
                yield Port(port.protocol, before[0], low - 1, port.name), before[1]
            before = None
        before = before or (low, rest)
    if before is not None and before[1]:
        yield Port(port.protocol, before[0], port.high, port.name), before[1]


def _uncovered(peer: Peer, declared: Sequence[Peer]) -> str:
    """What of a peer is none of those declared; "" if that is nothing."""
    if EVERYTHING in declared:
        return ""
    if peer.addresses is not None:
        theirs = join(span for each in declared for span in each.addresses or ())
        left = minus(peer.addresses, theirs)
        if left in ((), peer.addresses):
            return peer.said if left else ""
        said = networks(left)
        more = len(said) - _MOST_NETWORKS
        return " and ".join(said[:_MOST_NETWORKS]) + (f" and {more} more" if more > 0 else "")
    if peer.pods is not None:
        beyond = outside(peer.pods, [each.pods for each in declared if each.pods is not None])
        if beyond in ([], [peer.pods]):
            return peer.said if beyond else ""
        return f"a part of {peer.said}"
    return peer.said


def _say(ports: Sequence[Port]) -> str:
    if tuple(ports) == EVERY_PORT:
        return "every port"
    # A port by its name may be left in several parts of the numbers it can stand for.
    return ", ".join(dict.fromkeys(map(str, ports)))
