from __future__ import annotations

import pytest
from attrs import evolve

from kars_router.guard import Guard, Uids, dns_server, nameservers, port, ruleset

ONE = Uids(1000, 1000)
ASK = "meta l4proto { tcp, udp } th dport 53 accept"
NO_EXTENSIONS = "ip6 nexthdr { tcp, udp }"


def chain(guard: Guard, name: str) -> list[str]:
    """The lines of a chain, without comments."""
    text = ruleset(guard)
    body = text.partition(f"\tchain {name} {{\n")[2].partition("\t}\n")[0]
    return [line.strip().partition(" comment ")[0] for line in body.splitlines()]


def test_one_transaction_replaces_the_table() -> None:
    lines = ruleset(Guard()).splitlines()
    assert lines[:3] == [
        "table inet kars_guard",
        "delete table inet kars_guard",
        "table inet kars_guard {",
    ]
    assert lines[-1] == "}"
    assert ruleset(Guard()) == ruleset(Guard())


def test_the_rules_of_a_pod() -> None:
    """Word for word: whoever changes a rule changes this list, and says why in docs/guard.md."""
    guard = Guard()
    assert chain(guard, "output") == [
        "type filter hook output priority filter; policy drop;",
        "meta skuid { 1001 } accept",
        "meta skuid != { 1001 } goto guarded",
        "icmpv6 type { nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert } accept",
        'oif "lo" tcp flags rst accept',
        "fib saddr type != local counter drop",
        "icmp type echo-reply accept",
        "icmpv6 type echo-reply accept",
        'oif "lo" goto loopback',
        "tcp flags syn goto refuse",
        "meta l4proto tcp accept",
        "drop",
    ]
    assert chain(guard, "guarded") == [
        "fib saddr type != local counter drop",
        'oif "lo" goto loopback',
        "goto refuse",
    ]
    assert chain(guard, "loopback") == [
        "meta skuid 0 accept",
        "tcp dport { 9090 } tcp flags syn goto refuse",
        "accept",
    ]
    assert chain(guard, "refuse") == [
        "meta l4proto tcp counter reject with tcp reset",
        "counter reject with icmpx admin-prohibited",
    ]
    assert chain(guard, "forward") == ["type filter hook forward priority filter; policy drop;"]


@pytest.mark.parametrize(
    ("free", "expected"),
    [
        ([], "{ 1001 }"),
        ([Uids(1337, 1337)], "{ 1001, 1337 }"),
        ([Uids(2000, 2010), Uids(0, 0)], "{ 0, 1001, 2000-2010 }"),
        # nft takes no overlaps.
        ([Uids(2000, 2010), Uids(2005, 2020), Uids(2000, 2001)], "{ 1001, 2000-2020 }"),
        ([Uids(1002, 1005), Uids(1001, 1001)], "{ 1001-1005 }"),
    ],
)
def test_who_is_left_alone(free: list[Uids], expected: str) -> None:
    output = chain(Guard(free=tuple(free)), "output")
    assert output[1] == f"meta skuid {expected} accept"
    assert output[2] == f"meta skuid != {expected} goto guarded"


@pytest.mark.parametrize(
    ("servers", "expected"),
    [
        ((), []),
        (
            ("10.96.0.10",),
            [
                f"meta skuid {{ 1000 }} ip daddr {{ 10.96.0.10 }} ip hdrlength 5 {ASK}",
            ],
        ),
        (
            ("fd00::10", "10.96.0.11", "10.96.0.10", "fd00::a", "10.96.0.10"),
            [
                f"meta skuid {{ 1000 }} ip daddr {{ 10.96.0.10, 10.96.0.11 }} ip hdrlength 5 {ASK}",
                f"meta skuid {{ 1000 }} ip6 daddr {{ fd00::a, fd00::10 }} {NO_EXTENSIONS} {ASK}",
            ],
        ),
    ],
)
def test_dns_goes_to_servers_that_are_named(servers: tuple[str, ...], expected: list[str]) -> None:
    guard = Guard(allow_dns=True, dns_servers=servers)
    assert chain(guard, "guarded")[1:-2] == expected


def test_only_agents_ask() -> None:
    agents = (Uids(3000, 3010), Uids(1000, 1000))
    guard = Guard(agents=agents, allow_dns=True, dns_servers=("10.0.0.1",))
    assert chain(guard, "guarded")[1].startswith("meta skuid { 1000, 3000-3010 } ")


def test_ports() -> None:
    guard = Guard(denied_ports=(9191, 9090, 9090), answer_ports=(8081, 8080))
    assert chain(guard, "loopback")[1] == "tcp dport { 9090, 9191 } tcp flags syn goto refuse"
    answers = "tcp sport { 8080, 8081 } tcp flags ack accept"
    assert chain(guard, "guarded")[1] == answers
    # Of a listener that is the kernel's on a program's behalf.
    output = chain(guard, "output")
    assert output.index(answers) == output.index("tcp flags syn goto refuse") - 1
    assert chain(evolve(guard, denied_ports=()), "loopback") == ["accept"]


def test_an_agent_that_is_root_is_no_visitor() -> None:
    agents = (Uids(1000, 1000), Uids(0, 10))
    assert chain(Guard(agents=agents), "loopback")[0].startswith("tcp dport { 9090 }")


