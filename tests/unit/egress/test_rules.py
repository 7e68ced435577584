"""Rules of several servers together, and what is said of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.egress import ANNOTATION, explain, merge, summary, tell_sources

URLS = {
    "web": "http://web.tools.svc:8931/mcp",
    "web-sse": "http://WEB.tools.svc.cluster.local:8931/sse",
    "db": "ws://10.0.0.1:81",
    "far": "https://mcp.example.com",
    "far-port": "https://mcp.example.com:8443",
    "other-port": "https://other.example.com:8443",
    "bad": "nonsense",
}


def needed(names: list[str]) -> list[tuple[str, list[Any]]]:
    found = [(name, explain(URLS[name]).rule) for name in names]
    return [(name, [] if rule is None else [rule]) for name, rule in found]


def test_rules_are_told_apart_and_say_who_needs_them() -> None:
    rules = merge(needed([*URLS, "web"]))
    assert [(each.servers, summary(each.rule)) for each in rules] == [
        (("db",), "10.0.0.1/32, TCP 81"),
        (
            ("far-port", "other-port"),
            "0.0.0.0/0 without private ones and ::/0 without private ones, TCP 8443",
        ),
        (("web", "web-sse"), "namespace tools, TCP 8931"),
    ]


@given(st.permutations(list(URLS)))
def test_the_order_is_that_of_the_rules(names: list[str]) -> None:
    assert merge(needed(names)) == merge(needed(list(URLS)))
    assert tell_sources(merge(needed(names))) == tell_sources(merge(needed(list(URLS))))


@given(st.lists(st.sampled_from(list(URLS)), max_size=8))
def test_merging_again_changes_nothing(names: list[str]) -> None:
    once = merge(needed(names))
    again = merge([(server, [each.rule]) for each in once for server in each.servers])
    assert again == once


def test_the_order_of_keys_does_not_matter() -> None:
    rules = merge([("a", [{"to": [], "ports": []}]), ("b", [{"ports": [], "to": []}])])
    assert [each.servers for each in rules] == [("a", "b")]


def test_the_annotation() -> None:
    (found,) = tell_sources(merge(needed(["web", "web-sse"]))).items()
    assert found[0] == ANNOTATION
    assert json.loads(found[1]) == [
        {"servers": ["web", "web-sse"], "for": "namespace tools, TCP 8931"}
    ]
    assert tell_sources(()) == {}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "anywhere, every port"),
        ({"to": [{}], "ports": [{}]}, "anywhere, TCP any"),
        ({"to": [{"podSelector": {}}]}, "pods any, every port"),
        (
            {
                "to": [
                    {
                        "namespaceSelector": {"matchLabels": {"a": "b", "c": "d"}},
                        "podSelector": {"matchLabels": {"app": "db"}},
                    },
                    {"ipBlock": {"cidr": "10.0.0.0/8"}},
                ],
                "ports": [{"protocol": "UDP", "port": 53}, {"port": "http"}],
            },
            "namespace a=b,c=d pods app=db and 10.0.0.0/8, UDP 53 and TCP http",
        ),
    ],
)
def test_a_rule_in_words(rule: dict[str, Any], said: str) -> None:
    assert summary(rule) == said
