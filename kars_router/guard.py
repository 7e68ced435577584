"""The network rules that leave the router as the agent's only way out of the pod.

Owns which packets may leave the pod, by the user whose process owns the socket, and the text that
`nft -f -` takes. Pure: who runs nft, and reads what is in force, is `kars_router.cli.guard`.

Users that are not named are held as the agent is, so that nobody has to know which ones an image
uses. What no process owns is the kernel's own, and is admitted by what it is. Connection tracking
is not asked: an entry that somebody else's packets have made would admit the agent's too.
docs/guard.md has the whole reasoning, packet by packet.

Source: nft(8), sections "Meta expressions" (`skuid` matches nothing where no process owns the
socket), "FIB expressions" and "Reject statement".
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import frozen

TABLE: Final = "kars_guard"
ROUTER: Final = 1001
AGENT: Final = 1000
ADMIN_PORT: Final = 9090

_LAST_UID: Final = 2**32 - 2  # the number after it stands for no user: setreuid(2)
_LAST_PORT: Final = 2**16 - 1
_UIDS: Final = re.compile(r"([0-9]{1,10})(?:-([0-9]{1,10}))?\Z", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,5}\Z", re.ASCII)


@frozen(order=True)
class Uids:
    """Users by their numbers, from the first to the last of them."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> Uids:
        """Reads `1000` or `1000-1999`.

        Raises:
            ValueError: for anything else, with the rest of a sentence.
        """
        found = _UIDS.match(text)
        if found is None:
            raise ValueError("must be the number of a user such as 1000, or a range: 1000-1999")
        first = int(found[1])
        last = int(found[2]) if found[2] else first
        if last > _LAST_UID:
            raise ValueError(f"must be at most {_LAST_UID}")
        if last < first:
            raise ValueError("must be a range that begins with its lower number")
        return cls(first, last)

    def overlaps(self, other: Uids) -> bool:
        """Whether a user is in both."""
        return self.first <= other.last and other.first <= self.last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


_ROOT: Final = Uids(0, 0)


def port(text: str) -> int:
    """Reads a port.

    Raises:
        ValueError: for anything but 1 to 65535, with the rest of a sentence.
    """
    if not _NUMBER.match(text) or not 1 <= int(text) <= _LAST_PORT:
        raise ValueError(f"must be a port, 1 to {_LAST_PORT}")
    return int(text)


def dns_server(text: str) -> str:
    """Reads the address of a DNS server as a line of resolv.conf has it.

    Returns:
        The address in its usual form, without the zone of a link-local one; an IPv4-mapped one as
        the IPv4 address that packets will have.

    Raises:
        ValueError: for anything that no server has, with the rest of a sentence.
    """
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        raise ValueError("must be an IP address such as 10.96.0.10") from None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    address = mapped or address
    if address.is_multicast or address.is_unspecified or str(address) == "255.255.255.255":
        raise ValueError("must be the address of one server")
    return str(address)


def nameservers(resolv_conf: str) -> tuple[str, ...]:
    """The DNS servers that a resolv.conf names, each once, in its order.

    Raises:
        ValueError: one of them is no server's address, with a sentence.
    """
    found = []
    for line in resolv_conf.splitlines():
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                found.append(dns_server(words[1]))
            except ValueError as error:
                raise ValueError(f"nameserver {words[1]} {error}") from None
    return tuple(dict.fromkeys(found))