def test_a_dormant_copy_has_the_same_rules() -> None:
    guard = Guard(free=(Uids(1337, 1337),))
    copy = ruleset(guard, "copy", dormant=True)
    assert copy.replace("copy", "kars_guard").replace("\tflags dormant\n", "") == ruleset(guard)
    assert copy.count("\tflags dormant\n") == 1


def test_comments_are_short_enough_for_nft() -> None:
    guard = Guard(allow_dns=True, dns_servers=("10.0.0.1",), answer_ports=(1,))
    for line in ruleset(guard).splitlines():
        comment = line.partition(' comment "')[2]
        assert len(comment) <= 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", Uids(0, 0)),
        ("1000", ONE),
        ("1000-1000", ONE),
        ("1000-1999", Uids(1000, 1999)),
        ("4294967294", Uids(4294967294, 4294967294)),
    ],
)
def test_users(text: str, expected: Uids) -> None:
    assert Uids.parse(text) == expected
    assert Uids.parse(str(expected)) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "number of a user"),
        ("root", "number of a user"),
        ("-1", "number of a user"),
        ("1000-", "number of a user"),
        ("1 - 2", "number of a user"),
        ("1000\n", "number of a user"),
        ("1000,1001", "number of a user"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "number of a user"),
        ("1000 accept", "number of a user"),
        ("4294967295", "at most 4294967294"),
        ("0-4294967295", "at most"),
        ("2-1", "lower number"),
    ],
)
def test_what_is_no_user(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Uids.parse(text)


def test_which_users_are_shared() -> None:
    assert Uids(1, 3).overlaps(Uids(3, 5))
    assert Uids(1, 9).overlaps(Uids(3, 5))
    assert not Uids(1, 2).overlaps(Uids(3, 5))


def test_what_is_a_port() -> None:
    assert [port(text) for text in ("1", "9090", "65535")] == [1, 9090, 65535]
    for text in ("", "0", "65536", "-1", "http", "1-2", "9 ", "99999999"):
        with pytest.raises(ValueError, match="must be a port"):
            port(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.96.0.10", "10.96.0.10"),
        ("FD00::000A", "fd00::a"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:10.96.0.10", "10.96.0.10"),
        ("127.0.0.53", "127.0.0.53"),
    ],
)
def test_dns_servers(text: str, expected: str) -> None:
    assert dns_server(text) == expected


@pytest.mark.parametrize(
    "text",
    ["", "dns", "10.96.0.10/32", "0.0.0.0", "::", "224.0.0.251", "ff02::fb", "255.255.255.255"],
)
def test_what_is_no_dns_server(text: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        dns_server(text)


def test_a_resolv_conf() -> None:
    text = """\
# nameserver 9.9.9.9
search tools.svc.cluster.local svc.cluster.local
nameserver 10.96.0.10
nameserver\tfe80::1%eth0 trailing words
  nameserver 10.96.0.10
nameserver
options ndots:5
"""
    assert nameservers(text) == ("10.96.0.10", "fe80::1")
    assert nameservers("") == ()
    with pytest.raises(ValueError, match=r"nameserver nonsense must be an IP address"):
        nameservers("nameserver nonsense\n")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"agents": (Uids(1000, 1001),)}, "--agent-uid 1000-1001: 1001 is the router's user"),
        ({"router": 1000}, "--agent-uid 1000: 1000 is the router's user"),
        ({"free": (Uids(0, 2000),)}, "--allow-uid 0-2000 would leave the agent unguarded"),
        ({"agents": ()}, "--agent-uid: name"),
        ({"dns_servers": ("10.0.0.1",)}, "--dns-server: say --allow-dns too"),
        ({"answer_ports": (8080, 9090)}, "--answer-port 9090: --deny-loopback-port keeps it"),
    ],
)
def test_what_contradicts_itself(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Guard(**options)  # type: ignore[arg-type]


def test_arguments_are_whole_and_stable() -> None:
    assert Guard().arguments() == [
        *("guard", "--router-uid", "1001", "--agent-uid", "1000", "--deny-loopback-port", "9090")
    ]
    guard = Guard(
        router=2001,
        agents=(Uids(1000, 1000), Uids(3000, 3010)),
        free=(Uids(1337, 1337),),
        allow_dns=True,
        dns_servers=("10.0.0.1", "fd00::a"),
        denied_ports=(),
        answer_ports=(8080,),
    )
    assert guard.arguments() == [
        "guard",
        *("--router-uid", "2001", "--agent-uid", "1000", "--agent-uid", "3000-3010"),
        *("--allow-uid", "1337", "--allow-dns"),
        *("--dns-server", "10.0.0.1", "--dns-server", "fd00::a"),
        *("--deny-loopback-port", "none", "--answer-port", "8080"),
    ]


def test_what_holds_in_a_line() -> None:
    assert Guard().summary() == "unguarded: user 1001; everybody else: loopback but port 9090"
    guard = Guard(
        free=(Uids(2000, 2010),),
        allow_dns=True,
        dns_servers=("10.0.0.1",),
        denied_ports=(),
        answer_ports=(8081, 8080),
    )
    assert guard.summary() == (
        "unguarded: user 1001, 2000-2010; everybody else: loopback; answers at port 8080, 8081; "
        "user 1000: DNS at 10.0.0.1"
    )
