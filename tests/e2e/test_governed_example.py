"""The example of governed calls does what its README says, file by file as a reader runs it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from peers import REPOSITORY, free_port, listener_option, peer_environment, start_peer

EXAMPLE = REPOSITORY / "examples" / "governed"
ENDED = {"read_note": "executed", "write_note": "not_executed", "delete_note": "executed"}


class Reader:
    """Somebody who runs the commands of the README in a copy of the directory."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.agent_port, self.admin_port, self.server_port = (free_port() for _ in range(3))
        shutil.copytree(EXAMPLE, place, ignore=shutil.ignore_patterns("state", "audit*", "__py*"))
        file = place / "kars.yaml"
        text = file.read_text(encoding="utf-8")
        for usual, port in (
            (8443, self.agent_port),
            (9090, self.admin_port),
            (8931, self.server_port),
        ):
            assert f":{usual}" in text
            text = text.replace(f":{usual}", f":{port}")
        file.write_text(text, encoding="utf-8")

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *argv],
            cwd=self.place,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def kars(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("-m", "kars_router", *words)

    def calls(self, *words: str) -> str:
        done = self.run("agent.py", *words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def environment(self) -> dict[str, str]:
        url = f"http://127.0.0.1:{self.agent_port}/mcp/notes"
        return {**peer_environment(), "MCP_URL": url}


@pytest.fixture
def reader(tmp_path: Path, each_listener: str) -> Iterator[Reader]:
    pytest.importorskip("kars_plugin_toolpolicy")
    found = Reader(tmp_path / "governed")
    with (
        start_peer(
            [sys.executable, "server.py", str(found.server_port)],
            log_path=tmp_path / "server.log",
            cwd=found.place,
            port=found.server_port,
        ),
        start_peer(
            [sys.executable, "-m", "kars_router", "run", *listener_option()],
            log_path=tmp_path / "router.log",
            cwd=found.place,
            ready_url=f"http://127.0.0.1:{found.admin_port}/healthz",
            ready=lambda peer: '"server_ready"' in peer.log(),
        ),
    ):
        yield found


def test_the_calls_of_the_readme_end_as_it_says(reader: Reader, tmp_path: Path) -> None:
    assert reader.calls("read_note", "name=shopping") == "milk, bread\n"
    assert "password: [redacted:password]" in reader.calls("read_note", "name=wifi")
    assert reader.calls("write_note", "name=todo", "text=sleep") == "written\n"
    denied = reader.calls("write_note", "name=todo", f"text={'x' * 201}")
    assert "at most 200 characters" in denied
    assert json.loads(denied.splitlines()[1])["fate"] == "not_executed"
    assert "unknown tool" in reader.calls("drop_all")

    with start_peer(
        [sys.executable, "agent.py", "delete_note", "name=shopping"],
        log_path=tmp_path / "agent.log",
        cwd=reader.place,
        env=reader.environment,
    ) as agent:
        agent.wait_for(lambda: bool(waiting(reader)), "its call is held")
        [held] = waiting(reader)
        assert (held["name"], held["arguments"]) == ("delete_note", '{"name":"shopping"}')
        done = reader.kars("approvals", "approve", held["id"])
        assert done.stdout == "approved: delete_note on notes\n", done.stderr
        assert agent.wait(20) == 0
        assert agent.log() == "deleted\n"

    verified = reader.kars("audit", "verify", "audit.jsonl", "--key", "audit.jsonl.pub")
    assert (verified.returncode, verified.stdout[:6]) == (0, "valid:"), verified.stderr
    journal = (reader.place / "audit.jsonl").read_bytes()
    records = [json.loads(line) for line in journal.splitlines()]
    names = {each["call"]: each["name"] for each in records if each["event"] == "accepted"}
    ended = {each["call"]: each["fate"] for each in records if each["event"] == "ended"}
    assert {name: ended[call] for call, name in names.items()} == ENDED  # the last of each


def waiting(reader: Reader) -> list[dict[str, str]]:
    """The calls that wait for a person."""
    done = reader.kars("approvals", "list", "-o", "json")
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_the_decisions_of_the_readme_can_be_asked_for(tmp_path: Path) -> None:
    pytest.importorskip("kars_plugin_toolpolicy")
    found = Reader(tmp_path / "governed")
    assert found.kars("check", "kars.yaml").returncode == 0
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    calls = re.findall(r"^kars policy test kars[.]yaml --call '(.+)'$", readme, re.MULTILINE)
    said = [found.kars("policy", "test", "kars.yaml", "--call", call).stdout for call in calls]
    assert [text.splitlines()[0] for text in said] == ["allowed", "held for approval"]
