"""The official conformance suite against the router, with the server behind it as the control.

What the router does not pass is listed in `expected-failures.yml`. The suite judges both ways: an
unexpected failure and an expected failure that passes end it alike.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from attrs import frozen
from peers import free_port, node22, npm_peer, peer_environment, run_router, start_peer, venv_peer
from ruamel.yaml import YAML

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
EXPECTED = HERE / "expected-failures.yml"

# Pinned: names of scenarios and the strictness of their checks change between releases, and
# `expected-failures.yml` speaks of these.
SUITE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"
REVISION = "2025-11-25"

NOTHING = "not one check succeeded or failed"

# What must pass through the router, whatever becomes of the list of expected failures.
NEVER_EXPECTED_TO_FAIL = frozenset(
    {
        "server-initialize",
        "server-session-lifecycle",
        "server-sse-multiple-streams",
        "ping",
        "tools-list",
        "tools-call-simple-text",
        "tools-call-image",
        "tools-call-audio",
        "tools-call-embedded-resource",
        "tools-call-mixed-content",
        "tools-call-error",
        "json-schema-2020-12",
        "dns-rebinding-protection",
    }
)

# What the suite cannot look at, and calls passed: it wants a stream to resume, and the router
# answers calls of tools as plain JSON.
NOTHING_TO_CHECK = {"server-sse-polling"}


@frozen
class Suite:
    """The installed suite."""

    node: Path
    package: Path

    def scenarios(self) -> set[str]:
        """Every server scenario the suite has for the revision, scored there or not."""
        required = YAML(typ="safe").load(self.package / "requirements" / f"{REVISION}.yaml")
        unscored = {entry["scenario"] for entry in required["not_scored"] if is_server(entry)}
        return set(required["server"]) | unscored

    def run(self, url: str, output: Path, *arguments: str) -> Outcome:
        """Run every scenario against the MCP endpoint at `url`; results go to `output`."""
        program = [str(self.node), str(self.package / "dist" / "index.js"), "server"]
        choice = ["--suite", "all", "--spec-version", REVISION]
        where = ["--url", url, "--output-dir", str(output)]
        done = subprocess.run(
            [*program, *choice, *where, *arguments],
            env=peer_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        return Outcome(done.returncode, done.stdout + done.stderr, read_checks(output))


@frozen
class Outcome:
    """One run of the suite: its verdict, its words, and what it found by scenario."""

    code: int
    said: str
    problems: dict[str, list[str]]

    def nothing_checked(self) -> set[str]:
        return {name for name, texts in self.problems.items() if NOTHING in texts}

    def summary(self) -> str:
        found = [f"{name}: {text}" for name, texts in self.problems.items() for text in texts]
        tail = self.said[self.said.rfind("=== SUMMARY") :]
        return "\n".join([f"the suite ended with {self.code}", *found, tail])


def is_server(entry: dict[str, str]) -> bool:
    return entry["leg"] == "server"


def read_checks(output: Path) -> dict[str, list[str]]:
    """For each scenario what it failed or warned of; an empty list when it passed."""
    found = {}
    for file in sorted(output.glob("server-*/checks.json")):
        # The folder is `server-<scenario>-<time>`, the time being 24 characters.
        name = file.parent.name.removeprefix("server-")[:-25]
        checks = json.loads(file.read_text(encoding="utf-8"))
        found[name] = [
            f"{check['id']} {check['status']}: {check.get('errorMessage', '')}"
            for check in checks
            if check["status"] in {"FAILURE", "WARNING"}
        ]
        if {check["status"] for check in checks} <= {"INFO", "SKIPPED"}:
            found[name].append(NOTHING)
    return found


@pytest.fixture(scope="module")
def suite() -> Suite:
    packages = npm_peer("conformance", [SUITE]) / "node_modules"
    return Suite(node22(), packages / "@modelcontextprotocol" / "conformance")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of the server that has everything the suite asks for."""
    python = venv_peer("python-sdk-2", ["mcp>=2,<3"])
    port = free_port()
    log = tmp_path_factory.mktemp("server") / "server.log"
    with start_peer([python, HERE / "fixture_server.py", str(port)], port=port, log_path=log):
        yield f"http://127.0.0.1:{port}/mcp"


def test_every_expected_failure_has_a_reason() -> None:
    lines = EXPECTED.read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if line.strip().startswith("- ")]
    assert [line for line in entries if not line.partition(" # ")[2]] == []


def test_nothing_that_must_pass_is_expected_to_fail() -> None:
    entries = YAML(typ="safe").load(EXPECTED)["server"]
    assert {entry.partition(":")[0] for entry in entries}.isdisjoint(NEVER_EXPECTED_TO_FAIL)


def test_control_the_server_alone_passes_everything(
    suite: Suite, server: str, tmp_path: Path
) -> None:
    outcome = suite.run(server, tmp_path / "results")

    assert outcome.code == 0, outcome.summary()
    assert not any(outcome.problems.values()), outcome.summary()
    assert set(outcome.problems) == suite.scenarios()


def test_the_router_passes_what_is_not_expected_to_fail(
    suite: Suite, server: str, tmp_path: Path
) -> None:
    config = {"servers": {"fixture": {"url": server, "allowedTools": ["*"]}}}
    with run_router(config, tmp_path) as router:
        router.wait_until_ready()
        outcome = suite.run(
            router.mcp("fixture"), tmp_path / "results", "--expected-failures", str(EXPECTED)
        )

    assert outcome.code == 0, outcome.summary()
    passed = {name for name, problems in outcome.problems.items() if not problems}
    assert passed >= NEVER_EXPECTED_TO_FAIL, outcome.summary()
    assert outcome.nothing_checked() == NOTHING_TO_CHECK
    assert set(outcome.problems) == suite.scenarios()
