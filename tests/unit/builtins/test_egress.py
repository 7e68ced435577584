from __future__ import annotations

from typing import Any

from kars_router import egress
from kars_router.builtins.egress import kars_egress_rules
from kars_router.config.auth import OAuth
from kars_router.model import ServerInfo

PLACE = egress.Place(
    namespace="sandbox",
    cluster_domain="k8s.example",
    service_lookup=lambda space, name: egress.Service(
        selector={"in": space, "is": name}, ports={80: 8080}
    ),
)
OTHER: dict[str, Any] = {"to": [], "ports": []}


def test_kars_egress_rules_are_derived_from_the_url() -> None:
    server = ServerInfo(name="s", url="http://db.tools.svc.k8s.example/mcp")
    found = kars_egress_rules(server=server, place=PLACE, rules=[OTHER])
    assert found is not None
    assert list(found) == [
        OTHER,
        egress.explain(
            server.url, cluster_domain="k8s.example", service_lookup=PLACE.service_lookup
        ).rule,
    ]
    assert found[1]["ports"] == [{"protocol": "TCP", "port": 8080}]
    bare = kars_egress_rules(server=ServerInfo(name="s", url="http://db"), place=PLACE, rules=[])
    assert bare is not None
    assert bare[0]["to"][0]["podSelector"]["matchLabels"] == {"in": "sandbox", "is": "db"}


def test_the_networks_of_the_server_are_opened() -> None:
    server = ServerInfo(name="s", url="https://mcp.corp.example", allowed_networks=("10.2.0.0/16",))
    found = kars_egress_rules(server=server, place=egress.Place(), rules=[])
    assert found is not None
    assert found[0]["to"] == [{"ipBlock": {"cidr": "10.2.0.0/16"}}]


def test_where_tokens_come_from_is_opened_too() -> None:
    oauth = OAuth(issuer="https://idp.corp.example:8443/a", allowed_networks=("10.3.0.0/16",))
    server = ServerInfo(name="s", url="https://mcp.corp.example", oauth=oauth)
    found = kars_egress_rules(server=server, place=egress.Place(), rules=[OTHER])
    explained = egress.explain(oauth.issuer or "", networks=oauth.allowed_networks)
    assert found == [OTHER, explained.rule]
    inside = ServerInfo(
        name="s",
        url="http://db.tools.svc.k8s.example",
        oauth=OAuth(issuer="https://idp.auth.svc.k8s.example"),
    )
    both = kars_egress_rules(server=inside, place=PLACE, rules=[])
    assert both is not None
    assert [egress.summary(rule) for rule in both] == [
        "namespace tools pods in=tools,is=db, TCP 8080",
        "namespace auth, TCP 443",
    ]
    # Without an issuer only the server knows, which is not asked.
    asks = ServerInfo(name="s", url="https://mcp.corp.example", oauth=OAuth())
    assert kars_egress_rules(server=asks, place=egress.Place(), rules=[]) is None


def test_what_needs_no_rule() -> None:
    for url in ("", "nonsense", "https://mcp.example.com", "http://localhost:8931"):
        server = ServerInfo(name="s", url=url)
        assert kars_egress_rules(server=server, place=egress.Place(), rules=[]) is None
