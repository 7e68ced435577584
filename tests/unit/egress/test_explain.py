"""From a URL to a rule: the table of the derivation."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kars_router.egress import PRIVATE, Explanation, Scope, Service, explain

WORLD = [
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": list(PRIVATE[4])}},
    {"ipBlock": {"cidr": "::/0", "except": list(PRIVATE[6])}},
]


def ports(port: int | str) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": port}]


def namespace(name: str, pods: Mapping[str, str] | None = None) -> dict[str, Any]:
    peer: dict[str, Any] = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}
    }
    return peer if pods is None else {**peer, "podSelector": {"matchLabels": pods}}


def fields(found: Explanation) -> tuple[object, ...]:
    return found.scope.value, found.host, found.port, found.namespace


# --- reading the URL -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        # What kars itself reads, read alike but for letter case.
        ("https://mcp.deepwiki.com/mcp", "mcp.deepwiki.com", 443),
        ("https://host.example:8443/mcp?x=1#frag", "host.example", 8443),
        ("https://user:pw@host.example/x", "host.example", 443),
        ("HTTPS://Host.Example/", "host.example", 443),
        # Scheme defaults.
        ("http://host.example", "host.example", 80),
        ("ws://host.example/", "host.example", 80),
        ("wss://host.example/", "host.example", 443),
        ("WsS://host.example:444", "host.example", 444),
        # What ends the authority, and what is in it besides.
        ("https://host.example?x", "host.example", 443),
        ("https://host.example#x", "host.example", 443),
        ("https://host.example?@evil.example", "host.example", 443),
        ("https://evil.example@host.example", "host.example", 443),
        ("https://a@b@host.example:81/", "host.example", 81),
        ("https://user:p%40w:81@host.example/", "host.example", 443),
        ("https://u:1/@host.example", "u", 1),
        # Dots, digits, ports.
        ("https://host.example./", "host.example", 443),
        ("https://host.example.:8443", "host.example", 8443),
        ("https://host.example:1", "host.example", 1),
        ("https://host.example:65535", "host.example", 65535),
        ("https://host.example:0443", "host.example", 443),
        ("  https://host.example \n", "host.example", 443),
        ("https://my_host.example", "my_host.example", 443),
        ("https://1.host.example", "1.host.example", 443),
        # Other scripts.
        ("https://Bücher.example/", "xn--bcher-kva.example", 443),
        ("https://xn--bcher-kva.example/", "xn--bcher-kva.example", 443),
        ("https://例え.テスト/", "xn--r8jz45g.xn--zckzah", 443),
        ("https://straße.example/", "xn--strae-oqa.example", 443),
        ("https://host。example/", "host.example", 443),
        ("https://\uff28\uff2f\uff33\uff34.example/", "host.example", 443),
    ],
)
def test_hosts_and_ports(url: str, host: str, port: int) -> None:
    found = explain(url)
    assert (found.host, found.port) == (host, port)
    assert found.scope is not Scope.INVALID


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("not-a-url", "does not start with"),
        ("host.example:8080", "does not start with"),
        ("https:host.example", "does not start with"),
        ("https:/host.example", "does not start with"),
        ("//host.example", "does not start with"),
        ("://host.example", "does not start with"),
        ("ftp://h", "does not start with"),
        ("stdio://h", "does not start with"),
        ("https://", "names no host"),
        ("https:///path", "names no host"),
        ("https://?x", "names no host"),
        ("https://.", "names no host"),
        ("https://:80", "names no host"),
        ("https://user@", "names no host"),
        ("https://h:notaport", "port"),
        ("https://h:99999", "port"),
        ("https://h:65536", "port"),
        ("https://h:0", "port"),
        ("https://h:", "port"),
        ("https://h:-1", "port"),
        ("https://h:+1", "port"),
        ("https://h:8_0", "port"),
        ("https://h:٨٠", "port"),
        ("https://h:80:80", "port"),
        ("https://::1", "names no host"),
        ("https://fd00::1/", "port"),
        ("https://[::1", "brackets"),
        ("https://[::1]x", "brackets"),
        ("https://[::1]80", "brackets"),
        ("https://[::1]:", "port"),
        ("https://[host]/", "no IPv6 address"),
        ("https://[1.2.3.4]/", "no IPv6 address"),
        ("https://[]/", "no IPv6 address"),
        ("https://[fe80::1%25eth0]/", "zone"),
        ("https://[fe80::1%eth0]/", "zone"),
        ("https://a b.example/", "space"),
        ("https://host.example/a b", "space"),
        ("https://host.example\\@evil.example", "backslash"),
        ("https://host\t.example", "control"),
        ("https://host.exam\nple", "control"),
        ("https://host\x00.example", "control"),
        ("https://-host.example", "neither"),
        ("https://host-.example", "neither"),
        ("https://a..example", "neither"),
        ("https://.example", "neither"),
        ("https://host.example..", "neither"),
        ("https://ho%73t.example", "neither"),
        ("https://host,example", "neither"),
        ("https://*.example", "neither"),
        (f"https://{'a' * 64}.example", "neither"),
        (f"https://{'a.' * 126}aa", "neither"),
        (f"https://{'a' * 2000}", "too long"),
        (f"https://host.example/{'a' * 9000}", "longer"),
        ("https://\u200d.example", "control"),
        ("https://☃\ufffd.example", "internationalised"),
        # Numbers that one program takes for an address and another for a name.
        ("http://127.1/", "another form"),
        ("http://2130706433/", "another form"),
        ("http://0x7f.0.0.1/", "another form"),
        ("http://0x7f000001/", "another form"),
        ("http://0177.0.0.1/", "another form"),
        ("http://1.2.3.256/", "another form"),
        ("http://1.2.3/", "another form"),
        ("http://1.2.3.4.5/", "another form"),
        ("http://host.1/", "another form"),
        ("http://host.0x/", "another form"),
        # Addresses of nobody.
        ("http://0.0.0.0:80/", "nobody"),
        ("http://[::]:80/", "nobody"),
        ("http://224.0.0.1/", "nobody"),
        ("http://255.255.255.255/", "nobody"),
        ("http://[ff02::1]/", "nobody"),
        ("http://[::ffff:0.0.0.0]/", "nobody"),
        # Names of the cluster that name nothing in it.
        ("http://svc.cluster.local/", "names no Service"),
        ("http://tools.svc.cluster.local/", "names no Service"),
        ("http://tools.pod.cluster.local./", "names no pod"),
        ("http://db.no_space.svc/", "namespace"),
        ("http://db.no_space:80/", "namespace"),
    ],
)
def test_what_leads_nowhere(url: str, said: str) -> None:
    found = explain(url)
    assert fields(found) == ("invalid", None, None, None)
    assert found.rule is None
    assert said in found.reason
    assert found.url == url


def test_a_reason_holds_no_secret() -> None:
    for url in (
        "https://user:s3cret@h:notaport/",
        "https://user:s3cret@host.example:81/s3cret?s3cret#s3cret",
        "s3cret://h",
        "https://[s3cret]/",
        "http://u:s3cret@db/s3cret",
    ):
        found = explain(url)
        assert "s3cret" not in found.reason
        assert "s3cret" not in repr(found)
        assert found.plain()["url"] == url


# --- in the cluster ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "space"),
    [
        # What kars knows.
        ("playwright-mcp.default.svc.cluster.local", "default"),
        ("playwright-mcp.default.svc", "default"),
        ("svc-x.team-a.svc.cluster.local.", "team-a"),
        ("pod-0.svc.ns.svc.cluster.local", "ns"),
        # What it takes for hosts outside.
        ("playwright-mcp", "sandbox"),
        ("svc", "sandbox"),
        ("svc.ns", "ns"),
        ("Playwright-MCP.Default.SVC.Cluster.LOCAL", "default"),
        ("PLAYWRIGHT.Tools.Svc", "tools"),
        # And more of the kind.
        ("svc-x.team-a.svc.", "team-a"),
        ("pod-0.svc.ns.svc", "ns"),
        ("10-1-2-3.tools.pod.cluster.local", "tools"),
        ("_http._tcp.db.tools.svc.cluster.local", "tools"),
        ("my_service", "sandbox"),
        ("svc.svc", "svc"),
        ("svc.svc.svc", "svc"),
        ("db.team-a", "team-a"),
        ("db.monitoring", "monitoring"),
        ("db.mcp", "mcp"),
        ("db.prod", "prod"),
        ("db.dev", "dev"),
        ("db.tools", "tools"),
        ("db.test", "test"),
    ],
)
@pytest.mark.parametrize(("scheme", "port"), [("http", 8931), ("http", 443), ("ws", 80)])
def test_a_name_in_the_cluster(host: str, space: str, scheme: str, port: int) -> None:
    found = explain(f"{scheme}://{host}:{port}/mcp", "sandbox")
    assert fields(found) == ("in-cluster", host.lower().removesuffix("."), port, space)
    assert found.rule == {"to": [namespace(space)], "ports": ports(port)}
    assert not found.exact


@pytest.mark.parametrize(
    ("url", "port"),
    [("https://db.tools.svc/", 443), ("http://db.tools.svc/", 80), ("wss://db.tools.svc", 443)],
)
def test_port_443_in_the_cluster_is_covered_by_nothing_else(url: str, port: int) -> None:
    assert explain(url).rule == {"to": [namespace("tools")], "ports": ports(port)}


@pytest.mark.parametrize("domain", ["k8s.example.com", "K8S.Example.COM.", "k8s.example.com."])
def test_another_domain(domain: str) -> None:
    def of(host: str) -> Explanation:
        return explain(f"http://{host}:81/", "sandbox", domain)

    assert of("db.tools.svc.k8s.example.com").namespace == "tools"
    assert of("db.tools.SVC.k8s.Example.com.").namespace == "tools"
    assert of("1-2-3-4.tools.pod.k8s.example.com").namespace == "tools"
    assert of("db.tools.svc").namespace == "tools"
    assert of("db.tools.svc.cluster.local").scope is Scope.EXTERNAL
    assert of("db.k8s.example.com").scope is Scope.EXTERNAL
    assert of("tools.svc.k8s.example.com").scope is Scope.INVALID


@pytest.mark.parametrize("domain", ["", ".", "svc", "..", "*"])
def test_a_domain_that_is_none_harms_nothing(domain: str) -> None:
    assert explain("http://db.tools.svc:81/", "a", domain).namespace == "tools"
    assert explain("http://mcp.example.com:81/", "a", domain).scope is Scope.EXTERNAL


def test_a_namespace_that_is_none() -> None:
    for wrong in ("", "No", "a.b", "-", "a" * 64):
        assert explain("http://db:81/", wrong).scope is Scope.INVALID
        assert explain("http://db.tools:81/", wrong).namespace == "tools"


# --- with the Service ----------------------------------------------------------------------------

DB = Service(selector={"b": "2", "app": "db"}, ports={80: 8080, 81: "http", 443: 443})


def lookup(**services: Service) -> Any:
    asked: list[tuple[str, str]] = []

    def find(space: str, name: str) -> Service | None:
        asked.append((space, name))
        return services.get(f"{name}_{space}".replace("-", "_"))

    find.asked = asked  # type: ignore[attr-defined]
    return find


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("http://db.tools.svc", 8080),
        ("http://db.tools.svc:81", "http"),
        ("https://db.tools.svc.cluster.local.", 443),
        ("http://db.tools", 8080),
        ("http://pod-0.db.tools.svc.cluster.local", 8080),
        ("http://pod-0.db.tools", 8080),
    ],
)
def test_the_pods_of_a_service_and_their_port(url: str, there: int | str) -> None:
    found = explain(url, service_lookup=lookup(db_tools=DB))
    pods = {"app": "db", "b": "2"}
    assert found.rule == {"to": [namespace("tools", pods)], "ports": ports(there)}
    assert found.exact
    assert found.namespace == "tools"
    assert f"port {there} of its pods" in found.reason


def test_a_bare_name_is_read_in_the_namespace_of_the_sandbox() -> None:
    found = explain("http://db", "kars-a", service_lookup=lookup(db_kars_a=DB))
    assert found.exact
    assert found.namespace == "kars-a"


def test_what_is_read_beats_what_a_name_looks_like() -> None:
    url = "https://example.com"
    assert explain(url, service_lookup=lookup()).scope is Scope.EXTERNAL
    found = explain(url, service_lookup=lookup(example_com=DB))
    assert (found.scope, found.namespace) == (Scope.IN_CLUSTER, "com")
    absolute = explain("https://example.com.", service_lookup=lookup(example_com=DB))
    assert absolute.scope is Scope.EXTERNAL


def test_a_headless_service_translates_nothing() -> None:
    headless = Service(selector={"app": "db"}, ports={80: 8080}, headless=True)
    for port in (80, 8080):
        found = explain(f"http://db.tools:{port}", service_lookup=lookup(db_tools=headless))
        assert found.rule == {"to": [namespace("tools", {"app": "db"})], "ports": ports(port)}
        assert found.exact


@pytest.mark.parametrize(
    ("service", "said"),
    [
        (None, "it is not there"),
        (Service(ports={80: 80}), "selects no pods"),
        (Service(selector={"a": "b"}, ports={81: 80}), "has no TCP port 80"),
    ],
)
def test_a_service_that_does_not_say_enough(service: Service | None, said: str) -> None:
    found = explain("http://db.tools.svc", service_lookup=lambda *_: service)
    assert found.rule == {"to": [namespace("tools")], "ports": ports(80)}
    assert not found.exact
    assert said in found.reason


def test_a_pod_has_no_service() -> None:
    find = lookup()
    found = explain("http://10-1-2-3.tools.pod.cluster.local:81", service_lookup=find)
    assert found.rule == {"to": [namespace("tools")], "ports": ports(81)}
    assert find.asked == []
    assert "labels" in found.reason


def test_a_service_that_stands_for_another_name() -> None:
    def of(alias: str, url: str = "http://db.tools.svc:81") -> Explanation:
        return explain(url, service_lookup=lambda *_: Service(external_name=alias))

    found = of("mcp.example.com")
    assert fields(found) == ("external", "db.tools.svc", 81, None)
    assert found.rule == {"to": WORLD, "ports": ports(81)}
    assert found.url == "http://db.tools.svc:81"
    assert of("mcp.example.com.", "https://db.tools.svc").rule is None
    found = of("real.other.svc.cluster.local")
    assert fields(found) == ("in-cluster", "db.tools.svc", 81, "other")
    assert of("svc.ns").scope is Scope.EXTERNAL  # DNS has it as it is written
    assert fields(of("no good")) == ("invalid", None, None, None)
    assert of("10.0.0.1").rule == {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}], "ports": ports(81)}


# --- outside of the cluster ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "api.openai.com",
        "example.com",
        "host.example",
        "mcp.so",
        "exa.ai",
        "svc.ns.",
        "playwright-mcp.",
        "db.tools.",
        "svc.example.com",
        "db.tools.svc.example.com",
        "cluster.local.example.com",
        "xsvc.cluster.local",
        "a.b.c",
        "mcp.internal.example.com",
        "xn--bcher-kva.xn--p1ai",
    ],
)
def test_a_name_outside(host: str) -> None:
    found = explain(f"https://{host}/mcp")
    assert fields(found) == ("external", host.removesuffix("."), 443, None)
    assert found.rule is None
    assert explain(f"http://{host}:443/mcp").rule is None
    for port in (80, 8443):
        assert explain(f"https://{host}:{port}").rule == {"to": WORLD, "ports": ports(port)}


@pytest.mark.parametrize("top", ["dev", "app", "tools", "cloud"])
def test_a_top_level_domain_that_may_be_a_namespace(top: str) -> None:
    assert explain(f"https://mcp.{top}/").scope is Scope.EXTERNAL
    assert explain(f"wss://mcp.{top}/").scope is Scope.EXTERNAL
    assert explain(f"http://mcp.{top}/").scope is Scope.IN_CLUSTER
    assert explain(f"https://a.mcp.{top}/").scope is Scope.EXTERNAL


def test_private_networks_are_not_the_world() -> None:
    left_out = {network for part in PRIVATE.values() for network in part}
    assert {"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"} <= left_out
    assert {"fc00::/7", "fe80::/10"} <= left_out


def test_networks_that_are_allowed() -> None:
    networks = ["10.2.0.0/16", "fd00::/64"]
    blocks = [{"ipBlock": {"cidr": network}} for network in networks]
    found = explain("https://mcp.corp.example:8443", networks=networks)
    assert found.rule == {"to": [*WORLD, *blocks], "ports": ports(8443)}
    found = explain("https://mcp.corp.example", networks=networks)
    assert found.rule == {"to": blocks, "ports": ports(443)}
    inside = explain("http://db.tools.svc:81", networks=networks)
    assert inside.rule == {"to": [namespace("tools")], "ports": ports(81)}


# --- addresses -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "host", "port", "cidr"),
    [
        ("http://10.1.2.3:8080/", "10.1.2.3", 8080, "10.1.2.3/32"),
        ("https://10.1.2.3/", "10.1.2.3", 443, "10.1.2.3/32"),
        ("https://192.168.0.1.", "192.168.0.1", 443, "192.168.0.1/32"),
        ("https://172.31.0.1", "172.31.0.1", 443, "172.31.0.1/32"),
        ("https://100.64.0.1", "100.64.0.1", 443, "100.64.0.1/32"),
        ("http://169.254.169.254/", "169.254.169.254", 80, "169.254.169.254/32"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "8.8.8.8/32"),
        ("ws://8.8.8.8:8080/", "8.8.8.8", 8080, "8.8.8.8/32"),
        ("https://8.8.8.8/", "8.8.8.8", 443, None),
        ("https://[2606:4700::1]/", "2606:4700::1", 443, None),
        ("http://[2606:4700::1]/", "2606:4700::1", 80, "2606:4700::1/128"),
        ("https://[FD00:0:0::1]:443/x", "fd00::1", 443, "fd00::1/128"),
        ("https://u:p@[fd00::1]", "fd00::1", 443, "fd00::1/128"),
        ("http://[::ffff:10.0.0.1]:81", "::ffff:a00:1", 81, "10.0.0.1/32"),
        ("https://[::ffff:8.8.8.8]", "::ffff:808:808", 443, None),
        ("http://\uff11\uff10.0.0.1:81", "10.0.0.1", 81, "10.0.0.1/32"),
        # The pod's own: no policy is asked.
        ("http://127.0.0.1:8931/mcp", "127.0.0.1", 8931, None),
        ("http://127.255.0.1:8931/mcp", "127.255.0.1", 8931, None),
        ("http://[::1]:80/", "::1", 80, None),
        ("http://[::ffff:127.0.0.1]:80/", "::ffff:7f00:1", 80, None),
        ("http://localhost:8931/mcp", "localhost", 8931, None),
        ("http://LOCALHOST.:8931/mcp", "localhost", 8931, None),
        ("http://app.localhost:8931/mcp", "app.localhost", 8931, None),
    ],
)
def test_an_address(url: str, host: str, port: int, cidr: str | None) -> None:
    found = explain(url)
    assert fields(found) == ("address", host, port, None)
    wanted = None if cidr is None else {"to": [{"ipBlock": {"cidr": cidr}}], "ports": ports(port)}
    assert found.rule == wanted


# --- whatever comes ------------------------------------------------------------------------------

HOSTS = st.one_of(
    st.from_regex(r"[a-zA-Z0-9_.-]{1,40}", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.text(max_size=12),
    st.sampled_from(["db", "db.ns", "a.b.svc", "x.y.svc.cluster.local", "localhost", "mcp.dev"]),
)
URLS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["http://", "https://", "ws://", "WSS://", "http:/", "x@", "ftp://"]),
    HOSTS,
    st.one_of(st.just(""), st.integers(-1, 70_000).map(":{}".format), st.text(max_size=4)),
    st.sampled_from(["", "/", "/mcp?x=1#y", "?a@b", "."]),
)


def check(found: Explanation) -> None:
    assert found.reason.endswith(".")
    assert "\n" not in found.reason
    json.dumps(found.plain())
    if found.scope is Scope.INVALID:
        assert (found.host, found.port, found.rule, found.namespace) == (None,) * 4
        return
    host = found.host
    assert host
    assert host == host.lower()
    assert host.isascii()
    assert not host.endswith(".")
    assert "[" not in host
    assert found.port in range(1, 65_536)
    assert (found.namespace is not None) is (found.scope is Scope.IN_CLUSTER)
    assert (found.rule is None) is not (found.scope is Scope.IN_CLUSTER) or not found.namespace
    for peer in (found.rule or {"to": []})["to"]:
        if "ipBlock" in peer:
            network = ipaddress.ip_network(peer["ipBlock"]["cidr"])
            for left_out in peer["ipBlock"].get("except", ()):
                assert ipaddress.ip_network(left_out).subnet_of(network)  # type: ignore[arg-type]


@given(st.one_of(st.text(), URLS), st.text(max_size=8), st.text(max_size=8))
@example("http://[::ffff:1.2.3.4]", "a", "b")
@example("https://\ud800.example", "", "")
def test_no_string_is_too_much(url: str, space: str, domain: str) -> None:
    explain(url, space, domain)
    found = explain(url)
    if url.isprintable():
        check(found)


@given(URLS)
def test_what_was_explained_is_explained_alike(url: str) -> None:
    """A URL made of the host and port that came out says the same, but for absolute names."""
    first = explain(url)
    if first.scope is Scope.INVALID or first.host is None:
        return
    host = f"[{first.host}]" if ":" in first.host else first.host
    scheme = "https" if url.lower().startswith(("https", "wss")) else "http"
    dot = "." if host + "." in url.lower() and first.scope is Scope.EXTERNAL else ""
    again = explain(f"{scheme}://{host}{dot}:{first.port}/")
    if first.scope is Scope.EXTERNAL and again.scope is not Scope.EXTERNAL:
        # An absolute name in another script; its dot is not found in the URL as it was written.
        assert not url.isascii()
        return
    assert again.plain() | {"url": ""} == first.plain() | {"url": ""}
