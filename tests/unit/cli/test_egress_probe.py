"""`kars egress probe` on loopback: what is reached, what is refused, and what says nothing."""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from kars_router.cli import egress_probe
from kars_router.cli.egress_connect import Attempt, Ending, attempt
from kars_router.cli.egress_findings import Destination, Findings
from kars_router.cli.main import main


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests connect to loopback only."""
    monkeypatch.setattr(egress_probe, "NOBODY", ())


def probe(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    status = main(["egress", "probe", *map(str, args)])
    out, err = capsys.readouterr()
    return status, out, err


def results(
    capsys: pytest.CaptureFixture[str], *args: object
) -> tuple[int, list[dict[str, Any]], list[str]]:
    status, out, err = probe(capsys, "--no-defaults", *args, "-o", "json")
    assert err == ""
    found = json.loads(out)
    return status, found["results"], found["notes"]


@contextlib.contextmanager
def listening(host: str = "127.0.0.1", backlog: int = 8) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind((host, 0))
        sock.listen(backlog)
        yield sock.getsockname()[1]


@pytest.fixture
def open_port() -> Iterator[int]:
    with listening() as port:
        yield port


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port at which nothing listens and that nobody else gets."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port whose queue is full: Linux drops what comes on top, as a firewall does."""
    with listening(backlog=0) as port, contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        yield port


def test_what_is_declared_is_reached(capsys: pytest.CaptureFixture[str], open_port: int) -> None:
    url = f"http://127.0.0.1:{open_port}/mcp"
    status, (found,), notes = results(capsys, url)
    assert (status, notes) == (0, [])
    assert found == {
        "destination": f"127.0.0.1:{open_port}",
        "for": ["URL"],
        "expected": "allowed",
        "outcome": "connected",
        "verdict": "as expected",
        "addresses": ["127.0.0.1"],
        "reason": "A connection was made.",
    }
    with listening("::1") as port:
        status, (found,), _ = results(capsys, f"ws://[::1]:{port}")
    assert (status, found["destination"]) == (0, f"[::1]:{port}")


def test_what_is_declared_is_not_reached(
    capsys: pytest.CaptureFixture[str], closed_port: int, silent_port: int
) -> None:
    urls = [f"http://127.0.0.1:{port}" for port in (closed_port, silent_port)]
    status, found, notes = results(capsys, *urls, "--seconds", "1.5")
    assert status == 1
    assert [each["outcome"] for each in found] == ["refused", "timeout"]
    assert [each["verdict"] for each in found] == ["unexpected", "unexpected"]
    assert "a firewall answers in its place" in found[0]["reason"]
    assert "nobody is there, or the network is slow" in found[1]["reason"]
    assert notes == []


def test_what_must_be_denied(
    capsys: pytest.CaptureFixture[str], open_port: int, silent_port: int
) -> None:
    url = f"http://127.0.0.1:{open_port}"
    denied = ("--denied", f"127.0.0.1:{silent_port}", "--seconds", "1.5")
    status, found, notes = results(capsys, url, *denied)
    assert status == 0
    assert [each["verdict"] for each in found] == ["as expected", "as expected"]
    assert found[1]["for"] == ["--denied"]
    assert found[1]["expected"] == "denied"
    # Loopback is no network that could be down.
    assert [note.split(",")[0] for note in notes] == ["Nothing outside of the pod was reached"]


def test_what_must_be_denied_is_reached(capsys: pytest.CaptureFixture[str], open_port: int) -> None:
    url = f"http://127.0.0.1:{open_port}"
    status, found, notes = results(capsys, url, "--denied", f"localhost:{open_port}")
    assert status == 1
    assert [each["verdict"] for each in found] == ["as expected", "unexpected"]
    assert notes == []


def test_a_refusal_proves_nothing(
    capsys: pytest.CaptureFixture[str], open_port: int, closed_port: int
) -> None:
    url = f"http://127.0.0.1:{open_port}"
    status, found, _ = results(capsys, url, "--denied", f"127.0.0.1:{closed_port}")
    assert (status, found[1]["verdict"]) == (3, "unclear")


