"""The policy around one sandbox, whole."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.egress import (
    ANNOTATION,
    PRIVATE,
    Dns,
    SourcedRule,
    explain,
    merge,
    sandbox_policy,
    tell_sources,
)

POD = {"kars.azure.com/sandbox": "browser", "kars.azure.com/component": "sandbox"}
KUBE_DNS = {
    "to": [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
            "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
        }
    ],
    "ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}],
}
HTTPS = {
    "to": [
        {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE[4])}},
        {"ipBlock": {"cidr": "::/0", "except": list(PRIVATE[6])}},
    ],
    "ports": [{"protocol": "TCP", "port": 443}],
}


def needed(*urls: str) -> tuple[SourcedRule, ...]:
    found = [(url, explain(url).rule) for url in urls]
    return merge([(url, [rule]) for url, rule in found if rule is not None])


def policy(*urls: str, **more: Any) -> dict[str, Any]:
    given = {"https": False, "dns": Dns(), **more}
    return sandbox_policy(
        name="browser", namespace="agents", pod_labels=POD, rules=needed(*urls), **given
    )


def test_without_servers_only_names_are_looked_up() -> None:
    assert policy() == {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "browser", "namespace": "agents"},
        "spec": {
            "podSelector": {"matchLabels": POD},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [],
            "egress": [KUBE_DNS],
        },
    }


def test_nothing_at_all() -> None:
    assert policy(dns=None)["spec"]["egress"] == []


def test_what_is_derived_stands_last_and_says_what_it_is_for() -> None:
    urls = ("http://db.tools.svc:81", "http://10.0.0.1", "http://db.tools.svc.cluster.local:81")
    rules = needed(*urls)
    found = policy(*urls, https=True, annotations={"b": "2"}, labels={"z": "1", "a": "2"})
    assert found["spec"]["egress"] == [KUBE_DNS, HTTPS, *(each.rule for each in rules)]
    assert found["metadata"]["annotations"] == {"b": "2", **tell_sources(rules)}
    assert json.loads(found["metadata"]["annotations"][ANNOTATION])[1] == {
        "servers": ["http://db.tools.svc.cluster.local:81", "http://db.tools.svc:81"],
        "for": "namespace tools, TCP 81",
    }
    assert list(found["metadata"]["labels"]) == ["a", "z"]


def test_what_is_open_anyway_is_not_opened_twice() -> None:
    found = policy("http://h.example:444", https=True)
    (world,) = needed("http://h.example:444")
    again = SourcedRule(rule=HTTPS, servers=("far",))
    twice = sandbox_policy(
        name="a", namespace="b", pod_labels=POD, rules=[again, world], https=True, dns=None
    )
    assert twice["spec"]["egress"] == [HTTPS, world.rule]
    assert found["spec"]["egress"] == [KUBE_DNS, HTTPS, world.rule]


def test_names_are_looked_up_elsewhere() -> None:
    dns = Dns(
        namespace="openshift-dns", pod_labels=None, ports=(53, 5353), networks=["169.254.20.10/32"]
    )
    labels = {"kubernetes.io/metadata.name": "openshift-dns"}
    assert dns.rule() == {
        "to": [
            {"namespaceSelector": {"matchLabels": labels}},
            {"ipBlock": {"cidr": "169.254.20.10/32"}},
        ],
        "ports": [
            {"protocol": "UDP", "port": 53},
            {"protocol": "TCP", "port": 53},
            {"protocol": "UDP", "port": 5353},
            {"protocol": "TCP", "port": 5353},
        ],
    }


def test_what_gets_in() -> None:
    rule = {"from": [{"podSelector": {}}], "ports": [{"protocol": "TCP", "port": 9090}]}
    assert policy(ingress=[rule])["spec"]["ingress"] == [rule]


def test_every_pod_is_not_one_sandbox() -> None:
    with pytest.raises(ValueError, match="labels"):
        sandbox_policy(name="a", namespace="b", pod_labels={}, rules=(), https=False, dns=None)


@given(st.permutations(list(POD.items())), st.permutations(["http://a.b.svc", "http://c.b.svc"]))
def test_the_same_servers_make_the_same_bytes(
    labels: list[tuple[str, str]], urls: list[str]
) -> None:
    def made(labels: list[tuple[str, str]], urls: list[str]) -> str:
        rules = merge([("s", [rule]) for url in urls if (rule := explain(url).rule)])
        return json.dumps(
            sandbox_policy(
                name="a",
                namespace="b",
                pod_labels=dict(labels),
                rules=rules,
                https=True,
                dns=Dns(),
                labels=dict(labels),
            )
        )

    assert made(labels, urls) == made(list(POD.items()), ["http://a.b.svc", "http://c.b.svc"])
