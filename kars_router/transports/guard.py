"""Which addresses the host of a server's URL may be connected to.

Owns the kinds of hosts and of addresses. Pure: names are resolved, and connections made, by
`dial`, which asks about every address that it was given, and connects to no other.

Why: who controls the zone of a declared name may have it lead to the router's own pod, to the
cluster, or to the cloud's metadata service, at any time (DNS rebinding).

Sources: the IANA registries of special-purpose addresses; RFC 6761 (localhost), RFC 6762 (local),
RFC 8375 (home.arpa), RFC 6052 (NAT64), RFC 3056 (6to4).
"""

from __future__ import annotations

import enum
import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final

from attrs import frozen

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Never by a name, whatever else is allowed: what answers there trusts everybody who can ask.
_NEVER: Final[tuple[tuple[Network, str], ...]] = tuple(
    (ipaddress.ip_network(network), what)
    for network, what in (
        ("0.0.0.0/8", "this host"),
        ("::/128", "this host"),
        ("169.254.0.0/16", "link-local, as metadata services are"),
        ("fe80::/10", "link-local"),
        ("100.100.100.200/32", "a metadata service"),  # Alibaba Cloud
        ("168.63.129.16/32", "a metadata service"),  # Azure
        ("192.0.0.192/32", "a metadata service"),  # Oracle Cloud
        ("fd00:ec2::/32", "a metadata service"),  # AWS
        ("fd20:ce::254/128", "a metadata service"),  # Google Cloud
        ("224.0.0.0/4", "multicast"),
        ("ff00::/8", "multicast"),
        ("255.255.255.255/32", "broadcast"),
        # An IPv4 address stands in these at a place that only the translator knows.
        ("64:ff9b:1::/48", "behind a translator of the network's own"),
    )
)
# What networks of their own use: RFC 1918, RFC 6598 (also for pods), RFC 4193.
_PRIVATE: Final = tuple(
    ipaddress.ip_network(network)
    for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7")
)
# No zone of these is delegated to anybody, so nobody outside can answer for them.
_PRIVATE_SUFFIXES: Final = (".svc", ".local", ".internal", ".home.arpa")
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# All that IANA has allotted so far.
_ALLOTTED: Final = ipaddress.IPv6Network("2000::/3")
_MOST_NAMED: Final = 4


class AddressRefusedError(OSError):
    """No address of a host may be connected to; nothing was sent anywhere."""


class HostKind(enum.Enum):
    """What the host of a URL says about the addresses that it may lead to."""

    LITERAL = "an address"
    LOOPBACK = "a name of this host"
    PRIVATE = "a name that only the network's own resolver can know"
    PUBLIC = "any other name"
    NUMBER = "a number that programs read in different ways"


@frozen
class Guard:
    """What the host of one URL may lead to.

    Attributes:
        host: in lower case; a dot at its end says that no search domain is to be added.
        kind: what it is.
        networks: further networks that a name may lead to.
    """

    host: str
    kind: HostKind
    networks: tuple[Network, ...] = ()

    @classmethod
    def of(
        cls, host: str, networks: Iterable[str] = (), cluster_domains: Iterable[str] = ()
    ) -> Guard:
        """Makes the guard of a URL.

        Args:
            host: the URL's host; an IPv6 address without brackets.
            networks: CIDR blocks that a name may lead to although they are not public.
            cluster_domains: domains of the cluster beside `cluster.local`.

        Raises:
            ValueError: a network is none.
        """
        host = host.lower()
        return cls(
            host,
            _kind_of(host, tuple(cluster_domains)),
            tuple(ipaddress.ip_network(network) for network in networks),
        )

    @property
    def literal(self) -> str | None:
        """The address that the URL itself gives; None if it gives a name."""
        return self.host.removesuffix(".") if self.kind is HostKind.LITERAL else None

    def permitted(self, addresses: Sequence[str]) -> list[str]:
        """The addresses that may be connected to, in their order.

        Args:
            addresses: what the host leads to.

        Raises:
            AddressRefusedError: there is none; says why, in one clause.
        """
        found, refused = [], []
        for address in dict.fromkeys(addresses):
            refusal = self.refusal(address)
            if refusal:
                refused.append(f"{address} is {refusal}")
            else:
                found.append(address)
        if not found:
            reasons = "; ".join(refused[:_MOST_NAMED]) or "it has none"
            raise AddressRefusedError(f"no address of {self.host} may be used: {reasons}")
        return found

    def refusal(self, address: str) -> str:
        """What is wrong with an address, as in "it is ..."; empty if it may be connected to."""
        given = ipaddress.ip_address(address)
        meant = _meant(given)
        if self.literal is not None:
            same = given == ipaddress.ip_address(self.literal)
            return "" if same else "not the address in the URL"
        if self.kind is HostKind.NUMBER:
            return "written in the URL in a way that programs do not agree on"
        for network, what in _NEVER:
            if meant in network:
                return f"{what}, which only a URL with the address itself may name"
        if any(given in network or meant in network for network in self.networks):
            return ""
        if meant.is_loopback or self.kind is HostKind.LOOPBACK:
            right = meant.is_loopback and self.kind is HostKind.LOOPBACK
            return "" if right else _unlike(self.kind)
        if _is_public(meant):
            return ""
        if self.kind is HostKind.PRIVATE and any(meant in network for network in _PRIVATE):
            return ""
        return "not public and in none of allowedNetworks"


def cluster_domains(resolv_conf: str) -> tuple[str, ...]:
    """The domains of the cluster that a pod's resolver configuration tells of.

    Kubernetes has a pod search `NAMESPACE.svc.DOMAIN svc.DOMAIN DOMAIN`.

    Args:
        resolv_conf: the content of `/etc/resolv.conf`.
    """
    found: tuple[str, ...] = ()
    for line in resolv_conf.splitlines():
        words = line.lower().split()
        if words[:1] == ["search"]:  # the last one counts, resolv.conf(5)
            names = [word.removesuffix(".") for word in words[1:]]
            found = tuple(name[4:] for name in names if name.startswith("svc.") and name[4:])
    return found


def _kind_of(full: str, domains: Sequence[str]) -> HostKind:
    host = full.removesuffix(".")
    try:
        ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return HostKind.LITERAL
    last = host.rpartition(".")[2]
    if last.isdigit() or last.startswith("0x"):  # as URLs are read (WHATWG URL, 3.5)
        return HostKind.NUMBER
    if last == "localhost":
        return HostKind.LOOPBACK
    suffixes = (*_PRIVATE_SUFFIXES, *(f".svc.{domain}" for domain in domains))
    if "." not in full or host.endswith(suffixes):
        return HostKind.PRIVATE
    return HostKind.PUBLIC


def _meant(address: Address) -> Address:
    """The address at which packets arrive: what an IPv6 address may hold of an IPv4 one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _is_public(address: Address) -> bool:
    # Before 3.13 `is_global` knows some reserved blocks of IPv6 as public, hence the second half.
    return address.is_global and (address.version == 4 or address in _ALLOTTED)


def _unlike(kind: HostKind) -> str:
    if kind is HostKind.LOOPBACK:
        return "no loopback address"
    return "a loopback address, for which the URL has to say localhost"
