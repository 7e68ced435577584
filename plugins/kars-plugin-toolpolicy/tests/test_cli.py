"""`kars policy test` with this plugin."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kars_plugin_toolpolicy import plugin

from kars_router.cli.main import main

POLICY = """\
name: files
rules:
  - {name: read, effect: allow, tools: ["read_*"], when: "args.path.startsWith('/srv/')"}
  - {name: write, effect: approve, tools: ["write_*"], reason: A person looks at it.}
rateLimits: [{calls: 1}]
"""
WHOLE = "servers: {box: {url: 'http://h/', allowedTools: ['*']}}\npolicies:\n  - "


def indented(text: str, width: int) -> str:
    return text.replace("\n", "\n" + " " * width).rstrip(" ")


FILES = {
    "a spec": POLICY,
    "a resource": "apiVersion: kars.azure.com/v1alpha1\nkind: ToolPolicy\nmetadata: {name: x}\n"
    "spec:\n  " + indented(POLICY, 2),
    "a configuration": WHOLE + indented(POLICY, 4),
}


def explain(
    file: Path, capsys: pytest.CaptureFixture[str], tool: str, path: object = "/srv/a"
) -> tuple[int, Any]:
    call = {"server": "box", "tool": tool, "arguments": {"path": path}}
    status = main(["policy", "test", str(file), "--call", json.dumps(call), "-o", "json"])
    return status, json.loads(capsys.readouterr().out)


@pytest.fixture(autouse=True)
def process() -> Iterator[None]:
    """What is counted without a state directory is counted for the life of a process."""
    yield
    plugin.close()


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(FILES[request.param])
    return path


def test_each_ruling_has_its_exit_code(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rulings = [
        ("read_file", 0, "allow", "files/read"),
        ("write_file", 1, "approve", "files/write"),
        ("other", 1, "deny", "files/default"),
    ]
    for tool, status, ruling, rule in rulings:
        plugin.close()
        found, said = explain(file, capsys, tool)
        assert (found, said["ruling"], said["rule"]) == (status, ruling, rule)
        assert said["source"] == "toolpolicy"


def test_nothing_is_counted_where_a_router_counts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    state.mkdir()
    file = tmp_path / "kars.yaml"
    file.write_text(f"state: {state}\n{FILES['a configuration']}")
    assert explain(file, capsys, "read_file")[0] == 0
    assert list(state.iterdir()) == []


def test_each_rule_is_traced(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, said = explain(file, capsys, "write_file")
    [governor] = [each for each in said["governors"] if each["governor"] == "toolpolicy"]
    assert governor["reason"] == said["reason"] == "A person looks at it."
    assert [(step["rule"], step["matched"], step["why"]) for step in governor["steps"]] == [
        ("files/read", False, "it is for other tools"),
        ("files/write", True, ""),
    ]


def test_a_failing_condition_is_explained_in_full(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = explain(file, capsys, "read_file", path=5)
    assert (status, said["code"]) == (1, "policy_error")
    assert said["notes"] == ["files/read: its condition failed: the type of a value does not fit"]
    assert "startsWith" in said["governors"][0]["steps"][0]["why"]


def test_the_table_shows_verdict_rule_and_trace(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = '{"server": "box", "tool": "write_file"}'
    assert main(["policy", "test", str(file), "--call", call]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "held for approval",
        "  rule: files/write",
        "  reason: A person looks at it.",
        "  decided by: toolpolicy",
    ]
    assert "toolpolicy: held for approval" in lines
    # Other plugins may have governors of their own.
    assert ["files/write", "approve", "yes"] in [line.split() for line in lines]


def test_a_mistake_that_only_the_compiler_finds_is_told_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kars.yaml"
    file.write_text(WHOLE + "rules: [{effect: deny, when: nope}]\n")
    call = '{"server": "box", "tool": "a"}'
    assert main(["policy", "test", str(file), "--call", call]) == 1
    assert "policies[0].rules[0].when: is no condition" in capsys.readouterr().err
