from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from kars_router.cli.main import main
from kars_router.config.schema import Config

GOOD = "servers:\n  web: {url: 'http://127.0.0.1:1/mcp?key=s3cret'}\n  db: {url: 'http://h/'}\n"
BAD = "listen: 1\nservers: {web: {url: x, alowedTools: []}}\n"
Probed = list[tuple[str, bool, str, list[str]]]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KARS_CONFIG", raising=False)
    return tmp_path


def kars(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(["check", *args])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_valid_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "my.yaml").write_text(GOOD)
    assert kars(capsys, "my.yaml") == (0, "my.yaml: valid, 2 servers\n", "")


def test_a_token_of_agents_that_is_not_there_yet(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "my.yaml").write_text(f"{GOOD}agentAuth: {{tokenFromFile: tok}}\n")
    status, out, _ = kars(capsys, "my.yaml")
    missing = f"{place / 'tok'} is not there; the router does not start without it"
    assert (status, out.splitlines()[1]) == (0, f"warning: agentAuth.tokenFromFile: {missing}")
    (place / "tok").write_text("s3cret")
    assert kars(capsys, "my.yaml") == (0, "my.yaml: valid, 2 servers\n", "")


def test_which_file_is_meant(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "kars: there is no kars.yaml here; name a file or set KARS_CONFIG\n"
    assert kars(capsys) == (1, "", said)
    (place / "kars.yaml").write_text("servers: {web: {url: 'http://h/'}}")
    assert kars(capsys) == (0, "kars.yaml: valid, 1 server\n", "")
    (place / "other.yaml").write_text(GOOD)
    monkeypatch.setenv("KARS_CONFIG", "other.yaml")
    assert kars(capsys) == (0, "other.yaml: valid, 2 servers\n", "")
    assert kars(capsys, "kars.yaml")[1] == "kars.yaml: valid, 1 server\n"


def test_mistakes_are_lines_on_stderr(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "kars.yaml").write_text(BAD)
    status, out, err = kars(capsys)
    assert (status, out) == (1, "")
    assert err == (
        "kars.yaml: listen: must be a string, not 1\n"
        "kars.yaml: servers.web.url: must start with http://, https://, ws:// or wss://\n"
        "kars.yaml: servers.web.alowedTools: is not a known key (did you mean 'allowedTools'?)\n"
    )


def test_mistakes_as_data(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "kars.yaml").write_text(BAD)
    status, out, err = kars(capsys, "-o", "json")
    answer = json.loads(out)
    assert (status, err) == (1, "")
    assert answer["valid"] is False
    assert answer["problems"][0] == {"path": "listen", "message": "must be a string, not 1"}
    assert [each["path"] for each in answer["problems"]] == [
        "listen",
        "servers.web.url",
        "servers.web.alowedTools",
    ]
    status, out, err = kars(capsys, "-o", "yaml")
    assert (status, YAML(typ="safe", pure=True).load(out), err) == (1, answer, "")


def test_an_unreadable_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert kars(capsys, ".") == (1, "", ".: cannot be read: Is a directory\n")
    status, out, _ = kars(capsys, "none", "-o", "json")
    assert status == 1
    assert json.loads(out) == {
        "valid": False,
        "problems": [{"path": "", "message": "cannot be read: No such file or directory"}],
    }


def test_a_valid_file_as_data_has_defaults_and_no_secrets(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "kars.yaml").write_text(GOOD)
    status, out, err = kars(capsys, "-o", "json")
    answer = json.loads(out)
    assert (status, err) == (0, "")
    assert (answer["valid"], answer["problems"]) == (True, [])
    assert answer["config"]["servers"]["web"]["timeouts"]["call"] == "5m"
    assert list(answer["config"]["servers"]) == ["web", "db"]
    assert "s3cret" not in out


@pytest.mark.parametrize("output", ["table", "json"])
def test_what_is_allowed_but_seldom_meant(
    place: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    (place / "kars.yaml").write_text(GOOD + "listen: 0.0.0.0:8443\n")
    status, out, err = kars(capsys, "-o", output)
    assert (status, err) == (0, "")
    if output == "table":
        assert out.startswith("kars.yaml: valid, 2 servers\nwarning: listen: can be reached from")
        assert out.count("\n") == 2
    else:
        (warning,) = json.loads(out)["warnings"]
        assert warning["path"] == "listen"
        assert warning["message"].startswith("can be reached from other machines")


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Probed:
    """What the probe of the servers finds; stands in for the router's service."""
    found: Probed = []

    async def probe_servers(config: Config) -> Probed:
        assert list(config.servers) == ["web", "db"]
        return found

    service = types.ModuleType("kars_router.service")
    service.probe_servers = probe_servers  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, service.__name__, service)
    return found


def test_connect_says_a_line_for_each_server(
    place: Path, probed: Probed, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "kars.yaml").write_text(GOOD)
    probed += [("web", True, "", ["go", "\x1b[2J"]), ("db", True, "", [])]
    status, out, err = kars(capsys, "--connect")
    assert (status, err) == (0, "")
    assert out == (
        "kars.yaml: valid, 2 servers\n"
        "web: connected, 2 tools: go, \\x1b[2J\n"
        "db: connected, no tools\n"
    )


def test_a_server_that_cannot_be_reached_is_3(
    place: Path, probed: Probed, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "kars.yaml").write_text(GOOD)
    probed += [("web", True, "", ["go"]), ("db", False, "db: connection refused", [])]
    status, out, err = kars(capsys, "--connect")
    assert (status, err) == (3, "")
    assert out == (
        "kars.yaml: valid, 2 servers\n"
        "web: connected, 1 tool: go\n"
        "db: not reached, connection refused\n"
    )
    status, out, _ = kars(capsys, "--connect", "-o", "json")
    answer = json.loads(out)
    assert (status, answer["valid"]) == (3, True)
    assert answer["servers"] == [
        {"name": "web", "ok": True, "detail": "", "tools": ["go"]},
        {"name": "db", "ok": False, "detail": "connection refused", "tools": []},
    ]


def test_an_invalid_file_is_not_connected_to(
    place: Path, probed: Probed, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "kars.yaml").write_text(BAD)
    probed += [("web", True, "", [])]
    assert kars(capsys, "--connect")[0] == 1
