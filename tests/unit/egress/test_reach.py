"""What all NetworkPolicies together open beyond a declared one, case by case."""

from __future__ import annotations

from typing import Any

import pytest

from kars_router.egress import PRIVATE, Dns, SourcedRule, sandbox_policy
from kars_router.egress.reach import Excess, Kind, excess, lacking, types

POD = {"kars.azure.com/sandbox": "browser", "app": "agent"}
HERE = "agents"


def space(name: str, **pods: str) -> dict[str, Any]:
    peer: dict[str, Any] = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}
    }
    return {**peer, "podSelector": {"matchLabels": pods}} if pods else peer


def block(cidr: str, *left_out: str) -> dict[str, Any]:
    return {"ipBlock": {"cidr": cidr, **({"except": list(left_out)} if left_out else {})}}


def tcp(*ports: int | str) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port} for port in ports]


def rule(peers: list[Any] | None = None, ports: list[Any] | None = None) -> dict[str, Any]:
    given = {"to": peers, "ports": ports}
    return {key: value for key, value in given.items() if value is not None}


DECLARED_RULES = [
    rule([space("tools", app="db")], tcp(8080)),
    rule([block("10.1.0.0/16", "10.1.2.0/24")], [{"port": 8000, "endPort": 8999}]),
    rule([space("web")], [{"protocol": "TCP"}]),
]
INGRESS = [{"from": [space("ops")], "ports": tcp(9090)}]
DECLARED = sandbox_policy(
    name="browser",
    namespace=HERE,
    pod_labels={"kars.azure.com/sandbox": "browser"},
    rules=[SourcedRule(rule=each, servers=("s",)) for each in DECLARED_RULES],
    https=True,
    dns=Dns(),
    ingress=INGRESS,
)


def other(
    *egress: Any, name: str = "other", namespace: str | None = HERE, **spec: Any
) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    body = {"podSelector": {}, **({"egress": list(egress)} if egress else {}), **spec}
    return {"kind": "NetworkPolicy", "metadata": metadata, "spec": body}


def beyond(*policies: Any) -> list[str]:
    found = excess(POD, DECLARED, [DECLARED, *policies])
    assert all(each.kind is Kind.EGRESS for each in found)
    assert all((each.policy, each.namespace) == ("other", HERE) for each in found)
    return [each.what for each in found]


def test_the_declared_policy_alone() -> None:
    assert excess(POD, DECLARED, [DECLARED]) == ()
    assert lacking(POD, DECLARED, [DECLARED]) == ()


@pytest.mark.parametrize(
    "egress",
    [
        *DECLARED_RULES,
        *DECLARED["spec"]["egress"],
        rule([], []) | {"to": [space("tools", app="db")], "ports": tcp(8080)},
        # Less of everything.
        rule([space("tools", app="db", tier="1")], tcp(8080)),
        rule([block("10.1.0.0/24")], tcp(8000, 8999)),
        rule([block("10.1.3.0/24"), block("10.1.1.1/32")], [{"port": 8500, "endPort": 8600}]),
        rule([block("10.1.0.0/16", "10.1.2.0/23")], tcp(8000)),
        rule([block("10.1.0.5/24")], tcp(8000)),
        rule([block("8.8.8.8/32"), block("2606:4700::/32")], tcp(443)),
        rule([block("0.0.0.0/0", "10.0.0.0/7", *PRIVATE[4][1:])], tcp(443)),
        rule([space("web")], [{}]),
        rule([space("web")], tcp("http", 1, 65_535)),
        rule([space("web", app="x")], [{"port": 1, "endPort": 65_535}]),
        rule([space("kube-system", **{"k8s-app": "kube-dns"})], [{"protocol": "UDP", "port": 53}]),
        # Selectors that say the same in other words.
        rule(
            [
                {
                    "namespaceSelector": {
                        "matchExpressions": [
                            {
                                "key": "kubernetes.io/metadata.name",
                                "operator": "In",
                                "values": ["web"],
                            },
                        ]
                    }
                }
            ],
            tcp(80),
        ),
        rule(
            [
                {
                    "namespaceSelector": space("web")["namespaceSelector"]
                    | {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}
                }
            ],
            tcp(80),
        ),
        # Nothing at all: what no pod and no address is.
        rule([block("10.0.0.0/8", "10.0.0.0/8")]),
        rule([block("10.0.0.0/8", "10.0.0.0/9", "10.128.0.0/9")]),
        rule(
            [
                {
                    "podSelector": {
                        "matchLabels": {"a": "b"},
                        "matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["b"]}],
                    }
                }
            ]
        ),
        rule(
            [
                {
                    "namespaceSelector": {
                        "matchExpressions": [
                            {"key": "kubernetes.io/metadata.name", "operator": "DoesNotExist"}
                        ]
                    }
                }
            ]
        ),
    ],
)
def test_what_is_within_the_declared(egress: dict[str, Any]) -> None:
    assert beyond(other(egress)) == []


