"""Who reaches what, once the rules are in force: real users, both families."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from guard.network import (
    DNS,
    DNS6,
    OTHER_DNS,
    OTHER_DNS6,
    POD,
    POD6,
    WORLD,
    WORLD6,
    Namespace,
    Network,
    guard,
)

from kars_router.guard import ADMIN_PORT, AGENT, ROUTER

# The answers at once: `late` would stand after them.
TCP_REFUSED, UDP_REFUSED = "ECONNREFUSED", "EPERM"
LOOPBACKS = ["127.0.0.1", "::1", POD, POD6]
OTHERS = [AGENT, 0, 1337, 65534]


def tcp(to: str, port: int = 7000, **more: Any) -> dict[str, Any]:
    return {"kind": "tcp", "to": to, "port": port, **more}


def udp(to: str, port: int = 7001, **more: Any) -> dict[str, Any]:
    return {"kind": "udp", "to": to, "port": port, "wait": 3, **more}


EVERYWHERE = [tcp(WORLD), tcp(WORLD6), udp(WORLD), udp(WORLD6)]
ANSWERED = ["answered"] * 4
REFUSED = [TCP_REFUSED, TCP_REFUSED, UDP_REFUSED, UDP_REFUSED]


def half_closed(where: Namespace) -> str:
    """Connections that wait for the other side's last word."""
    return where.run("ss", "-Htan", "state", "last-ack").stdout


def refused(network: Network) -> list[int]:
    """How many packets were, of TCP and of all else."""
    shown = network.pod.run("nft", "list", "chain", "inet", "kars_guard", "refuse").stdout
    return [int(count) for count in re.findall(r"counter packets (\d+)", shown)]


def test_without_rules_everybody_gets_out(network: Network) -> None:
    for uid in (AGENT, ROUTER, 0):
        assert network.attempt(uid, *EVERYWHERE) == ANSWERED


def test_the_router_gets_out_and_nobody_else(network: Network) -> None:
    network.guard()
    assert network.attempt(ROUTER, *EVERYWHERE) == ANSWERED
    assert {uid: network.attempt(uid, *EVERYWHERE) for uid in OTHERS} == dict.fromkeys(
        OTHERS, REFUSED
    )


def test_who_is_named_is_left_alone(network: Network) -> None:
    network.guard("--router-uid", "2001", "--agent-uid", "3000-3010", "--allow-uid", "1330-1340")
    assert network.attempt(2001, *EVERYWHERE) == ANSWERED
    assert network.attempt(1337, *EVERYWHERE) == ANSWERED
    assert network.attempt(3005, *EVERYWHERE) == REFUSED
    assert network.attempt(ROUTER, *EVERYWHERE) == REFUSED


def test_ipv6_is_covered_while_it_is_off(network: Network) -> None:
    network.pod.set(ipv6__conf__eth0__disable_ipv6=1)
    network.guard()
    assert network.attempt(AGENT, tcp(WORLD), tcp(WORLD6)) == [TCP_REFUSED, "ENETUNREACH"]
    network.pod.set(ipv6__conf__eth0__disable_ipv6=0)
    network.pod.run("ip", "address", "add", f"{POD6}/64", "dev", "eth0")
    assert network.attempt(AGENT, *EVERYWHERE) == REFUSED
    assert network.attempt(ROUTER, *EVERYWHERE) == ANSWERED


def test_everybody_has_the_loopback(network: Network) -> None:
    network.guard()
    network.serve(network.pod, ROUTER, "7000", "7001", *LOOPBACKS)
    local = [*map(tcp, LOOPBACKS), *map(udp, LOOPBACKS)]
    for uid in (AGENT, 1337):
        assert network.attempt(uid, *local) == ["answered"] * 8
    # Where nobody listens the kernel says so, as ever.
    assert network.attempt(AGENT, tcp("127.0.0.1", 7002), tcp("::1", 7002)) == ["ECONNREFUSED"] * 2


