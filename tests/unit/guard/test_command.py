"""`kars guard` with a program in the place of nft that does what each test says."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from kars_router.cli import guard as command
from kars_router.cli import nft
from kars_router.cli.main import main
from kars_router.guard import Guard, Uids, ruleset

# Keeps each table in a file and lists it as it was loaded, line by line.
KEEPS = """
case "$1 $2" in
"-f -")
    text=$(cat); name=$(echo "$text" | head -n 1 | cut -d ' ' -f 3)
    echo "$text" | tail -n +3 > "$HOME/$name";;
"--stateless list")
    [ -f "$HOME/$5" ] || { echo "Error: No such file or directory" >&2
        echo "list table inet $5" >&2; exit 1; }
    cat "$HOME/$5";;
"delete table") rm "$HOME/$4";;
esac
"""
Program = Callable[[str], None]
Ran = tuple[int, str, str]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Makes nft a shell script, in a network that is a pod's."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(nft, "_FIRST_ONLY", tmp_path / "none")

    def make(script: str) -> None:
        file = tmp_path / "nft"
        environment = f"PATH=/usr/bin:/bin\nHOME={tmp_path}\n"
        file.write_text(f"#!/bin/sh\n{environment}{script}\n", encoding="utf-8")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    return make


@pytest.fixture
def kars(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    def run(*args: str) -> Ran:
        status = main(["guard", *args])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def test_a_dry_run_prints_the_rules(kars: Callable[..., Ran]) -> None:
    assert kars("--dry-run") == (0, ruleset(Guard()), "")


@pytest.mark.parametrize(
    "guard",
    [
        Guard(),
        Guard(
            router=2001,
            agents=(Uids(1000, 1000), Uids(3000, 3010)),
            free=(Uids(1337, 1337), Uids(0, 0)),
            allow_dns=True,
            dns_servers=("10.0.0.1", "fd00::a"),
            denied_ports=(),
            answer_ports=(8080, 8081),
        ),
        Guard(denied_ports=(9090, 9191)),
    ],
)
def test_the_arguments_for_a_manifest_mean_what_they_were_made_of(
    kars: Callable[..., Ran], guard: Guard
) -> None:
    assert kars(*guard.arguments()[1:], "--dry-run") == (0, ruleset(guard), "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--router-uid", "root"], "--router-uid"),
        (["--router-uid", "1-2"], "must be one user; name others with --allow-uid"),
        (["--agent-uid", "agent"], "must be the number of a user"),
        (["--agent-uid", "1001"], "the agent would have the router's way out"),
        (["--allow-uid", "1000"], "would leave the agent unguarded"),
        (["--allow-uid", "4294967295"], "must be at most"),
        (["--dns-server", "10.0.0.1"], "say --allow-dns too"),
        (["--allow-dns", "--dns-server", "kube-dns"], "must be an IP address"),
        (["--deny-loopback-port", "0"], "must be a port"),
        (["--deny-loopback-port", "none", "--deny-loopback-port", "1"], "or none alone"),
        (["--answer-port", "9090"], "--deny-loopback-port keeps it for the router"),
        (["--answer-port", "x"], "must be a port"),
        (["--dry-run", "--check"], "say one of them"),
    ],
)
def test_refused_options(kars: Callable[..., Ran], options: list[str], said: str) -> None:
    status, out, err = kars(*options)
    assert (status, out) == (2, "")
    assert said in err


def test_rules_are_loaded_and_read_back(program: Program, kars: Callable[..., Ran]) -> None:
    program(KEEPS)
    assert kars() == (0, f"in force: {Guard().summary()}\n", "")
    assert kars("--check") == (0, f"in force: {Guard().summary()}\n", "")
    assert kars() == (0, f"in force: {Guard().summary()}\n", "")


def test_check_says_what_is_not_there(program: Program, kars: Callable[..., Ran]) -> None:
    program(KEEPS)
    assert kars("--check") == (1, "not in force: there is no table inet kars_guard\n", "")
    kars("--allow-dns", "--dns-server", "10.0.0.1")
    status, out, err = kars("--check", "--answer-port", "8080")
    assert (status, err) == (1, "")
    assert out.startswith("other rules are in force in table inet kars_guard: ")
    assert ": - tcp sport { 8080 } tcp flags ack accept; " in out
    assert "; + meta skuid { 1000 } ip daddr { 10.0.0.1 } " in out


def test_many_differences_are_not_all_told(
    program: Program, kars: Callable[..., Ran], tmp_path: Path
) -> None:
    program(KEEPS)
    kars()
    (tmp_path / "kars_guard").write_text("table inet kars_guard {\n}\n")
    status, out, _ = kars("--check")
    assert status == 1
    assert out.endswith(" more\n")
    assert len(out) < 600


def test_rules_that_do_not_stay_are_an_error(program: Program, kars: Callable[..., Ran]) -> None:
    program(f'{KEEPS}\n[ "$1" != -f ] || : > "$HOME/kars_guard"')
    status, out, err = kars()
    assert (status, out) == (1, "")
    assert "something else changes them" in err


def test_a_table_that_vanishes_is_an_error(program: Program, kars: Callable[..., Ran]) -> None:
    program(f'{KEEPS}\n[ "$1" != -f ] || rm "$HOME/kars_guard"')
    status, out, err = kars()
    assert (status, out) == (1, "")
    assert err.startswith("kars: not in force: there is no table inet kars_guard; ")


@pytest.mark.parametrize("options", [[], ["--check"]])
@pytest.mark.parametrize(
    ("script", "said"),
    [
        (
            "echo 'Operation not permitted (you must be root)' >&2; exit 1",
            "run it as user 0 with the capability NET_ADMIN",
        ),
        (
            "echo 'cache initialization failed: Operation not permitted' >&2; exit 1",
            "run it as user 0 with the capability NET_ADMIN",
        ),
        (
            "echo 'Unable to initialize Netlink socket: Protocol not supported' >&2; exit 1",
            "this kernel has no nf_tables",
        ),
        ("echo 'Error: out of luck' >&2; echo more >&2; exit 1", "nft failed: Error: out of luck"),
        ("exit 7", "nft failed: it did not say why"),
        ("exit 0", "does not list the rules that it says it has loaded"),
    ],
)
def test_each_failure_is_one_sentence(
    program: Program, kars: Callable[..., Ran], options: list[str], script: str, said: str
) -> None:
    program(script)
    status, out, err = kars(*options)
    assert (status, out) == (3, "")
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("rule", "why", "said"),
    [
        ("fib saddr type != local counter drop", "No such file or directory", "nft_fib_inet"),
        ("meta skuid { 1001 } accept", "Operation not supported", "`meta skuid`"),
        (
            "meta l4proto tcp counter reject with tcp reset",
            "No such file or directory",
            "nft_reject_inet",
        ),
        (
            "type filter hook output priority filter; policy drop;",
            "Operation not supported",
            "nf_tables_inet",
        ),
        ("table inet kars_guard", "Operation not supported", "nf_tables_inet"),
    ],
)
def test_what_the_kernel_lacks_is_named(
    program: Program, kars: Callable[..., Ran], rule: str, why: str, said: str
) -> None:
    program(
        f"""case $1 in -f)
        echo '/dev/stdin:7:3-40: Error: Could not process rule: {why}' >&2
        echo '\t\t{rule}' >&2
        echo '\t\t^^^^^^' >&2
        exit 1
        esac"""
    )
    status, out, err = kars()
    assert (status, out) == (3, "")
    assert said in err
    assert f"which the rule `{rule}` needs" in err


def test_another_line_that_is_refused(program: Program, kars: Callable[..., Ran]) -> None:
    program("echo 'Error: No such file or directory; did you mean x?' >&2; exit 1")
    assert kars() == (
        3,
        "",
        "kars: nft failed: Error: No such file or directory; did you mean x?\n",
    )


def test_no_nft(
    program: Program, kars: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "_SYSTEM", "/none")
    status, out, err = kars()
    assert (status, out) == (3, "")
    assert "install the package nftables in the image" in err


def test_nft_that_cannot_be_run(program: Program, kars: Callable[..., Ran], tmp_path: Path) -> None:
    program("")
    (tmp_path / "nft").write_bytes(b"\x7fELF nothing")
    status, _, err = kars()
    assert status == 3
    assert "cannot be run (Exec format error)" in err


def test_nft_that_does_not_end(
    program: Program, kars: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nft, "_SECONDS", 0.1)
    program("exec sleep 60")
    status, _, err = kars()
    assert status == 3
    assert "did not end within 0.1 seconds" in err


def test_the_machines_own_network_is_left_alone(
    program: Program, kars: Callable[..., Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(KEEPS)
    first = tmp_path / "netdev_budget"
    first.touch()
    monkeypatch.setattr(nft, "_FIRST_ONLY", first)
    status, out, err = kars()
    assert (status, out) == (1, "")
    assert "take hostNetwork out of the pod" in err
    assert not (tmp_path / "kars_guard").exists()
    assert kars("--whole-machine")[0] == 0


@pytest.mark.parametrize(
    ("content", "status", "said"),
    [
        ("nameserver 10.96.0.10\nnameserver fd00::a\n", 0, ""),
        ("search svc\n", 1, "names no DNS server; name one with --dns-server"),
        ("nameserver kube-dns\n", 1, "nameserver kube-dns must be an IP address"),
        (None, 3, "cannot be read (No such file or directory); name DNS servers"),
    ],
)
def test_dns_servers_of_the_pod(
    kars: Callable[..., Ran],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: str | None,
    status: int,
    said: str,
) -> None:
    file = tmp_path / "resolv.conf"
    if content is not None:
        file.write_text(content, encoding="utf-8")
    monkeypatch.setattr(command, "RESOLV_CONF", file)
    found, out, err = kars("--allow-dns", "--dry-run")
    assert found == status
    assert said in err
    servers = ("10.96.0.10", "fd00::a")
    expected = ruleset(Guard(allow_dns=True, dns_servers=servers)) if status == 0 else ""
    assert out == expected