@pytest.mark.parametrize(
    ("egress", "said"),
    [
        (rule(), ["every port to anywhere"]),
        (rule([]), ["every port to anywhere"]),
        (rule([], []), ["every port to anywhere"]),
        (rule(ports=tcp(443)), ["TCP 443 to anywhere"]),
        (rule([space("tools", app="db")]),
         [("TCP 1-8079, TCP 8081-65535, UDP any, SCTP any, other protocols to "
           "namespace tools pods app=db")]),
        (rule([space("tools", app="db")], tcp(8081)), ["TCP 8081 to namespace tools pods app=db"]),
        (rule([space("tools", app="db")], [{"protocol": "UDP", "port": 8080}]),
         ["UDP 8080 to namespace tools pods app=db"]),
        (rule([space("tools", app="db")], [{"protocol": "SCTP"}]),
         ["SCTP any to namespace tools pods app=db"]),
        (rule([space("tools", app="db")], tcp("http")),
         ["TCP http to namespace tools pods app=db"]),
        (rule([space("tools", app="web")], tcp(8080)),
         ["TCP 8080 to namespace tools pods app=web"]),
        (rule([space("tools")], tcp(8080)), ["TCP 8080 to a part of namespace tools"]),
        (rule([{"podSelector": {"matchLabels": {"app": "db"}}}], tcp(8080)),
         ["TCP 8080 to pods app=db"]),
        (rule([{"podSelector": {}}], tcp(1)), ["TCP 1 to pods any"]),
        (rule([{"namespaceSelector": {}}], tcp(80)), ["TCP 80 to a part of namespace any"]),
        (rule([block("10.1.0.0/16")], tcp(8000)), ["TCP 8000 to 10.1.2.0/24"]),
        (rule([block("10.1.0.0/16", "10.1.2.0/24")], [{"port": 7990, "endPort": 9001}]),
         ["TCP 7990-7999, TCP 9000-9001 to 10.1.0.0/16 without 10.1.2.0/24"]),
        (rule([block("10.1.0.0/16", "10.1.2.0/24")], [{"port": 8990, "endPort": 9001}]),
         ["TCP 9000-9001 to 10.1.0.0/16 without 10.1.2.0/24"]),
        (rule([block("0.0.0.0/0")], tcp(443)),
         [("TCP 443 to 10.0.0.0/8 and 100.64.0.0/10 and 169.254.0.0/16 and 172.16.0.0/12 and "
           "1 more")]),
        (rule([block("169.254.169.254/32")], tcp(80)), ["TCP 80 to 169.254.169.254/32"]),
        (rule([block("fd00::/8"), block("::1/128")], tcp(443)), ["TCP 443 to fd00::/8"]),
        # A block is no pod and a pod no block, as networks differ in that.
        (rule([block("10.0.0.0/8")], tcp(80)), ["TCP 80 to 10.0.0.0/8"]),
        (rule([space("other")], tcp(443)), ["TCP 443 to namespace other"]),
        # Several peers and several ports of one rule.
        (rule([space("a"), space("web"), space("b")], tcp(80, 81)),
         ["TCP 80, TCP 81 to namespace a", "TCP 80, TCP 81 to namespace b"]),
    ],
)  # fmt: skip
def test_what_is_beyond_the_declared(egress: dict[str, Any], said: list[str]) -> None:
    assert beyond(other(egress)) == said


