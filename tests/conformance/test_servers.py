"""The suite's server scenarios: against the fixture server alone, then with the router in front.

The first is the control of the second. What the router does not pass is listed by combination in
`expected/`. The suite judges both ways: an unexpected failure and an expected failure that passes
end it alike.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance.cells import SERVER_CELLS, Cell
from conformance.suite import (
    FAILED,
    HANDSHAKE,
    NOTHING,
    STATELESS,
    TASKS,
    Outcome,
    Suite,
    read_checks,
)
from peers import run_router

CONTROLS = [cell for cell in SERVER_CELLS if not cell.crossed]

MODERN = {
    "MCP-Protocol-Version": STATELESS,
    "Mcp-Method": "server/discover",
}
DISCOVER = {
    "_meta": {
        "io.modelcontextprotocol/protocolVersion": STATELESS,
        "io.modelcontextprotocol/clientCapabilities": {},
    }
}
INITIALIZE = {
    "protocolVersion": HANDSHAKE,
    "capabilities": {},
    "clientInfo": {"name": "test", "version": "1"},
}


def post(url: str, method: str, params: object, headers: dict[str, str]) -> tuple[int, Any]:
    """Status and JSON body of the answer to one request."""
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    accept = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={**accept, **headers}
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=5) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


def without_tasks(names: set[str]) -> set[str]:
    return {name for name in names if not name.startswith(TASKS)}


def assert_complete(outcome: Outcome, suite: Suite, cell: Cell) -> None:
    """It ran all there is: what the suite leaves out it counts as passed."""
    ran = {*suite.scored("server", cell.revision), *suite.unscored("server", cell.revision)}
    assert set(outcome.problems) == ran


@pytest.mark.parametrize("cell", CONTROLS, ids=lambda cell: cell.name)
def test_control_the_fixture_server_alone_passes_everything(
    cell: Cell,
    suite: Suite,
    fixture_server: Callable[[str], str],
    tmp_path: Path,
) -> None:
    outcome = suite.run_server(fixture_server(cell.other), cell.revision, tmp_path, None)

    assert outcome.code == 0, outcome.summary()
    assert without_tasks(outcome.failed() | set(outcome.hollow)) == set(), outcome.summary()
    assert_complete(outcome, suite, cell)


def test_control_a_server_of_the_handshake_era_does_not_know_the_other(
    fixture_server: Callable[[str], str],
) -> None:
    status, body = post(fixture_server("handshake"), "server/discover", DISCOVER, MODERN)

    assert (status, body["error"]["code"], body["id"]) == (400, -32600, None)


def test_control_a_server_of_the_stateless_era_refuses_a_handshake(
    fixture_server: Callable[[str], str],
) -> None:
    status, body = post(fixture_server("stateless"), "initialize", INITIALIZE, {})

    assert (status, body["error"]["code"], body["id"]) == (400, -32022, 7)
    assert body["error"]["data"]["supported"] == [STATELESS]


@pytest.mark.parametrize("cell", SERVER_CELLS, ids=lambda cell: cell.name)
def test_the_router_passes_what_is_not_expected_to_fail(
    cell: Cell,
    suite: Suite,
    fixture_server: Callable[[str], str],
    tmp_path: Path,
) -> None:
    server = {"url": fixture_server(cell.other), "allowedTools": ["*"]}
    # Of its own: what the user's router remembers of other sessions concerns nobody here.
    config = {"servers": {"fixture": server}, "state": str(tmp_path / "state")}
    with run_router(config, tmp_path) as router:
        router.wait_until_ready()
        results = tmp_path / "results"
        outcome = suite.run_server(router.mcp("fixture"), cell.revision, results, cell.file)

    assert outcome.code == 0, outcome.summary()
    beside = outcome.failed() - set(suite.scored("server", cell.revision)) | set(outcome.hollow)
    assert without_tasks(beside) == set(cell.expected("hollow")), outcome.summary()
    assert_complete(outcome, suite, cell)


@pytest.mark.parametrize(
    ("scenario", "check", "what"),
    [
        ("ping", {"status": "SKIPPED"}, NOTHING),
        ("ping", {"status": "SUCCESS", "details": {"result": {"isError": True}}}, FAILED),
        ("tools-call-error", {"status": "SUCCESS", "details": {"result": {"isError": True}}}, None),
        ("ping", {"status": "SUCCESS"}, None),
    ],
)
def test_what_the_suite_passes_without_having_seen_it_is_hollow(
    scenario: str, check: dict[str, Any], what: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / f"server-{scenario}-2026-01-01T00-00-00-000Z"
    folder.mkdir()
    (folder / "checks.json").write_text(json.dumps([{"id": "x", **check}]), encoding="utf-8")

    assert read_checks(tmp_path, "server-") == ({scenario: []}, {scenario: what} if what else {})
