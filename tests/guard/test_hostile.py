"""The rules, attacked by an agent: nothing of what it tries is to be seen on the pod's wire.

Each way is tried without rules first, where something does get out: one that fails by itself would
prove nothing.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest
from guard.network import (
    DNS,
    DNS6,
    ELSEWHERE6,
    POD,
    POD6,
    PROGRAMS,
    WORLD,
    WORLD6,
    Network,
    as_user,
    stdlib_python,
)

from kars_router.guard import ADMIN_PORT, AGENT, ROUTER

ROUTER_PORT = 40123
PERMITTED = {  # such as container runtimes and clusters have it, and worse
    "ipv4__ip_unprivileged_port_start": 0,
    "ipv4__ping_group_range": "0 2147483647",
    "ipv4__ip_forward": 1,
    "ipv4__conf__all__accept_source_route": 1,
    "ipv4__conf__lo__accept_source_route": 1,
    "ipv4__conf__all__rp_filter": 0,
    "ipv4__tcp_fastopen": 3,
    "ipv6__conf__all__forwarding": 1,
    "ipv6__conf__all__seg6_enabled": 1,
    "ipv6__conf__lo__seg6_enabled": 1,
}


def place(network: Network, **more: Any) -> str:
    addresses = {
        "pod": POD,
        "pod6": POD6,
        "world": WORLD,
        "world6": WORLD6,
        "world_link": network.link_local(network.world),
        "elsewhere6": ELSEWHERE6,
        "dns": DNS,
        "dns6": DNS6,
        "router_port": ROUTER_PORT,
        "router_uid": ROUTER,
    }
    return json.dumps({**addresses, **more})


def attack(network: Network, name: str, **more: Any) -> Any:
    return network.pod.python(AGENT, "hostile", name, place(network, **more))


@pytest.fixture
def permissive(network: Network) -> Network:
    """A pod whose settings admit whatever settings can, and in which the router listens."""
    network.pod.set(**PERMITTED)
    network.serve(network.pod, ROUTER, f"{ADMIN_PORT},9191", "")
    return network


TRICKS = [
    "straight",
    "link_local",
    "to_everybody",
    "in_pieces",
    "bound_to_a_device",
    "own_address_by_the_wire",
    "with_the_first_packet",
    "multipath",
    "pings",
    "groups",
    "answers_to_a_made_up_source",
    "two_sockets_and_a_made_up_source",
    "somebody_elses_flow",
    "source_routes",
    "root_in_a_namespace_of_users",
]


@pytest.mark.parametrize("name", TRICKS)
def test_without_rules_it_gets_out(permissive: Network, name: str) -> None:
    wire = permissive.sniff()
    wire.frames()
    attack(permissive, name)
    assert wire.frames()


@pytest.mark.parametrize("name", TRICKS)
def test_nothing_gets_out(permissive: Network, name: str) -> None:
    permissive.guard("--allow-dns", "--dns-server", DNS, "--dns-server", DNS6)
    wire = permissive.sniff()
    wire.frames()
    print(attack(permissive, name))  # what the agent was told, for whoever reads a failure
    assert wire.frames() == []


def test_what_takes_a_capability(permissive: Network) -> None:
    permissive.guard()
    refused = "EPERM"
    assert attack(permissive, "capabilities") == {
        "raw": [refused] * 4,
        "mark": [refused],
        "transparent": [refused] * 2,
        "user": [refused] * 2,
        "fsuid": ["True"],
        **{name: ["failed"] for name in ("rules", "flush", "route")},
    }
    permissive.pod.guard("--check")


def test_raw_sockets_of_an_agent_that_has_them(permissive: Network) -> None:
    """It should not, but the rules do not depend on that; packet sockets are beyond them."""
    permissive.guard("--allow-dns", "--dns-server", DNS, "--dns-server", DNS6)
    wire = permissive.sniff()
    wire.frames()
    source = (PROGRAMS / "hostile.py").read_text(encoding="utf-8")
    argv = [*stdlib_python(), "-c", source, "raw_packets", place(permissive)]
    done = permissive.pod.run(*as_user(AGENT, argv, keeps="net_raw"))
    assert set(json.loads(done.stdout)) <= {"done", "EPERM"}
    assert wire.frames() == []


def test_what_else_the_kernel_speaks(permissive: Network) -> None:
    permissive.guard()
    wire = permissive.sniff()
    wire.frames()
    print(attack(permissive, "other_protocols"))
    assert wire.frames() == []


def test_the_admin_port_as_multipath(permissive: Network) -> None:
    assert attack(permissive, "multipath_to_the_admin_port") == ["done"] * 4
    permissive.guard()
    assert attack(permissive, "multipath_to_the_admin_port") == ["ECONNREFUSED"] * 4


def test_the_sockets_of_the_router(permissive: Network) -> None:
    permissive.guard()
    router = permissive.serve(permissive.pod, ROUTER, "7000", "")
    assert attack(permissive, "sockets_of_the_router", router_pid=router.pid) == {
        "taken": ["EPERM"],
        "listed": "EACCES",
        "memory": "EACCES",
    }


@pytest.mark.parametrize("cookies", [0, 1, 2])
def test_whoever_calls_the_agent_hears_nothing(permissive: Network, cookies: int) -> None:
    """With SYN cookies, answers to a first packet belong to nobody."""
    permissive.pod.set(ipv4__tcp_syncookies=cookies)
    waiting = place(permissive)
    permissive.start_program(permissive.pod, AGENT, "hostile", "waiting_to_be_called", waiting)
    calls = [
        {"kind": "tcp", "to": to, "port": port, "wait": 1}
        for to in (POD, POD6)
        for port in (7600, 7601)
    ]
    assert permissive.from_outside(*calls) == ["answered"] * 4
    permissive.guard()
    wire = permissive.sniff()
    wire.frames()
    assert permissive.from_outside(*calls) == ["silence"] * 4
    assert wire.frames() == []
    # Where it may answer it does, however its listener was made.
    permissive.guard("--answer-port", "7600", "--answer-port", "7601")
    assert permissive.from_outside(*calls) == ["answered"] * 4


def test_connections_from_before_the_rules(permissive: Network) -> None:
    argv = [*stdlib_python(), "-c", (PROGRAMS / "hostile.py").read_text(encoding="utf-8")]
    command = as_user(AGENT, [*argv, "before_the_rules", place(permissive)])
    with subprocess.Popen(
        permissive.pod.argv(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        permissive.guard()
        wire = permissive.sniff()
        wire.frames()
        process.stdin.write("\n")
        process.stdin.flush()
        # What was on its way to it is still there; then it hears that the connection is gone.
        assert json.loads(process.stdout.readline()) == [["done", "done", "ECONNRESET"]] * 2
    assert wire.frames() == []
