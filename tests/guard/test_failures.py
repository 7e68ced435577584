"""What becomes of the pod when rules cannot be put in force: it does not start, and is not open."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from guard.network import WORLD, WORLD6, Network

from kars_router.guard import AGENT, TABLE

DIRECT = [{"kind": "tcp", "to": to, "port": 7000} for to in (WORLD, WORLD6)]
REFUSED = ["ECONNREFUSED"] * 2


def broken(tmp_path: Path, script: str) -> dict[str, str]:
    """An environment in which nft is that shell script; `$NFT` there is the real one."""
    real = shutil.which("nft")
    directory = tmp_path / "broken"
    directory.mkdir()
    program = directory / "nft"
    text = f"#!/bin/sh\nPATH={os.environ['PATH']} NFT={real}\n{script}\n"
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return {"PATH": f"{directory}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("echo Error: something >&2; exit 1", 3, "nft failed: Error: something"),
        ("kill -9 $$", 3, "nft failed: it did not say why"),
        # It says that it has done it.
        ("exit 0", 3, "does not list the rules that it says it has loaded"),
        ('[ "$1" = -f ] || exec $NFT "$@"', 1, "no table inet kars_guard"),
        # It does less.
        (
            'case $1 in -f) grep -v "flags syn" | $NFT "$@";; *) exec $NFT "$@";; esac',
            3,
            "does not list the rules that it says it has loaded",
        ),
        # Somebody undoes a part of it at once.
        (
            '$NFT "$@"; status=$?; $NFT flush chain inet kars_guard loopback; exit $status',
            1,
            "- accept",
        ),
    ],
)
def test_a_broken_nft_is_an_error(
    network: Network, tmp_path: Path, script: str, status: int, said: str
) -> None:
    failed = network.pod.guard(status=status, env=broken(tmp_path, script))
    assert failed.stdout == ""
    (line,) = failed.stderr.splitlines()
    assert said in line


def test_what_was_in_force_stays(network: Network, tmp_path: Path) -> None:
    network.guard()
    network.pod.guard(
        "--allow-dns", "--dns-server", WORLD, status=3, env=broken(tmp_path, "exit 1")
    )
    assert network.attempt(AGENT, *DIRECT) == REFUSED
    assert network.guard("--check").startswith("in force: ")


def test_a_transaction_that_fails_leaves_nothing(network: Network, tmp_path: Path) -> None:
    """The last line is wrong; those before it were not."""
    script = 'case "$1" in -f) (cat; echo nonsense) | $NFT "$@";; *) $NFT "$@";; esac'
    failed = network.pod.guard(status=3, env=broken(tmp_path, script))
    assert "syntax error" in failed.stderr
    assert network.pod.run("nft", "list", "ruleset").stdout == ""


def test_without_the_capability(network: Network) -> None:
    argv = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"]
    argv += [sys.executable, "-P", "-m", "kars_router", "guard"]
    for more in ([], ["--check"]):
        failed = network.pod.run(*argv, *more, status=3)
        assert "NET_ADMIN" in failed.stderr
        assert len(failed.stderr.splitlines()) == 1
    assert network.pod.run("nft", "list", "ruleset").stdout == ""


def test_check_looks_and_changes_nothing(network: Network) -> None:
    def rules() -> str:
        return network.pod.run("nft", "--stateless", "list", "ruleset").stdout

    found = network.pod.guard("--check", status=1)
    assert found.stdout == "not in force: there is no table inet kars_guard\n"
    assert rules() == ""
    network.guard()
    before = rules()
    assert network.guard("--check") == network.guard()
    found = network.pod.guard("--check", "--answer-port", "8000", status=1)
    assert "- tcp sport 8000 " in found.stdout
    assert rules() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (f"insert rule inet {TABLE} output accept", "+ accept"),
        (f"delete chain inet {TABLE} forward", "- chain forward {"),
        (f"add table inet {TABLE} {{ flags dormant; }}", "+ flags dormant"),
        (f"add chain inet {TABLE} output {{ policy accept; }}", "policy accept"),
        ("flush ruleset", "there is no table"),
    ],
)
def test_check_sees_what_was_changed(network: Network, change: str, said: str) -> None:
    network.guard()
    network.pod.run("nft", change)
    assert said in network.pod.guard("--check", status=1).stdout
    network.guard()
    network.guard("--check")
    assert network.attempt(AGENT, *DIRECT) == REFUSED