@frozen(kw_only=True)
class Guard:
    """What the rules shall hold to.

    Attributes:
        router: the router's user, whom the rules leave to the NetworkPolicy.
        agents: the agent's users. Only what `allow_dns` admits depends on them: everybody else
            but the router and `free` is held in the same way.
        free: further users that the rules leave alone, such as a mesh's proxy.
        allow_dns: whether agents may ask DNS servers.
        dns_servers: addresses as `dns_server` gives them; empty for those of the pod's resolv.conf.
        denied_ports: TCP ports that nobody but the router, `free` and root reaches over loopback;
            root, who comes from outside by `kubectl port-forward`, unless an agent is root.
        answer_ports: TCP ports at which guarded users may answer connections from outside.

    Raises:
        ValueError: for what contradicts itself, with a sentence that names the option.
    """

    router: int = ROUTER
    agents: tuple[Uids, ...] = (Uids(AGENT, AGENT),)
    free: tuple[Uids, ...] = ()
    allow_dns: bool = False
    dns_servers: tuple[str, ...] = ()
    denied_ports: tuple[int, ...] = (ADMIN_PORT,)
    answer_ports: tuple[int, ...] = ()

    def __attrs_post_init__(self) -> None:
        router = Uids(self.router, self.router)
        for agent in self.agents:
            if agent.overlaps(router):
                raise ValueError(
                    f"--agent-uid {agent}: {self.router} is the router's user, and the agent "
                    "would have the router's way out; give it another one"
                )
            for free in self.free:
                if agent.overlaps(free):
                    raise ValueError(
                        f"--agent-uid {agent}: --allow-uid {free} would leave the agent unguarded"
                    )
        if not self.agents:
            raise ValueError("--agent-uid: name the agent's user")
        if self.dns_servers and not self.allow_dns:
            raise ValueError("--dns-server: say --allow-dns too, or the agent may ask no server")
        for each in self.answer_ports:
            if each in self.denied_ports:
                raise ValueError(
                    f"--answer-port {each}: --deny-loopback-port keeps it for the router"
                )

    def arguments(self) -> list[str]:
        """The arguments that make `kars guard` hold to this, for whoever writes a pod's manifest.

        Always the same for equal values, and whole: a default that changes changes no pod.
        """
        ports = [str(each) for each in self.denied_ports] or ["none"]
        return [
            "guard",
            *("--router-uid", str(self.router)),
            *_each("--agent-uid", self.agents),
            *_each("--allow-uid", self.free),
            *(["--allow-dns"] if self.allow_dns else []),
            *_each("--dns-server", self.dns_servers),
            *_each("--deny-loopback-port", ports),
            *_each("--answer-port", self.answer_ports),
        ]

    def summary(self) -> str:
        """One line on what holds."""
        unguarded = ", ".join([str(self.router), *(str(each) for each in _merged(self.free))])
        denied = _listed(self.denied_ports)
        parts = [
            f"unguarded: user {unguarded}",
            f"everybody else: loopback{f' but port {denied}' if denied else ''}",
        ]
        if self.answer_ports:
            parts.append(f"answers at port {_listed(self.answer_ports)}")
        if self.allow_dns:
            agents = ", ".join(str(each) for each in _merged(self.agents))
            parts.append(f"user {agents}: DNS at {', '.join(self.dns_servers) or 'no server'}")
        return "; ".join(parts)


def ruleset(guard: Guard, table: str = TABLE, *, dormant: bool = False) -> str:
    """The rules as one transaction for `nft -f -`, which puts them in the place of earlier ones.

    Args:
        guard: with its DNS servers, where it allows any.
        table: the name of the table.
        dormant: make rules that are there to be looked at and hold nobody to anything.
    """
    unguarded = _set(_merged((Uids(guard.router, guard.router), *guard.free)))
    lines = [
        # Deleting what is not there would be an error: it is there from here on.
        f"table inet {table}",
        f"delete table inet {table}",
        f"table inet {table} {{",
        *(["\tflags dormant"] if dormant else []),
        *_chain(
            "output",
            "type filter hook output priority filter; policy drop;",
            _rule(f"meta skuid {unguarded} accept", "the router: left to the NetworkPolicy"),
            _rule(f"meta skuid != {unguarded} goto guarded", "owned by any other process"),
            *_unowned(guard),
        ),
        *_chain(
            "guarded",
            _MADE_UP,
            *_dns(guard),
            *_answers(guard),
            'oif "lo" goto loopback',
            "goto refuse",
        ),
        *_chain("loopback", *_denied(guard), "accept"),
        # An agent that waits for an answer would not know why there is none.
        *_chain(
            "refuse",
            "meta l4proto tcp counter reject with tcp reset",
            "counter reject with icmpx admin-prohibited",
        ),
        # Source routes that begin at loopback come by here.
        *_chain("forward", "type filter hook forward priority filter; policy drop;"),
        "}",
    ]
    return "\n".join(lines) + "\n"


