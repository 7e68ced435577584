"""The load against the real upstream, and against ones that answer wrongly."""

from __future__ import annotations

import http.client
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from bench.agent import Agent
from bench.load import load, open_sessions
from bench.processes import BenchError, Program, cores, start
from bench.subjects import FLOOR, LEAST, LIMIT, running, upstream

# CI installs it, so that a missing one is an error there: `load` says so.
pytestmark = pytest.mark.skipif(
    shutil.which("wrk") is None and "CI" not in os.environ, reason="wrk is missing"
)


@pytest.fixture
def server() -> Iterator[Program]:
    with upstream("--tools", "5") as running_server:
        yield running_server


def test_the_upstream_answers_each_request_with_its_own_id(server: Program) -> None:
    outcome = load(
        server,
        "/mcp",
        open_sessions(server.port, "/mcp", 4),
        tool="json_128",
        connections=4,
        seconds=1,
    )
    assert outcome.calls > 1000
    assert 0 < outcome.cpu <= outcome.seconds * 1.1
    assert 0 < outcome.p50 <= outcome.p99 <= outcome.longest


KINDS, SIZES = ("json", "sse"), (1024, 1024 * 1024)
HANDED_ON = [
    *((subject, f"{kind}_{n}") for subject in (FLOOR, LIMIT) for kind in KINDS for n in SIZES),
    *((LEAST, f"json_{n}") for n in SIZES),  # it reads JSON only
]


@pytest.mark.parametrize(
    ("subject", "tool"), HANDED_ON, ids=lambda each: getattr(each, "name", each)
)
def test_the_programs_hand_on_results_of_every_size(
    server: Program, subject: Any, tool: str
) -> None:
    with running(subject, server.port) as program:
        agent = Agent(program.port, subject.path)
        session = agent.open()
        assert session
        (content,) = agent.call(session, tool)["content"]
        assert len(content["text"]) == int(tool.partition("_")[2])
        tools, size = agent.tools(session)
        assert len(tools) == 8 + 5
        assert size > 1000
        agent.close()


WRONG = {
    "another id": lambda ident: {"id": ident + 1, "result": {"content": [{"text": "bench x"}]}},
    "an error": lambda ident: {"id": ident, "error": {"code": 1, "message": "no"}},
    "another result": lambda ident: {"id": ident, "result": {"content": [{"text": "other"}]}},
    "a failed call": lambda ident: {
        "id": ident,
        "result": {"content": [{"text": "bench x"}], "isError": True},
    },
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_answer_is_no_result(kind: str) -> None:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
            body = json.dumps({"jsonrpc": "2.0", **WRONG[kind](asked["id"])}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    # A process to look at, which is not the one that answers.
    other = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=other.serve_forever, daemon=True).start()
    try:
        port = other.server_address[1]
        with (
            start(["sleep", "60"], on=cores()[0], port=port) as program,
            pytest.raises(BenchError, match="not every call was answered well"),
        ):
            load(program, "/", [""], tool="x", connections=1, seconds=1)
    finally:
        other.shutdown()
        other.server_close()


def test_sessions_are_pinged_and_their_pongs_are_counted() -> None:
    with upstream("--ping", "0.05") as server:
        agent = Agent(server.port, "/mcp")
        session = agent.open()
        with open_stream(server.port, session) as idents:
            for ident in idents:
                answer = {"jsonrpc": "2.0", "id": ident, "result": {}}
                post(server.port, session, answer)
                if ident > 3:
                    break
        said = agent.get("/stats")
        agent.close()
    assert said["pings"] >= len(said["pongs"]) >= 2
    assert all(0 <= seconds < 30 for seconds in said["pongs"])


@contextmanager
def open_stream(port: int, session: str) -> Iterator[Iterator[int]]:
    """The ids of the pings on a session's GET stream."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/mcp", headers={"mcp-session-id": session})
    lines = iter(connection.getresponse().readline, b"")
    yield (json.loads(line[5:])["id"] for line in lines if line.startswith(b"data:"))
    connection.close()


def post(port: int, session: str, message: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"content-type": "application/json", "mcp-session-id": session}
    connection.request("POST", "/mcp", json.dumps(message), headers)
    assert connection.getresponse().status == 202
    connection.close()
