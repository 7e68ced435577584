"""Which servers a sandbox gets."""

from __future__ import annotations

from typing import Any

import pytest

from kars_router.config.references import admits, servers_of
from kars_router.config.resources import (
    API_VERSION,
    KarsSandboxResource,
    McpServerResource,
    structure_resource,
)


def server(name: str, namespace: str = "agents", **spec: Any) -> McpServerResource:
    metadata = {"name": name, "namespace": namespace, **spec.pop("metadata", {})}
    spec = {"url": "http://db:81", **spec}
    spec = {key: value for key, value in spec.items() if value is not None}
    found = structure_resource(
        {"apiVersion": API_VERSION, "kind": "McpServer", "metadata": metadata, "spec": spec}
    )
    assert isinstance(found, McpServerResource)
    return found


def sandbox(*refs: Any, single: Any = None, **labels: str) -> KarsSandboxResource:
    governance = {"mcpServerRefs": [*refs]} | ({"mcpServerRef": single} if single else {})
    found = structure_resource(
        {
            "apiVersion": API_VERSION,
            "kind": "KarsSandbox",
            "metadata": {"name": "s", "namespace": "agents", "labels": labels},
            "spec": {"governance": governance},
        }
    )
    assert isinstance(found, KarsSandboxResource)
    return found


def test_references_are_followed_in_their_order() -> None:
    there: dict[tuple[str, str], McpServerResource | str] = {
        ("agents", "b"): server("b"),
        ("tools", "a"): server("a", "tools", allowedSandboxes={"namespaces": ["agents"]}),
        ("agents", "odd"): "spec.url: is missing",
    }
    refs = [{"name": "b"}, {"name": "a", "namespace": "tools"}, {"name": "odd"}, {"name": "no"}]
    found, refused = servers_of(sandbox(*refs), lambda *key: there.get(key))
    assert [each.meta.name for each in found] == ["b", "a"]
    assert [(each.namespace, each.name, each.message) for each in refused] == [
        ("agents", "odd", "McpServer agents/odd cannot be read: spec.url: is missing"),
        ("agents", "no", "McpServer agents/no is not there; apply it"),
    ]


def test_the_older_reference() -> None:
    found, refused = servers_of(sandbox(single={"name": "b"}), lambda *_: server("b"))
    assert ([each.meta.name for each in found], refused) == (["b"], ())


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (server("a", managed={"preset": "playwright"}, url=None), "not supported"),
        (server("a", metadata={"deletionTimestamp": "2026-01-01T00:00:00Z"}), "is not there"),
        (server("a", allowedSandboxes={"matchLabels": {"team": "b"}}), "does not admit"),
    ],
)
def test_what_is_refused(there: McpServerResource, said: str) -> None:
    found, (refused,) = servers_of(sandbox({"name": "a"}, team="a"), lambda *_: there)
    assert found == ()
    assert refused.message.startswith("McpServer agents/a ")
    assert said in refused.message


@pytest.mark.parametrize(
    ("namespace", "allowed", "admitted"),
    [
        ("agents", {}, True),
        ("tools", {}, False),
        ("tools", {"namespaces": ["other"]}, False),
        ("tools", {"namespaces": ["other", "agents"]}, True),
        ("tools", {"namespaces": ["*"]}, True),
        ("agents", {"namespaces": ["other"]}, True),
        ("agents", {"matchLabels": {"team": "a"}}, True),
        ("agents", {"matchLabels": {"team": "a", "tier": "1"}}, False),
        ("tools", {"namespaces": ["*"], "matchLabels": {"team": "b"}}, False),
    ],
)
def test_who_is_admitted(namespace: str, allowed: dict[str, Any], admitted: bool) -> None:
    there = server("a", namespace, allowedSandboxes=allowed)
    assert admits(there, sandbox(team="a")) is admitted
