"""Where objects are in an API server's URLs, and which kinds are known."""

from __future__ import annotations

import pytest

from kars_router.kube import Resource, resource_of
from kars_router.kube.resources import (
    DEPLOYMENTS,
    KNOWN,
    MCP_SERVERS,
    NAMESPACES,
    PODS,
    name_of,
)


@pytest.mark.parametrize(
    ("resource", "where", "path"),
    [
        (PODS, {}, "/api/v1/pods"),
        (PODS, {"namespace": "a"}, "/api/v1/namespaces/a/pods"),
        (PODS, {"namespace": "a", "name": "b"}, "/api/v1/namespaces/a/pods/b"),
        (DEPLOYMENTS, {"namespace": "a"}, "/apis/apps/v1/namespaces/a/deployments"),
        (NAMESPACES, {"namespace": "a", "name": "b"}, "/api/v1/namespaces/b"),
        (
            MCP_SERVERS,
            {"namespace": "a", "name": "b", "subresource": "status"},
            "/apis/kars.azure.com/v1alpha1/namespaces/a/mcpservers/b/status",
        ),
    ],
)
def test_a_path_leads_to_an_object(resource: Resource, where: dict[str, str], path: str) -> None:
    assert resource.path(**where) == path


def test_a_name_cannot_lead_to_another_path() -> None:
    assert PODS.path("a", "../b?c#d") == "/api/v1/namespaces/a/pods/..%2Fb%3Fc%23d"
    assert PODS.path("a/pods/x") == "/api/v1/namespaces/a%2Fpods%2Fx/pods"


@pytest.mark.parametrize("name", ["", ".", ".."])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="no name"):
        PODS.path("a", name)


def test_known_kinds_are_found_by_their_manifests() -> None:
    for resource in KNOWN:
        manifest = {"apiVersion": resource.api_version, "kind": resource.kind}
        assert resource_of(manifest) is resource


@pytest.mark.parametrize(
    ("manifest", "named"),
    [
        ({}, "a kind without a name in no apiVersion"),
        ({"apiVersion": "v2", "kind": "Pod"}, "Pod in v2"),
        ({"apiVersion": ["v1"], "kind": {"a": 1}}, "in"),
    ],
)
def test_other_kinds_are_named(manifest: dict[str, object], named: str) -> None:
    with pytest.raises(KeyError, match=named):
        resource_of(manifest)


def test_a_manifest_says_its_place() -> None:
    assert name_of({"metadata": {"name": "a", "namespace": "b"}}) == ("b", "a")
    assert name_of({"metadata": {"generateName": "a"}}) == (None, "")
    assert name_of({"metadata": 3}) == (None, "")