def test_the_admin_port_is_the_routers_and_the_probes(network: Network) -> None:
    network.serve(network.pod, ROUTER, f"{ADMIN_PORT},9191", "")
    network.guard()
    ways = [*LOOPBACKS, "0.0.0.0", "::", "127.1.2.3", "::ffff:127.0.0.1", f"::ffff:{POD}"]
    assert network.attempt(AGENT, *(tcp(way, ADMIN_PORT) for way in ways)) == [TCP_REFUSED] * 9
    # Root is there by `kubectl port-forward`, unless it is the agent.
    for uid in (ROUTER, 0):
        assert network.attempt(uid, *(tcp(way, ADMIN_PORT) for way in ways)) == ["answered"] * 9
    probes = [tcp(POD, ADMIN_PORT), tcp(POD6, ADMIN_PORT)]
    assert network.from_outside(*probes) == ["answered"] * 2
    assert network.attempt(AGENT, tcp("127.0.0.1", 9191)) == ["answered"]
    network.guard("--deny-loopback-port", "9191")
    both = [tcp("::1", 9191), tcp("::1", ADMIN_PORT)]
    assert network.attempt(AGENT, *both) == [TCP_REFUSED, "answered"]
    network.guard("--deny-loopback-port", "none")
    assert network.attempt(AGENT, *both) == ["answered"] * 2
    network.guard("--agent-uid", "0")
    assert network.attempt(0, *both) == ["answered", TCP_REFUSED]


def test_the_agent_answers_nobody_outside(network: Network) -> None:
    network.serve(network.pod, AGENT, "8000", "8001", POD, POD6)
    outside = [tcp(to, 8000, wait=1) for to in (POD, POD6)]
    outside += [udp(to, 8001, wait=1) for to in (POD, POD6)]
    assert network.from_outside(*outside) == ANSWERED
    network.guard()
    assert network.from_outside(*outside) == ["silence"] * 4
    network.guard("--answer-port", "8000", "--answer-port", "8001")
    assert network.from_outside(*outside) == ["answered", "answered", "silence", "silence"]
    # A port to answer at is none to ask from.
    asking = [tcp(to, source_port=8002) for to in (WORLD, WORLD6)]
    network.guard("--answer-port", "8002")
    assert network.attempt(AGENT, *asking) == [TCP_REFUSED] * 2


def test_nobody_stands_in_for_the_router_before_the_kubelet(network: Network) -> None:
    network.guard()
    network.serve(network.pod, AGENT, str(ADMIN_PORT), "")
    probe = tcp(POD, ADMIN_PORT, wait=1)
    assert network.from_outside(probe) == ["silence"]


DNS_ATTEMPTS = [
    *(udp(to, 53) for to in (DNS, DNS6)),
    *(tcp(to, 53) for to in (DNS, DNS6)),
    *(udp(to, 53) for to in (OTHER_DNS, OTHER_DNS6)),
    *(tcp(to, 53) for to in (OTHER_DNS, OTHER_DNS6)),
    *(udp(to, 7001) for to in (DNS, DNS6)),
    *(tcp(to, 7000) for to in (DNS, DNS6)),
]


def test_no_dns_unless_it_is_allowed(network: Network) -> None:
    network.guard()
    assert network.attempt(AGENT, *DNS_ATTEMPTS[:4]) == [UDP_REFUSED] * 2 + [TCP_REFUSED] * 2


def test_dns_at_the_servers_that_are_named(network: Network) -> None:
    network.guard("--allow-dns", "--dns-server", DNS, "--dns-server", DNS6)
    refused = [UDP_REFUSED] * 2 + [TCP_REFUSED] * 2
    assert network.attempt(AGENT, *DNS_ATTEMPTS) == ANSWERED + refused + refused
    # Only the agent was allowed to.
    assert network.attempt(1337, *DNS_ATTEMPTS[:4]) == refused


