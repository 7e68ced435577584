"""`kars egress probe` in a pod: with the rules of `kars guard`, and with a policy on the wire."""

from __future__ import annotations

import json
import sys
from typing import Any

from guard.network import READS_ALL, WORLD, WORLD6, Network, as_user

from kars_router.guard import AGENT, ROUTER

V4, V6 = f"{WORLD}:7000", f"[{WORLD6}]:7000"
# A first packet over IPv6 may be lost while neighbours look for each other, and goes again after
# a second.
QUICK = ("--seconds", "3")
# As a network plugin does: what is not open is dropped without a word.
POLICY = f"""
table inet plugin {{
  chain out {{
    type filter hook output priority 100; policy drop;
    oifname "lo" accept
    meta l4proto ipv6-icmp accept
    ip daddr {WORLD} tcp dport 7000 accept
  }}
}}
"""


def probe(network: Network, uid: int, *args: str) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Runs it as a user without capabilities; its answer."""
    # The one that is installed, and not what may be in the working directory.
    argv = [sys.executable, "-P", "-m", "kars_router", "egress", "probe", *args, "-o", "json"]
    done = network.pod.run(*as_user(uid, argv, keeps=READS_ALL), status=None)
    assert done.stderr == ""
    found = json.loads(done.stdout)
    return done.returncode, found["results"], found["notes"]


def said(results: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(each["destination"], each["outcome"], each["verdict"]) for each in results]


def test_without_rules_what_must_be_denied_is_reached(network: Network) -> None:
    status, results, notes = probe(network, AGENT, f"http://{V4}", "--denied", V6, *QUICK)
    assert said(results) == [
        (V4, "connected", "as expected"),
        ("169.254.169.254:80", "timeout", "as expected"),
        (V6, "connected", "unexpected"),
    ]
    assert (status, notes) == (1, [])


def test_the_agent_of_a_guarded_pod_is_refused_everything(network: Network) -> None:
    network.guard()
    denied = ("--denied", V4, "--denied", V6, "--no-defaults")
    status, results, notes = probe(network, ROUTER, f"http://{V4}", f"http://{V6}", "--no-defaults")
    assert (status, notes) == (0, [])
    network.serve(network.pod, ROUTER, "8443", "", "127.0.0.1")
    status, results, notes = probe(network, AGENT, "http://127.0.0.1:8443", *denied)
    assert said(results) == [
        ("127.0.0.1:8443", "connected", "as expected"),
        (V4, "refused", "as expected"),
        (V6, "refused", "as expected"),
    ]
    assert status == 0
    (note,) = notes
    assert "as `kars guard` does" in note


def test_a_policy_drops_what_it_does_not_open(network: Network) -> None:
    network.pod.run("nft", "-f", "-", text=POLICY)
    status, results, notes = probe(network, ROUTER, f"http://{V4}", "--denied", V6, *QUICK)
    assert (status, notes) == (0, [])
    assert said(results) == [
        (V4, "connected", "as expected"),
        ("169.254.169.254:80", "timeout", "as expected"),
        (V6, "timeout", "as expected"),
    ]
    status, results, notes = probe(network, ROUTER, f"http://{V6}", *QUICK)
    assert status == 1
    assert results[0]["verdict"] == "unexpected"
    assert len(notes) == 1


def test_a_port_at_which_nothing_listens_may_be_open_all_the_same(network: Network) -> None:
    denied = ("--denied", f"{WORLD}:7999", "--no-defaults")
    status, results, _ = probe(network, AGENT, f"http://{V4}", *denied, *QUICK)
    assert status == 3
    assert said(results)[1] == (f"{WORLD}:7999", "refused", "unclear")