# Whoever answers would answer somebody outside. Anybody may send from any IPv6 address
# (IPV6_FREEBIND), and what is refused is answered too, so this is not.
_MADE_UP: Final = 'fib saddr type != local counter drop comment "a made-up source"'


def _unowned(guard: Guard) -> Iterator[str]:
    """What no process owns, and what an agent could make of it."""
    # Neighbour discovery. Not the reports of multicast groups: a program chooses their addresses.
    yield "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept"
    yield _rule('oif "lo" tcp flags rst accept', "how refuse answers, in the other side's name")
    yield _MADE_UP
    # Not the errors: they quote packets.
    yield "icmp type echo-reply accept"
    yield "icmpv6 type echo-reply accept"
    yield 'oif "lo" goto loopback'
    yield from _answers(guard)
    # Sockets of the kernel's that a program has it open (SMC, older MPTCP), and SYN cookies, with
    # which a listener's answers are nobody's.
    yield _rule("tcp flags syn goto refuse", "the kernel connects for a program")
    yield _rule("meta l4proto tcp accept", "the ends of connections of closed sockets")
    yield "drop"  # not counted: nobody has tried anything


def _chain(name: str, *lines: str) -> Iterator[str]:
    yield f"\tchain {name} {{"
    for line in lines:
        yield f"\t\t{line}"
    yield "\t}"


def _rule(rule: str, comment: str) -> str:
    return f'{rule} comment "{comment}"'


def _dns(guard: Guard) -> Iterator[str]:
    """No options and no extension headers: they could name another destination."""
    agents = _set(_merged(guard.agents))
    servers = [ipaddress.ip_address(each) for each in guard.dns_servers]
    asks = "meta l4proto { tcp, udp } th dport 53 accept"
    if fours := sorted({each for each in servers if each.version == 4}):
        yield f"meta skuid {agents} ip daddr {_set(fours)} ip hdrlength 5 {asks}"
    if sixes := sorted({each for each in servers if each.version == 6}):
        yield f"meta skuid {agents} ip6 daddr {_set(sixes)} ip6 nexthdr {{ tcp, udp }} {asks}"


def _answers(guard: Guard) -> Iterator[str]:
    """Whoever connects begins with a packet that acknowledges nothing, and so is not admitted."""
    if guard.answer_ports:
        yield f"tcp sport {_set(sorted(set(guard.answer_ports)))} tcp flags ack accept"


def _denied(guard: Guard) -> Iterator[str]:
    if not guard.denied_ports:
        return
    if not any(each.overlaps(_ROOT) for each in guard.agents):
        yield _rule("meta skuid 0 accept", "kubectl port-forward")
    ports = _set(sorted(set(guard.denied_ports)))
    yield _rule(f"tcp dport {ports} tcp flags syn goto refuse", "the router's")


def _merged(uids: Sequence[Uids]) -> list[Uids]:
    """The same users without overlaps, which nft does not take, in order."""
    merged: list[Uids] = []
    for each in sorted(uids):
        if merged and each.first <= merged[-1].last + 1:
            merged[-1] = Uids(merged[-1].first, max(merged[-1].last, each.last))
        else:
            merged.append(each)
    return merged


def _set(members: Sequence[object]) -> str:
    return f"{{ {', '.join(str(each) for each in members)} }}"


def _listed(ports: Sequence[int]) -> str:
    return ", ".join(str(each) for each in sorted(set(ports)))


def _each(option: str, values: Sequence[object]) -> Iterator[str]:
    for value in values:
        yield option
        yield str(value)