def test_dns_at_the_servers_of_the_pod(network: Network, tmp_path: Path) -> None:
    file = tmp_path / "resolv.conf"
    file.write_text(f"search tools.svc.cluster.local\nnameserver {DNS}\nnameserver {DNS6}\n")
    in_a_mount = ('mount --bind "$0" /etc/resolv.conf && exec "$@"', str(file))
    network.pod.run("unshare", "--mount", "sh", "-c", *in_a_mount, *guard("--allow-dns"))
    refused = [UDP_REFUSED] * 2 + [TCP_REFUSED] * 2
    assert network.attempt(AGENT, *DNS_ATTEMPTS[:8]) == ANSWERED + refused


def test_a_second_run_changes_nothing(network: Network) -> None:
    assert network.guard() == network.guard()
    shown = network.pod.run("nft", "--stateless", "list", "ruleset").stdout
    network.guard()
    assert network.pod.run("nft", "--stateless", "list", "ruleset").stdout == shown
    assert network.attempt(AGENT, tcp(WORLD), tcp(WORLD6)) == [TCP_REFUSED] * 2
    assert network.attempt(ROUTER, tcp(WORLD), tcp(WORLD6)) == ["answered"] * 2


def test_closed_sockets_end_their_connections(network: Network) -> None:
    """A process that is gone owns no packets, and its last ones are still to be sent."""
    network.guard()
    server = network.serve(network.world, None, "7100", "")
    amount = 3_000_000
    ways = [tcp(to, 7100, bytes=amount) for to in (WORLD, WORLD6)]
    assert network.attempt(ROUTER, *ways) == ["answered"] * 2
    whole = f"ended {amount}"
    server.wait_for(lambda: server.log().count(whole) == 2, "all of both connections has come")
    server.wait_for(lambda: half_closed(network.world) == "", "nobody waits", deadline=5)


def test_connections_to_the_admin_port_end_as_well(network: Network) -> None:
    network.guard()
    server = network.serve(network.pod, ROUTER, str(ADMIN_PORT), "")
    ways = [tcp(to, ADMIN_PORT) for to in LOOPBACKS]
    assert network.attempt(ROUTER, *ways) == ["answered"] * 4
    server.wait_for(lambda: server.log().count("ended") == 4, "all connections have ended")
    server.wait_for(lambda: half_closed(network.pod) == "", "nobody waits", deadline=5)
    assert refused(network) == [0, 0]


def test_neighbours_are_still_found(network: Network) -> None:
    network.guard()
    for end in (network.pod, network.world):
        end.run("ip", "neighbour", "flush", "dev", "eth0")
    assert network.attempt(ROUTER, *EVERYWHERE) == ANSWERED
    # An address is not used before nobody objects to it.
    network.pod.set(ipv6__conf__eth0__accept_dad=1)
    network.pod.run("ip", "address", "add", "fd77::3/64", "dev", "eth0")
    wire = network.sniff()
    network.pod.run("ip", "address", "add", "fd77::4/64", "dev", "eth0")

    def settled() -> bool:
        shown = network.pod.run("ip", "-json", "-6", "address", "show", "dev", "eth0", "tentative")
        return not [each for each in json.loads(shown.stdout) if each.get("addr_info")]

    wire.sniffer.wait_for(settled, "the addresses are in use")
    asked = [json.loads(line) for line in wire.sniffer.log().splitlines() if line[0] == "{"]
    assert [each for each in asked if each["neighbours"] and each.get("source") == "::"]


def test_the_pod_can_be_pinged(network: Network) -> None:
    network.guard()
    network.world.set(ipv4__ping_group_range="0 2147483647")
    pings = [{"kind": "ping", "to": to, "port": 0, "wait": 3} for to in (POD, POD6)]
    assert network.from_outside(*pings) == ["answered"] * 2


def test_what_was_refused_is_counted(network: Network) -> None:
    network.guard()
    assert refused(network) == [0, 0]
    network.attempt(AGENT, tcp(WORLD), tcp(WORLD6), udp(WORLD))
    assert refused(network) == [2, 1]
