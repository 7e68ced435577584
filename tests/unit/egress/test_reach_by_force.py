"""The proof against an evaluation of every point of a small world, written from the documentation.

A point is who may be connected to, and how. Networks differ in whether a block of addresses stands
for pods whose addresses are in it, so each question is asked in both ways.
"""

from __future__ import annotations

import functools
import ipaddress
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import frozen
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from kars_router.egress.openings import OTHER
from kars_router.egress.reach import Kind, excess, lacking

POD = {"app": "a"}
NAME = "kubernetes.io/metadata.name"
# No cluster has all of these at once, but each could be there.
SPACES = [
    {NAME: name} | ({"team": team} if team else {})
    for name, team in itertools.product("abz", ("", "x", "y", "z"))
]


@frozen
class There:
    """Somebody to connect to: an address, a pod with one, or (without either) a node."""

    address: str = ""
    space: int = -1  # in SPACES
    labels: tuple[tuple[str, str], ...] = ()
    http: int = 0  # the number of its port called http


ADDRESSES = [
    *("10.0.0.0", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.7", "10.0.0.8"),
    *("9.255.255.255", "255.255.255.255", "0.0.0.0"),
    *("fd00::", "fd00::1", "fd00::2", "fd00::3", "fd00::4", "::", "fcff:ffff::"),
]
LABELS = [
    tuple((key, value) for key, value in (("app", app), ("tier", tier)) if value)
    for app, tier in itertools.product(("", "a", "b", "z"), ("", "1"))
]
EVERYBODY = [
    There(),
    *(There(address=address) for address in ADDRESSES),
    *(
        There(address=f"10.0.0.{index % 8}", space=space, labels=labels, http=80 + index % 3)
        for index, (space, labels) in enumerate(itertools.product(range(len(SPACES)), LABELS))
    ),
]
WAYS = [
    *itertools.product(("TCP", "UDP", "SCTP"), (1, 79, 80, 81, 82, 91, 65_535)),
    (OTHER, 0),
]


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for said in selector.get("matchExpressions", []):
        value = labels.get(said["key"])
        fine = {
            "In": value is not None and value in said.get("values", ()),
            "NotIn": value is None or value not in said.get("values", ()),
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[said["operator"]]
        if not fine:
            return False
    return True


@functools.cache
def within(address: str, cidr: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(cidr)


def is_peer(peer: Mapping[str, Any], there: There, pods_in_blocks: bool) -> bool:
    is_pod = there.space >= 0
    if "ipBlock" in peer:
        if not there.address or (is_pod and not pods_in_blocks):
            return False
        block = peer["ipBlock"]
        left_out = block.get("except", [])
        return within(there.address, block["cidr"]) and not any(
            within(there.address, each) for each in left_out
        )
    if not is_pod:
        return False
    of_policy = {"matchLabels": {NAME: "a"}}
    if not selects(peer.get("namespaceSelector", of_policy), SPACES[there.space]):
        return False
    return selects(peer.get("podSelector", {}), dict(there.labels))


def is_port(port: Mapping[str, Any], way: tuple[str, int], http: int) -> bool:
    protocol, number = way
    if port.get("protocol", "TCP") != protocol:
        return False
    first = port.get("port")
    if first is None:
        return True
    if first == "http":
        return http == number
    return bool(first <= number <= port.get("endPort", first))


def admitted(policies: Sequence[Any], side: str, pods_in_blocks: bool) -> set[tuple[int, int]]:
    """All that passes for the pod in one direction: who, and how, by their numbers."""
    key = "egress" if side == "to" else "ingress"
    mine = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == "a" and selects(policy["spec"]["podSelector"], POD)
    ]
    restricting = [
        spec
        for spec in mine
        if key.capitalize() in spec.get("policyTypes", ())
        or (not spec.get("policyTypes") and (key == "ingress" or spec.get("egress")))
    ]
    if not restricting:
        return set(itertools.product(range(len(EVERYBODY)), range(len(WAYS))))
    passing: set[tuple[int, int]] = set()
    for rule in itertools.chain.from_iterable(spec.get(key, ()) for spec in restricting):
        peers, ports = rule.get(side) or [], rule.get("ports") or []
        ways = {
            http: [
                index
                for index, way in enumerate(WAYS)
                if not ports or any(is_port(port, way, http) for port in ports)
            ]
            for http in (0, 80, 81, 82)
        }
        for index, there in enumerate(EVERYBODY):
            if not peers or any(is_peer(peer, there, pods_in_blocks) for peer in peers):
                passing.update((index, way) for way in ways[there.http])
    return passing


# --- policies ------------------------------------------------------------------------------------

Data = st.SearchStrategy[dict[str, Any]]


def selectors(keys: Mapping[str, Sequence[str]]) -> Data:
    def conditions(key: str) -> Data:
        values = st.lists(st.sampled_from(keys[key]), min_size=1, max_size=2, unique=True)
        return st.one_of(
            st.builds(
                lambda operator, values: {"key": key, "operator": operator, "values": values},
                st.sampled_from(["In", "NotIn"]),
                values,
            ),
            st.sampled_from(["Exists", "DoesNotExist"]).map(
                lambda operator: {"key": key, "operator": operator}
            ),
        )

    labels = st.sampled_from([*keys]).flatmap(
        lambda key: st.sampled_from(keys[key]).map(lambda value: {key: value})
    )
    return st.one_of(
        st.just({}),
        labels.map(lambda chosen: {"matchLabels": chosen}),
        st.lists(st.sampled_from([*keys]).flatmap(conditions), min_size=1, max_size=2).map(
            lambda said: {"matchExpressions": said}
        ),
        st.builds(
            lambda chosen, said: {"matchLabels": chosen, "matchExpressions": [said]},
            labels,
            st.sampled_from([*keys]).flatmap(conditions),
        ),
    )


OF_PODS = selectors({"app": ["a", "b"], "tier": ["1"]})
OF_SPACES = selectors({NAME: ["a", "b"], "team": ["x", "y"]})
V4 = [
    *("0.0.0.0/0", "10.0.0.0/29", "10.0.0.0/30", "10.0.0.2/31"),
    *("10.0.0.4/30", "10.0.0.1/32", "10.0.0.3/32"),
]
V6 = ["::/0", "fd00::/126", "fd00::2/127", "fd00::1/128", "fd00::/8"]


def blocks(cidrs: list[str]) -> Data:
    some = st.sampled_from(cidrs)
    return st.builds(
        lambda cidr, left_out: {"ipBlock": {"cidr": cidr, "except": left_out}},
        some,
        st.lists(some, max_size=2, unique=True),
    )


PEERS = st.one_of(
    blocks(V4),
    blocks(V6),
    OF_PODS.map(lambda chosen: {"podSelector": chosen}),
    OF_SPACES.map(lambda chosen: {"namespaceSelector": chosen}),
    st.builds(
        lambda spaces, pods: {"namespaceSelector": spaces, "podSelector": pods}, OF_SPACES, OF_PODS
    ),
)
PROTOCOLS = st.sampled_from(["TCP", "UDP", "SCTP"])
NUMBERED = st.one_of(
    st.just({}),
    PROTOCOLS.map(lambda protocol: {"protocol": protocol}),
    st.builds(
        lambda protocol, port: {"protocol": protocol, "port": port},
        PROTOCOLS,
        st.sampled_from([79, 80, 81]),
    ),
    st.sampled_from([(1, 65_535), (1, 80), (80, 90), (81, 65_535), (79, 81)]).map(
        lambda ends: {"port": ends[0], "endPort": ends[1]}
    ),
)
NAMED = PROTOCOLS.map(lambda protocol: {"protocol": protocol, "port": "http"})


def rules(side: str, ports: Data) -> Data:
    return st.fixed_dictionaries(
        {}, optional={side: st.lists(PEERS, max_size=3), "ports": st.lists(ports, max_size=3)}
    )


@st.composite
def policies(draw: st.DrawFn, ports: Data, name: str, most: int = 2) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "podSelector": draw(
            st.sampled_from([{}, {"matchLabels": POD}, {"matchLabels": {"b": "c"}}])
        )
    }
    for key, side in (("egress", "to"), ("ingress", "from")):
        if draw(st.booleans()):
            spec[key] = draw(st.lists(rules(side, ports), max_size=most))
    if draw(st.booleans()):
        spec["policyTypes"] = draw(
            st.sampled_from([["Egress"], ["Ingress"], ["Ingress", "Egress"], []])
        )
    metadata = {"name": name, "namespace": draw(st.sampled_from(["a", "a", "a", "b"]))}
    return {"metadata": metadata, "spec": spec}


@st.composite
def declarations(draw: st.DrawFn, ports: Data) -> dict[str, Any]:
    made = draw(policies(ports, "ours", most=6))
    made["metadata"]["namespace"] = "a"
    made["spec"] |= {"podSelector": {"matchLabels": POD}, "policyTypes": ["Ingress", "Egress"]}
    return made


ANY_PORTS = st.one_of(NUMBERED, NAMED)
SIDES = {Kind.EGRESS: "to", Kind.INGRESS: "from"}
WIDE = {
    "metadata": {"name": "ours", "namespace": "a"},
    "spec": {
        "podSelector": {"matchLabels": POD},
        "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [{"namespaceSelector": {}}], "ports": [{"port": "http"}]}],
    },
}


@settings(max_examples=120, deadline=None)
@given(declarations(ANY_PORTS), st.lists(policies(ANY_PORTS, "other"), max_size=3), st.booleans())
@example(WIDE, [], True)
def test_what_is_not_reported_is_not_open(
    declared: dict[str, Any], others: list[dict[str, Any]], there: bool
) -> None:
    live = [*others, declared] if there else others
    found = {each.kind for each in excess(POD, declared, live)}
    assert (Kind.UNSELECTED in found) is not there
    for kind, side in SIDES.items():
        if kind not in found:
            for pods_in_blocks in (True, False):
                beyond = admitted(live, side, pods_in_blocks) - admitted(
                    [declared], side, pods_in_blocks
                )
                assert not beyond


@settings(max_examples=80, deadline=None)
@given(declarations(NUMBERED), st.lists(policies(NUMBERED, "other"), max_size=2), st.booleans())
def test_what_is_reported_is_open(
    declared: dict[str, Any], others: list[dict[str, Any]], there: bool
) -> None:
    """Where no port has a name, and every set of labels that selectors can tell apart has a pod."""
    live = [*others, declared] if there else others
    found = {each.kind for each in excess(POD, declared, live)}
    for kind, side in SIDES.items():
        if kind in found:
            assert any(
                admitted(live, side, pods_in_blocks) - admitted([declared], side, pods_in_blocks)
                for pods_in_blocks in (True, False)
            )


# One opening of somebody else next to several declared ones of the same kind, so that they often
# touch, overlap and cover each other.


@st.composite
def neighbours(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """A declared policy, another one, and whether a port has a name."""
    peers = draw(
        st.sampled_from(
            [
                blocks(V4),
                blocks(V6),
                st.one_of(blocks(V4), blocks(V6)),
                OF_PODS.map(lambda chosen: {"podSelector": chosen}),
                OF_SPACES.map(lambda chosen: {"namespaceSelector": chosen}),
                PEERS,
            ]
        )
    )
    named = draw(st.booleans())
    one = st.sampled_from([79, 80, 81, 82])
    of_tcp = st.one_of(
        one.map(lambda port: {"port": port}),
        st.tuples(one, one).map(lambda ends: {"port": min(ends), "endPort": max(ends)}),
        st.sampled_from([(1, 79), (1, 80), (81, 65_535), (80, 65_535)]).map(
            lambda ends: {"protocol": "TCP", "port": ends[0], "endPort": ends[1]}
        ),
        *([NAMED.filter(lambda port: port["protocol"] == "TCP")] if named else []),
        st.just({}),
    )
    ports = draw(
        st.sampled_from(
            [
                st.lists(NUMBERED, max_size=0),
                st.lists(of_tcp, min_size=1, max_size=2),
                st.just([{"port": 80}]),
                st.lists(NUMBERED, max_size=4),
            ]
        )
    )
    rule = st.fixed_dictionaries({"to": st.lists(peers, max_size=2), "ports": ports})
    only = st.fixed_dictionaries({"to": st.lists(peers, min_size=1, max_size=1), "ports": ports})

    def made(name: str, rules: list[dict[str, Any]]) -> dict[str, Any]:
        spec = {"podSelector": {}, "policyTypes": ["Egress", "Ingress"], "egress": rules}
        return {"metadata": {"name": name, "namespace": "a"}, "spec": spec}

    declared = made("ours", draw(st.lists(rule, min_size=1, max_size=4)))
    return declared, made("other", [draw(only)]), named


@settings(max_examples=300, deadline=None)
@given(neighbours())
def test_the_proof_is_exact_between_neighbours(
    drawn: tuple[dict[str, Any], dict[str, Any], bool],
) -> None:
    declared, other, named = drawn
    beyond = any(
        admitted([other], "to", pods_in_blocks) - admitted([declared], "to", pods_in_blocks)
        for pods_in_blocks in (True, False)
    )
    found = excess(POD, declared, [declared, other])
    assert all((each.kind, each.policy) == (Kind.EGRESS, "other") for each in found)
    assert bool(found) is beyond or (named and found)


@settings(max_examples=80, deadline=None)
@given(declarations(ANY_PORTS), st.lists(policies(ANY_PORTS, "other"), max_size=3))
def test_what_does_not_lack_is_open(declared: dict[str, Any], others: list[dict[str, Any]]) -> None:
    assume(not lacking(POD, declared, others))
    for pods_in_blocks in (True, False):
        assert admitted([declared], "to", pods_in_blocks) <= admitted(others, "to", pods_in_blocks)
