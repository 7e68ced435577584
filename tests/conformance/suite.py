"""The official conformance suite as an installed program: how to run it, and what it found.

Knows nothing of the router. What is expected to fail in which combination is in `cells.py`.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from attrs import field, frozen
from peers import missing, node22, npm_peer, peer_environment, require
from ruamel.yaml import YAML

# Pinned: names of scenarios and the strictness of their checks change between releases, and the
# lists of expected failures speak of these.
PACKAGE = "@modelcontextprotocol/conformance@0.2.0-alpha.12"

HANDSHAKE, STATELESS = "2025-11-25", "2026-07-28"
REVISIONS = (HANDSHAKE, STATELESS)

# Extensions that neither the router nor the SDK behind the fixture server declares.
TASKS = "tasks-"
# What takes an authorization server: a token is for the one that it was issued for, and the router
# is another one than the server behind it.
AUTHORIZATION = "auth/"

NOTHING = "not one check succeeded or failed"
FAILED = "passed with a result that is an error"

# Scenarios whose subject is a result that is an error.
_ABOUT_ERRORS = {"tools-call-error"}


@frozen
class Outcome:
    """One run of the suite: its exit status, its words, and what it found by scenario.

    `problems` has what failed or was warned of, empty for a scenario that passed; `hollow` what
    the suite lets pass although nothing was shown.
    """

    code: int
    said: str
    problems: dict[str, list[str]]
    hollow: dict[str, str] = field(factory=dict)

    def failed(self) -> set[str]:
        return {name for name, texts in self.problems.items() if texts}

    def summary(self) -> str:
        found = [f"{name}: {text}" for name, texts in self.problems.items() for text in texts]
        found += [f"{name}: {text}" for name, text in self.hollow.items()]
        tail = self.said[max(self.said.rfind("=== SUMMARY"), self.said.rfind("Test Results")) :]
        return "\n".join([f"the suite ended with {self.code}", *found, tail])


@frozen
class Suite:
    """The installed suite."""

    node: Path
    package: Path

    def scored(self, leg: str, revision: str) -> list[str]:
        """The scenarios of `leg`, `server` or `client`, that conformance to `revision` requires."""
        return list(self._requirements(revision)[leg])

    def unscored(self, leg: str, revision: str) -> list[str]:
        """What the suite runs beside them and does not count."""
        entries = self._requirements(revision)["not_scored"]
        return [entry["scenario"] for entry in entries if entry["leg"] == leg]

    def client_scenarios(self, revision: str) -> list[str]:
        """All of the protocol's own client scenarios, without authorization."""
        names = self.scored("client", revision) + self.unscored("client", revision)
        return [name for name in names if not name.startswith(AUTHORIZATION)]

    def run_server(self, url: str, revision: str, output: Path, expected: Path | None) -> Outcome:
        """Run what `revision` requires, and what it lists beside, against the endpoint at `url`.

        With `expected`, a file of expected failures, the suite decides by that file; a warning is
        a failure then. Results go to `output`.
        """
        command = ["server", "--url", url, "--requirements", revision, "--timeout", "10000"]
        if expected is not None:
            command += ["--expected-failures", str(expected)]
        return self._run(command, output, (), {}, "server-")

    def run_client(
        self, command: str, scenario: str, revision: str, output: Path, env: Mapping[str, str]
    ) -> Outcome:
        """Run one scenario with `command`, words for a shell, as the client; `env` is for it.

        The suite's servers listen on every address of the machine, so they get a network of their
        own in which there is none but loopback.
        """
        arguments = ["client", "--command", command, "--scenario", scenario]
        arguments += ["--spec-version", revision, "--timeout", "90000"]
        return self._run(arguments, output, network_of_its_own(), env, "")

    def _requirements(self, revision: str) -> dict[str, Any]:
        file = self.package / "requirements" / f"{revision}.yaml"
        return dict(YAML(typ="safe").load(file))

    def _run(
        self,
        arguments: list[str],
        output: Path,
        before: tuple[str, ...],
        env: Mapping[str, str],
        prefix: str,
    ) -> Outcome:
        program = [*before, str(self.node), str(self.package / "dist" / "index.js")]
        done = subprocess.run(
            [*program, *arguments, "--output-dir", str(output)],
            env={**peer_environment(), **env},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
        said = done.stdout + done.stderr
        problems, hollow = read_checks(output, prefix)
        # A scenario that throws leaves no file.
        for name in re.findall(r"^Failed to run scenario (\S+):", said, re.MULTILINE):
            problems.setdefault(name, []).append("it did not come to its end")
        return Outcome(done.returncode, said, problems, hollow)


def install() -> Suite:
    packages = npm_peer("conformance", [PACKAGE]) / "node_modules"
    return Suite(node22(), packages / "@modelcontextprotocol" / "conformance")


@cache
def network_of_its_own() -> tuple[str, ...]:
    """The words before a command that give it a network in which only loopback exists.

    Ends the test as `missing` says where the machine does not allow it.
    """
    unshare = require("unshare", "it gives servers that listen everywhere a network of their own")
    require("ip", "it switches loopback on in a network of its own")
    script = 'ip link set lo up && exec "$@"'
    # Second: whoever is not root may be it in a user namespace of their own.
    ways = [(unshare, *options, "sh", "-c", script, "sh") for options in (("-n",), ("-r", "-n"))]
    for words in ways:
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            break
    else:
        missing("no network may be made here, and the suite's servers listen on every address")
    return words


def read_checks(output: Path, prefix: str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """What the suite left in `output`, as `Outcome` has it."""
    problems: dict[str, list[str]] = {}
    hollow: dict[str, str] = {}
    for file in sorted(output.glob(f"{prefix}*/**/checks.json")):
        # The folder is `<prefix><scenario>-<time>`, the time being 24 characters.
        name = str(file.parent.relative_to(output)).removeprefix(prefix)[:-25]
        checks = json.loads(file.read_text(encoding="utf-8"))
        problems[name] = [
            f"{check['id']} {check['status']}: {check.get('errorMessage', '')}"
            for check in checks
            if check["status"] in {"FAILURE", "WARNING"}
        ]
        if problems[name]:
            continue
        if {check["status"] for check in checks} <= {"INFO", "SKIPPED"}:
            hollow[name] = NOTHING
        elif name not in _ABOUT_ERRORS and any(map(_is_error, checks)):
            hollow[name] = FAILED
    return problems, hollow


def _is_error(check: dict[str, Any]) -> bool:
    result = (check.get("details") or {}).get("result")
    return isinstance(result, dict) and result.get("isError") is True
