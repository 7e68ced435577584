"""Commands that ask a running router: `kars sessions` and `kars top`."""

from __future__ import annotations

import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kars_router.cli.main import main

ANSWER: dict[str, Any] = {
    "agents": [
        {
            "agent": "a1",
            "client": "test\x1b[31m",
            "revision": "2025-11-25",
            "endpoint": None,
            "streams": 0,
            "inFlight": 1,
            "idleSeconds": 61.4,
        }
    ],
    "upstream": [
        {
            "server": "box",
            "agent": "",
            "generation": 2,
            "listen": "open",
            "pings": 7,
            "calls": 3,
            "inFlight": 0,
            "idleSeconds": 0.2,
        }
    ],
}


class _Router(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        found = self.path == "/api/v1/sessions"
        body = json.dumps(ANSWER).encode() if found else b"not found"
        self.send_response(200 if found else 404)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "peer"

    def log_message(self, *_: object) -> None: ...


class _Unix(socketserver.ThreadingUnixStreamServer): ...


@pytest.fixture(params=["tcp", "unix"])
def admin(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    server: socketserver.BaseServer
    if request.param == "tcp":
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Router)
        address = f"127.0.0.1:{server.server_port}"
    else:
        address = f"unix:{tmp_path}/s"
        server = _Unix(f"{tmp_path}/s", _Router)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield address
    server.shutdown()
    thread.join()
    server.server_close()


def kars(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    status = main(args)
    out, err = capsys.readouterr()
    return status, out, err


def test_sessions_as_tables(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = kars(capsys, "sessions", "--admin", admin)
    assert (status, err) == (0, "")
    agents, upstream = out.split("\n\n")
    assert agents.splitlines()[1].split() == [
        "a1",
        "test\\x1b[31m",
        *["2025-11-25", "/mcp", "0", "1", "1m01s"],
    ]
    assert upstream.splitlines()[1].split() == ["box", "(router)", "2", "open", "7", "3", "0", "0s"]


def test_sessions_as_json(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert json.loads(kars(capsys, "sessions", "--admin", admin, "-o", "json")[1]) == ANSWER


def test_an_address_where_something_else_answers(capsys: pytest.CaptureFixture[str]) -> None:
    with http.server.HTTPServer(("127.0.0.1", 0), _Router) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_port}/other"
        status, out, err = kars(capsys, "sessions", "--admin", address)
        thread.join()
    assert (status, out) == (3, "")
    assert err == (
        f"kars: {address} is not a router's admin address: it answered 404; name the one that the "
        "configuration calls admin with --admin\n"
    )


def test_an_address_where_nothing_answers(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = kars(capsys, "sessions", "--admin", "127.0.0.1:1")
    assert (status, err.count("\n")) == (3, 1)
    assert err.startswith("kars: no router answers at 127.0.0.1:1 ")


@pytest.mark.parametrize("address", ["foo", "foo:bar", "127.0.0.1:99999", "unix:relative"])
def test_what_is_no_address_is_wrong_usage(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, err = kars(capsys, "sessions", "--admin", address)
    assert status == 2
    assert "--admin" in err


def test_an_admin_address_that_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kars.yaml"
    file.write_text("admin: null\nservers: {box: {url: 'http://h/'}}\n")
    monkeypatch.setenv("KARS_CONFIG", str(file))
    status, _, err = kars(capsys, "sessions")
    assert (status, err) == (
        1,
        f"kars: {file} turns the admin address off; there is nothing to ask\n",
    )


def test_top_wants_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = kars(capsys, "top")
    assert status == 2
    assert "kars top needs a terminal" in err
