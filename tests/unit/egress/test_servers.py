"""Everything that one server needs, and what a Service says of its pods."""

from __future__ import annotations

from typing import Any

import pytest

from kars_router.config.auth import OAuth
from kars_router.egress import Place, Scope, Service, explain, needed_by, service_from
from kars_router.model import ServerInfo


def test_a_program_needs_nothing() -> None:
    assert needed_by(ServerInfo(name="s"), Place()) == ()


def test_the_url_and_the_issuer() -> None:
    oauth = OAuth(issuer="https://idp.corp.example:8443/a", allowed_networks=("10.3.0.0/16",))
    server = ServerInfo(name="s", url="http://db", oauth=oauth, allowed_networks=("10.4.0.0/16",))
    url, issuer = needed_by(server, Place(namespace="kars-a"))
    assert url == explain("http://db", "kars-a", networks=("10.4.0.0/16",))
    assert issuer == explain("https://idp.corp.example:8443/a", networks=("10.3.0.0/16",))
    assert not url.https
    assert not issuer.https


def test_an_issuer_that_only_the_server_names() -> None:
    url, issuer = needed_by(ServerInfo(name="s", url="http://db", oauth=OAuth()), Place())
    assert not url.https
    assert (issuer.scope, issuer.host, issuer.https, issuer.rule) == (
        Scope.EXTERNAL,
        None,
        True,
        None,
    )


@pytest.mark.parametrize(
    ("url", "https"),
    [
        ("https://mcp.example.com", True),
        ("http://mcp.example.com:443", True),
        ("https://8.8.8.8", True),
        ("https://[2606:4700::1]", True),
        ("https://mcp.example.com:8443", False),
        ("https://10.0.0.1", False),
        ("https://db.tools.svc", False),
        ("https://localhost", False),
        ("nonsense", False),
    ],
)
def test_who_needs_what_the_base_policy_opens(url: str, https: bool) -> None:
    assert explain(url).https is https
    if explain(url).scope is Scope.EXTERNAL:
        assert explain(url, networks=["10.0.0.0/8"]).https is https


def test_an_alias_needs_it_as_well() -> None:
    service = Service(external_name="mcp.example.com")
    assert explain("https://db.tools.svc", service_lookup=lambda *_: service).https


@pytest.mark.parametrize(
    ("spec", "service"),
    [
        (None, Service()),
        ({"ports": None, "selector": None}, Service()),
        (
            {"selector": {"app": "db"}, "ports": [{"port": 80}], "clusterIP": "10.0.0.9"},
            Service(selector={"app": "db"}, ports={80: 80}),
        ),
        (
            {
                "ports": [
                    {"port": 80, "targetPort": 8080, "protocol": "TCP"},
                    {"port": 81, "targetPort": "http"},
                    {"port": 82, "targetPort": 0},
                    {"port": 53, "targetPort": 5353, "protocol": "UDP"},
                ]
            },
            Service(ports={80: 8080, 81: "http", 82: 82}),
        ),
        ({"clusterIP": "None", "ports": [{"port": 1}]}, Service(ports={1: 1}, headless=True)),
        (
            {"type": "ExternalName", "externalName": "mcp.example.com"},
            Service(external_name="mcp.example.com"),
        ),
        ({"type": "ClusterIP", "externalName": "mcp.example.com"}, Service()),
    ],
)
def test_a_service_as_the_cluster_gives_it(spec: Any, service: Service) -> None:
    assert service_from({"kind": "Service", "spec": spec}) == service
