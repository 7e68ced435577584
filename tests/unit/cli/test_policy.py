"""`kars policy test`, as far as no plugin is needed; what rules say is tested with their plugin."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kars_router.cli.main import main

PLAIN = "servers: {web: {url: 'http://h/', allowedTools: ['get_*']}}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kars.yaml"
    path.write_text(PLAIN)
    return path


def explain(file: Path, call: object, *more: str) -> int:
    text = call if isinstance(call, str) else json.dumps(call)
    return main(["policy", "test", str(file), "--call", text, *more])


def answer(file: Path, call: object, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    status = explain(file, call, "-o", "json")
    return status, json.loads(capsys.readouterr().out)


def test_what_nobody_objects_to_is_allowed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = answer(file, {"server": "web", "tool": "get_page"}, capsys)
    assert (status, said["ruling"], said["source"]) == (0, "allow", "allowlist")


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ({"server": "web", "tool": "post_page"}, "No pattern in allowedTools"),
        ({"server": "nope", "tool": "get_page"}, "There is no server of this name"),
    ],
)
def test_what_no_agent_can_see_is_denied(
    file: Path, capsys: pytest.CaptureFixture[str], call: dict[str, str], reason: str
) -> None:
    status, said = answer(file, call, capsys)
    assert (status, said["ruling"], said["code"]) == (1, "deny", "not_admitted")
    assert said["reason"].startswith(reason)


def test_the_table_says_who_decided(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(file, {"server": "web", "tool": "post"}) == 1
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "denied"
    assert "  code: not_admitted" in rest
    assert "  decided by: allowlist" in rest


def test_text_of_a_call_cannot_control_a_terminal(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    explain(file, {"server": "\x1b[2J", "tool": "\x1b[2J"})
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ("{", "is no JSON"),
        ("[]", "must be an object, not a list"),
        ({}, "must name a server"),
        ({"server": "web"}, "one of tool, resource and prompt"),
        ({"server": "web", "tool": "a", "prompt": "b"}, "one of tool, resource and prompt"),
        ({"server": "web", "tool": "a", "argumets": {}}, "(did you mean 'arguments'?)"),
        ({"server": "web", "tool": 5}, "must have a string as 'tool', not a number"),
        ({"server": "web", "tool": "a", "arguments": []}, "an object as 'arguments'"),
        ({"server": "web", "tool": "a", "scopes": [5]}, "a list of strings as 'scopes'"),
        ({"server": "web", "tool": "a", "time": "noon"}, "must have a time such as"),
        ({"server": "web", "tool": "a", "time": "2026-05-01T12:00:00"}, "with its zone"),
    ],
)
def test_a_call_that_is_not_described_as_it_has_to_be(
    file: Path, capsys: pytest.CaptureFixture[str], call: object, complaint: str
) -> None:
    assert explain(file, call) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "--call" in said
    assert complaint in said


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules: [{effect: dney}]\n", "rules[0].effect: must be one of"),
        ("kind: ToolPolicy\nspec: {default: redact}\n", "spec.default: must be one of deny"),
        (
            "servers: {web: {url: 'http://h/'}}\npolicies: [{x: 1}]\n",
            "policies[0].x: is not a known",
        ),
        ("a: [", "line 1"),
        ("[]", "must be a mapping"),
    ],
)
def test_a_file_that_is_not_valid_is_told_with_places(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, problem: str
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    assert explain(file, {"server": "web", "tool": "a"}) == 1
    assert f"policy.yaml: {problem}" in capsys.readouterr().err


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(tmp_path / "none.yaml", {"server": "web", "tool": "a"}) == 1
    assert "cannot be read: No such file" in capsys.readouterr().err