def test_a_name_that_cannot_be_looked_up(
    capsys: pytest.CaptureFixture[str], open_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nobody(*_: object, **__: object) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(trio.socket, "getaddrinfo", nobody)
    status, (found,), _ = results(capsys, "http://nobody.invalid")
    assert (status, found["outcome"], found["addresses"]) == (1, "unresolved", [])
    assert "Name or service not known" in found["reason"]
    denied = ("--denied", "nobody.invalid:2")
    status, both, _ = results(capsys, "http://nobody.invalid:1", *denied)
    assert (status, [each["verdict"] for each in both]) == (1, ["unexpected", "unclear"])


async def test_a_look_up_that_takes_too_long(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def never(*_: object, **__: object) -> Any:
        await trio.sleep_forever()

    monkeypatch.setattr(trio.socket, "getaddrinfo", never)
    found = await attempt("a.example", 80, 5)
    assert found == Attempt(Ending.UNRESOLVED, "The name was not looked up within 5 s.")
    assert trio.current_time() == pytest.approx(5)


async def test_the_address_of_a_name_that_shows_most_counts(
    monkeypatch: pytest.MonkeyPatch, open_port: int, closed_port: int
) -> None:
    async def two(*_: object, **__: object) -> Any:
        there = [("127.0.0.1", closed_port), ("127.0.0.1", open_port)]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", each) for each in there]

    monkeypatch.setattr(trio.socket, "getaddrinfo", two)
    found = await attempt("a.example", 80, 5)
    assert (found.ending, found.addresses) == (Ending.CONNECTED, ("127.0.0.1", "127.0.0.1"))


async def test_where_there_is_no_way() -> None:
    # No socket goes to a broadcast address without asking for it.
    found = await attempt("255.255.255.255", 80, 5)
    assert found.ending is Ending.UNREACHABLE
    assert "no way there" in found.said


def test_the_configuration_of_the_router(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_port: int,
) -> None:
    url = f"http://127.0.0.1:{open_port}"
    oauth = {"issuer": url, "clientIdFromEnv": "NOT", "clientSecretFromEnv": "HERE"}
    config = {
        "servers": {
            "a": {"url": f"{url}/a", "oauth": oauth},
            "b": {"url": f"{url}/b", "bearerFromEnv": "NOT_HERE_EITHER"},
            "c": {"command": ["x"]},
        }
    }
    file = tmp_path / "kars.yaml"
    file.write_text(json.dumps(config))
    status, (found,), _ = results(capsys, "-c", file)
    assert (status, found["for"]) == (0, ["a", "b"])
    monkeypatch.setenv("KARS_CONFIG", str(file))
    assert results(capsys)[1] == [found]
    status, found_too, _ = results(capsys, url, "-c", file)
    assert found_too[0]["for"] == ["URL", "a", "b"]


def test_what_is_denied_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Destination] = []

    async def record(destinations: list[Destination], seconds: float) -> list[Attempt]:
        seen[:] = destinations
        return [Attempt(Ending.TIMEOUT, "", ("10.0.0.1",)) for _ in destinations]

    monkeypatch.setattr(egress_probe, "_try_all", record)
    for host, shown in (("10.96.0.1", "10.96.0.1:6443"), ("fd00::1", "[fd00::1]:6443")):
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
        main(["egress", "probe", "http://db", "--denied", "1.1.1.1:80"])
        assert [(str(each), each.expected) for each in seen] == [
            ("db:80", True),
            ("169.254.169.254:80", False),
            (shown, False),
            ("1.1.1.1:80", False),
        ]
    # What is declared is not denied at the same time.
    main(["egress", "probe", "http://169.254.169.254", "http://[fd00::1]:6443"])
    assert [each.expected for each in seen] == [True, True]


def test_the_table(capsys: pytest.CaptureFixture[str], open_port: int, silent_port: int) -> None:
    args = ("--no-defaults", "--seconds", "1.5", "--denied", f"127.0.0.1:{silent_port}")
    status, out, _ = probe(capsys, f"http://127.0.0.1:{open_port}", *args)
    assert status == 0
    heading, one, two, note = out.splitlines()
    assert heading.split() == ["DESTINATION", "FOR", "EXPECTED", "OUTCOME", "VERDICT", "WHY"]
    assert one.split()[1:6] == ["URL", "allowed", "connected", "as", "expected"]
    assert two.split()[1:6] == ["--denied", "denied", "timeout", "as", "expected"]
    assert note.startswith("Nothing outside of the pod was reached")


@pytest.mark.parametrize(
    ("args", "said", "status"),
    [
        ((), "-c", 1),
        (("-c", "no-such-file"), "no-such-file: there is no such file", 1),
        (("ftp://h",), "URL: The URL does not start with", 1),
        (("http://h", "--denied", "h"), "HOST:PORT", 2),
        (("http://h", "--denied", "h:99999"), "65535", 2),
        (("http://h", "--denied", "a/b:80"), "HOST:PORT", 2),
        (("http://h", "--denied", "h:80"), "cannot be both", 2),
        (("http://h", "--seconds", "0"), "--seconds", 2),
        (("http://h", "-o", "xml"), "xml", 2),
    ],
)
def test_wrong_usage(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[str, ...],
    said: str,
    status: int,
) -> None:
    monkeypatch.delenv("KARS_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    found, out, err = probe(capsys, *args)
    assert (found, out) == (status, "")
    assert said in err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("servers: {a: {url: 'http://0.0.0.0'}}", "a: The URL's address is nobody's"),
        ("servers: {a: {command: [x]}}", "nothing to try"),
        ("{apiVersion: v1, kind: ConfigMap}", "holds no configuration of a router"),
    ],
)
def test_configurations_that_declare_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: str
) -> None:
    file = tmp_path / "kars.yaml"
    file.write_text(text)
    status, out, err = probe(capsys, "-c", file, "--no-defaults")
    assert (status, out) == (1, "")
    assert said in err


