"""Which addresses a host may lead to."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.transports.guard import AddressRefusedError, Guard, HostKind, cluster_domains

NEVER = [
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "169.254.169.254",
    "169.254.170.23",
    "fe80::1",
    "fe80::1%2",
    "fe80::a9fe:a9fe",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "224.0.0.1",
    "239.255.255.255",
    "255.255.255.255",
    "ff02::1",
    # The same ones in IPv6's clothes.
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
]
LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::"]
PRIVATE = [
    "10.0.0.1",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "100.64.0.1",
    "fd12:3456::1",
    "fc00::1",
    "::ffff:10.0.0.1",
    "64:ff9b::a00:1",
    "2002:a00:1::1",
]
RESERVED = [
    "192.0.2.1",
    "198.51.100.1",
    "203.0.113.1",
    "198.18.0.1",
    "240.0.0.1",
    "2001:db8::1",
    "100::1",
    "2001::1",
    "fec0::1",
    "4000::1",
    "::127.0.0.1",
    "::7f00:2",
]
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "172.32.0.1",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]

PUBLIC_HOSTS = [
    "mcp.example.com",
    "MCP.Example.COM.",
    "svc.example.com",
    "a.b.svc.evil.example",
    "internal.example.com",
    "localhost.example.com",
    "xlocalhost.example",
]
PRIVATE_HOSTS = [
    "playwright",
    "my_service",
    "playwright.tools.svc",
    "playwright.tools.svc.cluster.local",
    "Playwright.Tools.SVC.Cluster.Local.",
    "pod-0.playwright.tools.svc.cluster.local",
    "10-1-2-3.tools.pod.cluster.local",
    "printer.local",
    "db.corp.internal",
    "nas.home.arpa",
    "svc",
]


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        *((host, HostKind.PUBLIC) for host in PUBLIC_HOSTS),
        ("notlocal.", HostKind.PUBLIC),
        *((host, HostKind.PRIVATE) for host in PRIVATE_HOSTS),
        ("localhost", HostKind.LOOPBACK),
        ("LOCALHOST.", HostKind.LOOPBACK),
        ("app.localhost", HostKind.LOOPBACK),
        ("notlocalhost", HostKind.PRIVATE),
        ("app.notlocalhost", HostKind.PUBLIC),
        ("10.0.0.1", HostKind.LITERAL),
        ("10.0.0.1.", HostKind.LITERAL),
        ("::1", HostKind.LITERAL),
        ("fe80::1%eth0", HostKind.LITERAL),
        ("2130706433", HostKind.NUMBER),
        ("127.1", HostKind.NUMBER),
        ("0x7f000001", HostKind.NUMBER),
        ("0x7f.1", HostKind.NUMBER),
        ("0177.0.0.1", HostKind.NUMBER),
        ("example.0x1.", HostKind.NUMBER),
        ("a.svc.k8s.example.com", HostKind.PUBLIC),
    ],
)
def test_kinds(host: str, kind: HostKind) -> None:
    assert Guard.of(host).kind is kind


def test_the_clusters_own_domain() -> None:
    domains = cluster_domains(
        "nameserver 10.96.0.10\n"
        "search old.svc.nowhere.example svc.nowhere.example\n"
        "search tools.svc.K8s.Example.com. svc.K8s.Example.com. k8s.example.com svc.\n"
        "options ndots:5\n"
    )
    assert domains == ("k8s.example.com",)
    assert Guard.of("a.b.svc.k8s.example.com.", (), domains).kind is HostKind.PRIVATE
    assert Guard.of("a.k8s.example.com", (), domains).kind is HostKind.PUBLIC
    assert Guard.of("svc.k8s.example.com", (), domains).kind is HostKind.PUBLIC
    assert cluster_domains("nameserver 1.1.1.1\nsearch example.com\n") == ()
    assert cluster_domains("# search svc.x\n\nsearch\n") == ()


def refused(guard: Guard, *addresses: str) -> str:
    with pytest.raises(AddressRefusedError) as caught:
        guard.permitted(addresses)
    return str(caught.value)


@pytest.mark.parametrize("host", [*PUBLIC_HOSTS, *PRIVATE_HOSTS, "localhost"])
@pytest.mark.parametrize("address", NEVER)
def test_no_name_leads_to_metadata(host: str, address: str) -> None:
    said = refused(Guard.of(host, ["0.0.0.0/0", "::/0"]), address)
    assert address in said
    assert "only a URL with the address itself" in said


@pytest.mark.parametrize("host", ["mcp.example.com", "a.svc.evil.example"])
@pytest.mark.parametrize("address", [*LOOPBACK, *PRIVATE, *RESERVED])
def test_a_public_name_leads_to_public_addresses(host: str, address: str) -> None:
    said = refused(Guard.of(host), address)
    assert said.startswith(f"no address of {host} may be used: {address} is ")


@pytest.mark.parametrize("host", ["mcp.example.com", "playwright", "a.b.svc"])
@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_for_all_names_but_localhost(host: str, address: str) -> None:
    assert Guard.of(host).permitted([address]) == [address]
    refused(Guard.of("localhost"), address)


@pytest.mark.parametrize("host", PRIVATE_HOSTS)
def test_what_a_private_name_leads_to(host: str) -> None:
    guard = Guard.of(host)
    assert guard.permitted(PRIVATE) == PRIVATE
    for address in [*LOOPBACK, *RESERVED]:
        refused(guard, address)


@pytest.mark.parametrize("host", ["localhost", "app.localhost", "localhost."])
def test_what_localhost_leads_to(host: str) -> None:
    guard = Guard.of(host)
    assert guard.permitted(LOOPBACK) == LOOPBACK
    for address in [*PRIVATE, *RESERVED, *PUBLIC]:
        assert "no loopback address" in refused(guard, address)


@pytest.mark.parametrize("address", [*NEVER, *LOOPBACK, *PRIVATE, *RESERVED, *PUBLIC])
def test_an_address_in_the_url_leads_to_itself(address: str) -> None:
    guard = Guard.of(address)
    assert guard.literal == address
    assert guard.permitted([address]) == [address]
    assert "not the address in the URL" in refused(guard, "9.9.9.9")


def test_the_dot_at_the_end_of_an_address() -> None:
    assert Guard.of("10.0.0.1.").literal == "10.0.0.1"
    assert Guard.of("10.0.0.1.").permitted(["10.0.0.1"]) == ["10.0.0.1"]


@pytest.mark.parametrize("host", ["0x7f000001", "127.1", "2130706433", "a.1"])
@pytest.mark.parametrize("address", ["127.0.0.1", "8.8.8.8", "10.0.0.1"])
def test_what_looks_like_a_number_leads_nowhere(host: str, address: str) -> None:
    assert "do not agree" in refused(Guard.of(host, ["0.0.0.0/0"]), address)


@pytest.mark.parametrize(
    ("networks", "address"),
    [
        (["10.0.0.0/8"], "10.1.2.3"),
        (["10.0.0.0/8"], "::ffff:10.1.2.3"),
        (["10.0.0.0/8"], "64:ff9b::a01:203"),
        (["192.168.0.0/16", "10.0.0.0/8"], "10.1.2.3"),
        (["127.0.0.0/8"], "127.0.0.1"),
        (["::1/128"], "::1"),
        (["fd00::/8"], "fd12::1"),
        (["198.18.0.0/15"], "198.18.0.1"),
        (["240.0.0.0/4"], "240.0.0.1"),
        (["2002::/16"], "2002:a00:1::1"),
    ],
)
def test_networks_that_are_allowed(networks: list[str], address: str) -> None:
    assert Guard.of("mcp.example.com", networks).permitted([address]) == [address]
    refused(Guard.of("mcp.example.com", ["172.16.0.0/12"]), address)


def test_only_what_may_be_used_is_left_in_its_order() -> None:
    guard = Guard.of("mcp.example.com")
    found = guard.permitted(["10.0.0.1", "8.8.8.8", "::1", "1.1.1.1", "8.8.8.8"])
    assert found == ["8.8.8.8", "1.1.1.1"]


def test_why_nothing_is_left() -> None:
    said = refused(Guard.of("mcp.example.com"), "10.0.0.1", "127.0.0.1")
    assert said == (
        "no address of mcp.example.com may be used: 10.0.0.1 is not public and in none of "
        "allowedNetworks; 127.0.0.1 is a loopback address, for which the URL has to say localhost"
    )
    many = refused(Guard.of("mcp.example.com"), *(f"10.0.0.{n}" for n in range(50)))
    assert len(many) < 500
    assert "it has none" in refused(Guard.of("mcp.example.com"))


def test_a_network_that_is_none() -> None:
    with pytest.raises(ValueError, match="10"):
        Guard.of("a", ["10.0.0.0/99"])


@given(st.ip_addresses(), st.sampled_from(["mcp.example.com", "playwright", "localhost", "a.svc"]))
def test_nothing_that_is_permitted_is_forbidden(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, host: str
) -> None:
    if Guard.of(host).refusal(str(address)):
        return
    assert not address.is_link_local
    assert not address.is_multicast
    assert not address.is_unspecified
    if host == "mcp.example.com":
        inside = getattr(address, "sixtofour", None) or getattr(address, "ipv4_mapped", None)
        assert address.is_global or inside


@given(st.text(max_size=80))
def test_any_host_has_a_kind(host: str) -> None:
    assert Guard.of(host).kind in HostKind
