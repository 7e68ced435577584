"""tests/requirements.toml names a test for each feature of the protocol, and all of them exist."""

from __future__ import annotations

import ast
import tomllib
from typing import Any

import pytest
from repository import ROOT

REQUIREMENTS: list[dict[str, Any]] = tomllib.loads(
    (ROOT / "tests" / "requirements.toml").read_text(encoding="utf-8")
)["requirement"]
REVISIONS = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")
# Every request and notification of revisions 2025-11-25 and 2026-07-28; tasks are declared to
# nobody.
METHODS = {
    "completion/complete",
    "elicitation/create",
    "initialize",
    "logging/setLevel",
    "notifications/cancelled",
    "notifications/elicitation/complete",
    "notifications/initialized",
    "notifications/message",
    "notifications/progress",
    "notifications/prompts/list_changed",
    "notifications/resources/list_changed",
    "notifications/resources/updated",
    "notifications/roots/list_changed",
    "notifications/subscriptions/acknowledged",
    "notifications/tools/list_changed",
    "ping",
    "prompts/get",
    "prompts/list",
    "resources/list",
    "resources/read",
    "resources/subscribe",
    "resources/templates/list",
    "resources/unsubscribe",
    "roots/list",
    "sampling/createMessage",
    "server/discover",
    "subscriptions/listen",
    "tools/call",
    "tools/list",
}
CELLS = "tests/cells/test_cells.py"


def names_in(path: str) -> set[str]:
    """The names of a file's tests."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda one: one["feature"])
def test_each_feature_has_a_page_and_tests_that_exist(requirement: dict[str, Any]) -> None:
    assert set(requirement) == {"feature", "methods", "spec", "tests"}
    assert requirement["spec"]
    assert all(page.partition("/")[0] in REVISIONS for page in requirement["spec"])
    assert requirement["tests"]
    for test in requirement["tests"]:
        path, _, name = test.partition("::")
        assert (ROOT / path).is_file(), f"{path} is not there"
        assert name in names_in(path) if name else names_in(path), f"{test} is not there"


def test_every_method_of_the_protocol_is_required() -> None:
    named = [method for requirement in REQUIREMENTS for method in requirement["methods"]]
    assert sorted(named) == sorted(METHODS)


def test_every_test_of_a_cell_belongs_to_a_feature() -> None:
    named = {test for requirement in REQUIREMENTS for test in requirement["tests"]}
    assert {f"{CELLS}::{name}" for name in names_in(CELLS)} - named == set()