def test_an_environment_that_makes_no_sense(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "a b")
    status, _, err = probe(capsys, "http://h")
    assert status == 1
    assert "KUBERNETES_SERVICE_HOST" in err


# --- what attempts show together -----------------------------------------------------------------


def tried(ending: Ending, *addresses: str) -> Attempt:
    return Attempt(ending, "", addresses or ("10.0.0.1",))


def there(expected: bool) -> Destination:
    return Destination(host="a.example", port=80, expected=expected, whose=())


NOBODY4, NOBODY6 = "192.0.2.1", "2001:db8::1"
SILENT = (tried(Ending.TIMEOUT, NOBODY4), tried(Ending.UNREACHABLE, NOBODY6))


@pytest.mark.parametrize(
    ("ending", "expected", "verdict"),
    [
        (Ending.CONNECTED, True, "as expected"),
        (Ending.CONNECTED, False, "unexpected"),
        (Ending.REFUSED, True, "unexpected"),
        (Ending.REFUSED, False, "unclear"),
        (Ending.TIMEOUT, True, "unexpected"),
        (Ending.TIMEOUT, False, "as expected"),
        (Ending.UNREACHABLE, True, "unexpected"),
        (Ending.UNREACHABLE, False, "as expected"),
        (Ending.UNRESOLVED, True, "unexpected"),
        (Ending.UNRESOLVED, False, "unclear"),
    ],
)
def test_what_an_ending_shows(ending: Ending, expected: bool, verdict: str) -> None:
    row = there(expected), tried(ending, *([] if ending is Ending.UNRESOLVED else ["10.0.0.1"]))
    assert Findings(rows=(row,), nobody=SILENT).verdict(*row) == verdict


def test_a_firewall_that_refuses_everybody() -> None:
    """As `kars guard` does: refusals are its own, of the version of IP in which it refuses."""
    nobody = tried(Ending.REFUSED, NOBODY4), tried(Ending.TIMEOUT, NOBODY6)
    v4 = there(False), tried(Ending.REFUSED, "10.0.0.1")
    v6 = there(False), tried(Ending.REFUSED, "fd00::1")
    both = there(False), tried(Ending.REFUSED, "10.0.0.1", "fd00::1")
    here = there(False), tried(Ending.REFUSED, "127.0.0.1")
    declared = there(True), tried(Ending.REFUSED, "10.0.0.1")
    found = Findings(rows=(v4, v6, both, here, declared), nobody=nobody)
    assert [found.verdict(*row) for row in found.rows] == [
        "as expected",
        "unclear",
        "unclear",
        "unclear",
        "unexpected",
    ]
    (note,) = found.notes()
    assert "refusals are taken for its own" in note
    assert Findings(rows=(v6, here), nobody=nobody).notes() == []


def test_a_proxy_that_accepts_everybody() -> None:
    nobody = (tried(Ending.CONNECTED, NOBODY4), tried(Ending.UNREACHABLE, NOBODY6))
    rows = tuple((there(expected), tried(Ending.CONNECTED)) for expected in (True, False))
    here = there(True), tried(Ending.CONNECTED, "127.0.0.1", "::1")
    v6 = there(True), tried(Ending.CONNECTED, "fe80::1%eth0")
    found = Findings(rows=(*rows, here, v6), nobody=nobody)
    assert [found.verdict(*row) for row in found.rows] == [
        "unclear",
        "unclear",
        "as expected",
        "as expected",
    ]
    (note,) = found.notes()
    assert "a connection shows nothing" in note


def test_silence_proves_more_where_something_else_was_reached() -> None:
    silent = there(False), tried(Ending.TIMEOUT)
    reached = there(True), tried(Ending.CONNECTED, "10.0.0.2")
    assert Findings(rows=(silent, reached), nobody=SILENT).notes() == []
    (note,) = Findings(rows=(silent,), nobody=SILENT).notes()
    assert note.startswith("Nothing outside of the pod was reached")
