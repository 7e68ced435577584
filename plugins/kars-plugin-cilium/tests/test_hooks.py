"""Hosts in place of ports of the world, seen through the host of plugins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from attrs import evolve
from kars_plugin_cilium import CiliumPlugin
from kars_plugin_cilium.hooks import RESOURCE

from kars_router.config.auth import OAuth
from kars_router.egress import (
    ANNOTATION,
    Dns,
    Place,
    SandboxEgress,
    Service,
    merge,
    needed_by,
    summary,
)
from kars_router.errors import PluginError
from kars_router.model import ServerInfo
from kars_router.testing import plugin_host

POD = {"kars.azure.com/sandbox": "browser", "app": "a"}
CILIUM = Place(namespace="agents", installed=frozenset({RESOURCE, "pods."}))
LOOK_UP = {
    "toEndpoints": [
        {
            "matchLabels": {
                "k8s:io.kubernetes.pod.namespace": "kube-system",
                "k8s:k8s-app": "kube-dns",
            }
        }
    ],
    "toPorts": [
        {
            "ports": [{"port": "53", "protocol": "ANY"}],
            "rules": {"dns": [{"matchPattern": "*"}]},
        }
    ],
}


def server(name: str, url: str, **more: Any) -> ServerInfo:
    return ServerInfo(name=name, url=url, **more)


def sandbox(*servers: ServerInfo, place: Place = CILIUM) -> SandboxEgress:
    needs = [(each.name, needed_by(each, place)) for each in servers]
    return SandboxEgress(
        name="browser",
        namespace="agents",
        pod_labels=POD,
        labels={"z": "1", "b": "2"},
        servers=servers,
        rules=merge(
            (name, [one.rule for one in found if one.rule is not None]) for name, found in needs
        ),
        https=any(one.https for _, found in needs for one in found),
    )


def asked(before: SandboxEgress, place: Place = CILIUM, **options: Any) -> SandboxEgress:
    return plugin_host(CiliumPlugin(), options=options).egress_objects(before, place)


def to_hosts(port: int, *names: str) -> dict[str, Any]:
    return {
        "toFQDNs": [{"matchName": name} for name in names],
        "toPorts": [{"ports": [{"port": str(port), "protocol": "TCP"}]}],
    }


def opened(after: SandboxEgress) -> list[dict[str, Any]]:
    (manifest,) = after.objects
    spec: Mapping[str, Any] = manifest["spec"]
    return list(spec["egress"])


def test_hosts_stand_in_for_the_world() -> None:
    before = sandbox(
        server("far", "https://MCP.vendor.example./mcp"),
        server("also-far", "wss://mcp.vendor.example"),
        server("port", "https://b.example:8443"),
        server("same-port", "https://bücher.example:8443"),
        server("near", "http://db.tools.svc:81"),
        server("address", "http://10.0.0.1:82"),
    )
    after = asked(before)
    assert not after.https
    assert after.dns is None
    assert [summary(each.rule) for each in after.rules] == [
        "namespace tools, TCP 81",
        "10.0.0.1/32, TCP 82",
    ]
    (manifest,) = after.objects
    assert manifest == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {
            "name": "browser",
            "namespace": "agents",
            "labels": {"b": "2", "z": "1"},
            "annotations": manifest["metadata"]["annotations"],
        },
        "spec": {
            "endpointSelector": {"matchLabels": POD},
            "egress": [
                LOOK_UP,
                to_hosts(443, "mcp.vendor.example"),
                to_hosts(8443, "b.example", "xn--bcher-kva.example"),
            ],
        },
    }
    assert json.loads(manifest["metadata"]["annotations"][ANNOTATION]) == [
        {"servers": ["port"], "for": "b.example, TCP 8443"},
        {"servers": ["also-far", "far"], "for": "mcp.vendor.example, TCP 443"},
        {"servers": ["same-port"], "for": "xn--bcher-kva.example, TCP 8443"},
    ]
    # The NetworkPolicy is still there, and closes what is in neither of them.
    assert after.policy()["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert after.policy()["spec"]["egress"] == [each.rule for each in after.rules]


def test_the_same_sandbox_makes_the_same_bytes() -> None:
    servers = [server(host[0], f"https://{host}") for host in ("a.example:1", "b.example:2")]
    one = asked(sandbox(*servers))
    assert json.dumps(one.objects) == json.dumps(asked(sandbox(*reversed(servers))).objects)


@pytest.mark.parametrize(
    "before",
    [
        sandbox(),
        sandbox(server("near", "http://db.tools.svc"), server("program", "")),
        sandbox(server("address", "https://8.8.8.8"), server("bad", "https://")),
        evolve(sandbox(server("far", "https://a.example")), dns=None),
        evolve(sandbox(server("far", "https://a.example")), https=False),
        evolve(sandbox(server("port", "https://a.example:444")), rules=()),
    ],
)
def test_what_has_no_host_is_left_alone(before: SandboxEgress) -> None:
    assert asked(before) == before


@pytest.mark.parametrize("installed", [(), ("networkpolicies.networking.k8s.io",)])
def test_without_cilium_everything_stays(installed: tuple[str, ...]) -> None:
    before = sandbox(server("far", "https://a.example"), server("port", "https://a.example:444"))
    assert asked(before, Place(installed=frozenset(installed))) == before


def test_an_issuer_is_a_host_as_well() -> None:
    oauth = OAuth(issuer="https://login.example:9443/tenant")
    after = asked(sandbox(server("far", "https://a.example", oauth=oauth)))
    assert opened(after) == [LOOK_UP, to_hosts(443, "a.example"), to_hosts(9443, "login.example")]
    assert not after.https
    assert after.rules == ()


def test_an_issuer_that_nobody_knows_may_be_anywhere() -> None:
    oauth = OAuth()
    after = asked(
        sandbox(
            server("far", "https://a.example", oauth=oauth), server("port", "https://b.example:444")
        )
    )
    assert after.https
    assert opened(after) == [LOOK_UP, to_hosts(444, "b.example")]


def test_a_service_that_stands_for_a_name_has_another_one() -> None:
    place = evolve(CILIUM, service_lookup=lambda *_: Service(external_name="far.example"))
    alias = server("alias", "http://db.tools.svc:81")
    before = sandbox(alias, server("far", "https://a.example.:82"), place=place)
    after = asked(before, place)
    assert opened(after) == [LOOK_UP, to_hosts(82, "a.example")]
    assert [each.servers for each in after.rules] == [("alias",)]
    over_https = sandbox(server("alias", "https://db.tools.svc"), place=place)
    assert asked(over_https, place) == over_https


def test_an_address_that_was_covered_gets_a_rule_of_its_own() -> None:
    servers = [
        server("far", "https://a.example"),
        server("v4", "https://8.8.8.8"),
        server("v6", "https://[2606:4700::1]"),
        server("mapped", "https://[::ffff:9.9.9.9]"),
    ]
    after = asked(sandbox(*servers))
    assert not after.https
    assert [summary(each.rule) for each in after.rules] == [
        "2606:4700::1/128, TCP 443",
        "8.8.8.8/32, TCP 443",
        "9.9.9.9/32, TCP 443",
    ]


def test_networks_that_a_name_may_lead_to_are_opened_by_the_name() -> None:
    networks = ("10.2.0.0/16",)
    after = asked(
        sandbox(
            server("a", "https://a.example", allowed_networks=networks),
            server("b", "https://b.example:444", allowed_networks=networks),
        )
    )
    assert after.rules == ()
    assert opened(after) == [LOOK_UP, to_hosts(443, "a.example"), to_hosts(444, "b.example")]


def test_a_rule_stays_for_the_server_that_still_needs_it() -> None:
    """One that another plugin has widened to what a second server gets by name."""
    before = sandbox(server("port", "https://a.example:444"))
    (rule,) = before.rules
    before = evolve(before, rules=(evolve(rule, servers=("other", "port")),))
    assert [each.servers for each in asked(before).rules] == [("other",)]


def test_port_443_that_no_server_needs_is_somebody_elses() -> None:
    before = evolve(sandbox(server("port", "https://a.example:444")), https=True)
    after = asked(before)
    assert after.https
    assert opened(after) == [LOOK_UP, to_hosts(444, "a.example")]


def test_names_are_looked_up_where_the_cluster_says() -> None:
    dns = Dns(namespace="dns", pod_labels=None, ports=(53, 5353), networks=("169.254.20.10/32",))
    after = asked(evolve(sandbox(server("far", "https://a.example")), dns=dns))
    ports = [
        {
            "ports": [{"port": "53", "protocol": "ANY"}, {"port": "5353", "protocol": "ANY"}],
            "rules": {"dns": [{"matchPattern": "*"}]},
        }
    ]
    assert opened(after)[:2] == [
        {
            "toEndpoints": [{"matchLabels": {"k8s:io.kubernetes.pod.namespace": "dns"}}],
            "toPorts": ports,
        },
        {"toCIDR": ["169.254.20.10/32"], "toPorts": ports},
    ]


def test_further_hosts() -> None:
    hosts = ["OAuth2.example.com.", "login.example:8443"]
    after = asked(sandbox(server("far", "https://a.example")), hosts=hosts)
    assert opened(after)[1:] == [
        to_hosts(443, "a.example", "oauth2.example.com"),
        to_hosts(8443, "login.example"),
    ]
    near = sandbox(server("near", "http://db.tools.svc"))
    assert asked(near, hosts=hosts) == near


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"host": []}, "unknown option `host`"),
        ({"hosts": "a.example"}, "must be a list"),
        ({"hosts": [1]}, "1 is no host"),
        ({"hosts": ["*.example"]}, "is no host"),
        ({"hosts": ["localhost"]}, "is no host"),
        ({"hosts": ["a.example:0"]}, "is no host"),
        ({"hosts": ["a.example:65536"]}, "is no host"),
        ({"hosts": ["https://a.example"]}, "is no host"),
        ({"hosts": [f"{'a.' * 130}example"]}, "is no host"),
    ],
)
def test_options_that_cannot_be_used(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PluginError, match=r"plugins\.options\.plugin: ") as caught:
        plugin_host(CiliumPlugin(), options=options)
    assert said in str(caught.value)