@pytest.mark.parametrize(
    ("egress", "said"),
    [
        (rule([block("10.0.0.0/40")]), "10.0.0.0/40 is no network"),
        (rule([block("::ffff:10.0.0.0/104")]), "an IPv4 network to some"),
        (rule([block("10.0.0.0/8", "x")]), "x is no network"),
        (rule([{"ipBlock": {}}]), "None is no network"),
        (rule([{}]), "neither"),
        (rule([space("a") | block("10.0.0.0/8")]), "at once"),
        (rule([space("web")], [{"protocol": "ICMP"}]), "ICMP is no protocol"),
        (rule([space("web")], [{"endPort": 5}]), "no beginning"),
        (rule([space("web")], [{"port": "a", "endPort": 5}]), "with a name"),
        (rule([space("web")], [{"port": 9, "endPort": 5}]), "9 to 5"),
        (rule([space("web")], tcp(0)), "0 to 0"),
        (
            rule([{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Like"}]}}]),
            "Like is no operator",
        ),
    ],
)
def test_what_cannot_be_read_is_not_taken_for_harmless(egress: dict[str, Any], said: str) -> None:
    (found,) = beyond(other(egress))
    assert found.startswith("something that cannot be read: ")
    assert said in found
    assert excess(POD, other(egress), [other(egress)])


def test_a_policy_of_which_nobody_knows_whether_it_selects() -> None:
    selector = {"matchExpressions": [{"key": "a", "operator": "Like"}]}
    (found,) = excess(POD, DECLARED, [DECLARED, other(name="odd", podSelector=selector)])
    assert (found.policy, found.rule) == ("odd", "spec.podSelector")


def test_a_single_address_between_two_blocks_is_not_theirs() -> None:
    rules = [rule([block("10.9.0.0/31"), block("10.9.0.3/32")], tcp(80))]
    declared = other(*rules, name="browser", policyTypes=["Egress", "Ingress"])
    more = other(rule([block("10.9.0.0/30")], tcp(80)))
    (found,) = excess(POD, declared, [declared, more])
    assert found.what == "TCP 80 to 10.9.0.2/32"


# --- which policies count ------------------------------------------------------------------------

OPEN = rule(ports=tcp(22))


@pytest.mark.parametrize(
    ("policy", "counts"),
    [
        (other(OPEN), True),
        (other(OPEN, podSelector={"matchLabels": {"app": "agent"}}), True),
        (other(OPEN, podSelector={"matchLabels": {"app": "x"}}), False),
        (other(OPEN, podSelector={"matchLabels": {"app": "agent", "more": "1"}}), False),
        *(
            (other(OPEN, podSelector={"matchExpressions": [expression]}), counts)
            for expression, counts in [
                ({"key": "app", "operator": "In", "values": ["x", "agent"]}, True),
                ({"key": "app", "operator": "In", "values": ["x"]}, False),
                ({"key": "none", "operator": "In", "values": ["x"]}, False),
                ({"key": "app", "operator": "NotIn", "values": ["agent"]}, False),
                ({"key": "app", "operator": "NotIn", "values": ["x"]}, True),
                ({"key": "none", "operator": "NotIn", "values": ["x"]}, True),
                ({"key": "app", "operator": "Exists"}, True),
                ({"key": "none", "operator": "Exists"}, False),
                ({"key": "app", "operator": "DoesNotExist"}, False),
                ({"key": "none", "operator": "DoesNotExist"}, True),
            ]
        ),
        (other(OPEN, namespace="elsewhere"), False),
        (other(OPEN, namespace=None), False),
        # Directions, as the API server fills them in.
        (other(OPEN, policyTypes=["Ingress"]), False),
        (other(OPEN, policyTypes=["Egress"]), True),
        (other(OPEN, policyTypes=[]), True),
        (other(policyTypes=["Egress"]), False),
        (other(egress=[]), False),
    ],
)
def test_which_policies_count(policy: dict[str, Any], counts: bool) -> None:
    assert beyond(policy) == (["TCP 22 to anywhere"] if counts else [])


def test_the_directions_of_a_policy() -> None:
    assert types(other()) == ("Ingress",)
    assert types(other(egress=[])) == ("Ingress",)
    assert types(other(OPEN)) == ("Ingress", "Egress")
    assert types(other(policyTypes=["Egress"])) == ("Egress",)
    assert types({}) == ("Ingress",)


def test_without_any_policy_everything_is_open() -> None:
    found = excess(POD, DECLARED, [])
    assert [(each.kind.value, each.policy, each.rule, each.what) for each in found] == [
        ("unselected", "", "", "there is no NetworkPolicy browser"),
        ("egress", "", "", "every port to anywhere"),
        ("ingress", "", "", "every port from anywhere"),
    ]
    assert lacking(POD, DECLARED, []) == ()


def test_a_declared_policy_that_selects_other_pods() -> None:
    astray = {**DECLARED, "spec": {**DECLARED["spec"], "podSelector": {"matchLabels": {"a": "b"}}}}
    first, *_ = excess(POD, DECLARED, [astray])
    assert (first.kind, first.what) == (Kind.UNSELECTED, "browser does not select the pod")


def test_policies_of_others_may_close_what_ours_should() -> None:
    found = excess(POD, DECLARED, [other(policyTypes=["Ingress", "Egress"])])
    assert [each.kind for each in found] == [Kind.UNSELECTED]
    # What closes one direction leaves the other one as it is.
    found = excess(POD, DECLARED, [other()])
    assert [each.kind for each in found] == [Kind.UNSELECTED, Kind.EGRESS]


def test_ours_as_it_is_now_and_not_as_it_was_meant() -> None:
    changed = {**DECLARED, "spec": {**DECLARED["spec"], "egress": [OPEN]}}
    assert excess(POD, DECLARED, [changed]) == (
        Excess(
            kind=Kind.EGRESS,
            policy="browser",
            namespace=HERE,
            rule="spec.egress[0]",
            what="TCP 22 to anywhere",
        ),
    )
    moved = {**DECLARED, "spec": {**DECLARED["spec"], "podSelector": {"matchLabels": {"a": "b"}}}}
    assert excess(POD, DECLARED, [moved])[0].kind is Kind.UNSELECTED


def test_what_gets_in_is_another_kind() -> None:
    opens = [
        {"from": [{"podSelector": {}}], "ports": tcp(9090)},
        {"from": [space("ops", app="prometheus")], "ports": tcp(9090)},
        {},
    ]
    found = excess(POD, DECLARED, [DECLARED, other(ingress=opens)])
    assert [(each.kind.value, each.rule, each.what) for each in found] == [
        ("ingress", "spec.ingress[0]", "TCP 9090 from pods any"),
        ("ingress", "spec.ingress[2]", "every port from anywhere"),
    ]


def test_the_order_is_that_of_names() -> None:
    policies = [other(OPEN, OPEN, name=name) for name in ("c", "a", "b")]
    found = excess(POD, DECLARED, [*policies, DECLARED])
    assert [each.policy for each in found] == ["a", "a", "b", "b", "c", "c"]
    assert [each.rule for each in found[:2]] == ["spec.egress[0]", "spec.egress[1]"]
    assert excess(POD, DECLARED, [DECLARED, *reversed(policies)]) == found


def test_what_is_lacking() -> None:
    spec = DECLARED["spec"]
    less = {**DECLARED, "spec": {**spec, "egress": spec["egress"][:-1]}}
    assert lacking(POD, DECLARED, [less]) == ("TCP any to namespace web",)
    more = other(rule([space("web")]))
    assert lacking(POD, DECLARED, [less, more]) == ()
    assert lacking(POD, DECLARED, [other(policyTypes=["Egress"], egress=[rule()])]) == ()
    odd = other(policyTypes=["Egress"], egress=[rule([{}])])
    assert len(lacking(POD, DECLARED, [odd])) == len(spec["egress"]) + 1


def test_labels_in_too_many_combinations_are_not_proved() -> None:
    """Each of many declared peers cuts what is left into pieces; the work has a bound."""

    def without(number: int) -> dict[str, Any]:
        said = [
            {"key": f"k{number}-{part}", "operator": "In", "values": ["a"]} for part in range(4)
        ]
        return {"podSelector": {"matchExpressions": said}}

    peers = [without(number) for number in range(40)]
    declared = other(rule(peers, tcp(80)), name="browser", policyTypes=["Egress", "Ingress"])
    found = excess(POD, declared, [declared, other(rule([{"podSelector": {}}], tcp(80)))])
    assert [each.what for each in found] == ["TCP 80 to pods any"]
