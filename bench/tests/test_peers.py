"""Peers: what is there, what is not, and the router before the server that some of them need."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from bench.agent import Agent
from bench.context import Context
from bench.load import open_sessions
from bench.peers import PEERS, SOURCES, STDIO_SERVER, SUPERGATEWAY, Source, found, stdio_server
from bench.peers.install import install
from bench.subjects import KARS, SERVER, configured, running, upstream
from bench.suites import peers


def test_a_peer_is_there_once_it_is_installed_in_the_version_that_is_wanted(tmp_path: Path) -> None:
    assert found(tmp_path) == ([], list(SOURCES))
    SUPERGATEWAY.place(tmp_path).mkdir()
    mark = SUPERGATEWAY.place(tmp_path) / "installed"
    mark.write_text("supergateway@1.0.0")
    assert found(tmp_path)[0] == []
    mark.write_text(SUPERGATEWAY.requirement)
    names = [peer.name for peer in found(tmp_path)[0]]
    assert names == ["supergateway, stateful", "supergateway, stateless"]


def test_what_cannot_be_installed_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = Source(name="nothing", requirement=str(tmp_path / "nothing"), installer="pip")
    assert install(nowhere, tmp_path).startswith("pip failed: ")
    assert not nowhere.installed(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install(SUPERGATEWAY, tmp_path) == "npm is not installed"


def test_no_two_peers_have_one_name() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert len({source.place(Path()) for source in SOURCES}) == len(SOURCES)


def test_without_peers_nothing_is_measured_and_each_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARS_BENCH_PEERS", str(tmp_path))
    context = Context(subjects=(KARS,), rounds=1, seconds=1.0, quick=True, out=tmp_path)
    assert list(peers.run(context)) == []
    assert len(peers.skipped()) == len(SOURCES)


def test_the_stdio_server_answers_each_request_with_its_own_id() -> None:
    messages: list[dict[str, Any]] = [
        {"id": 0, "method": "initialize", "params": {"protocolVersion": "2025-11-25"}},
        {"method": "notifications/initialized"},
        {"id": "a", "method": "tools/call", "params": {"name": "json_1024"}},
        {"id": 2, "method": "tools/list"},
        {"id": 3, "method": "prompts/list"},
    ]
    text = "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in messages)
    done = subprocess.run(
        stdio_server(), input=text.encode(), capture_output=True, check=True, timeout=30
    )
    answers = {answer["id"]: answer for answer in map(json.loads, done.stdout.splitlines())}
    assert list(answers) == [0, "a", 2, 3]
    assert len(answers["a"]["result"]["content"][0]["text"]) == 1024
    assert "json_1024" in [tool["name"] for tool in answers[2]["result"]["tools"]]
    assert answers[3]["error"]["code"] == -32601


def test_the_router_starts_the_stdio_server_and_what_that_uses_is_left_out() -> None:
    server = {"command": stdio_server(), "allowedTools": ["*"]}
    subject = configured(KARS, servers={SERVER: server})
    with upstream() as unused, running(subject, unused.port) as program:
        sessions = open_sessions(program.port, subject.path, 5)
        agent = Agent(program.port, subject.path)
        (content,) = agent.call(sessions[0], "json_1024")["content"]
        agent.close()
        everything = program.usage().rss
        without = evolve(program, leave_out=STDIO_SERVER).usage().rss
    assert len(content["text"]) == 1024
    assert everything - without > 5 * 2**20
