"""Every example of docs/policies.md: a policy, and what is decided about the calls below it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kars_plugin_toolpolicy.testing import call, engine, said
from ruamel.yaml import YAML

PAGE = Path(__file__).parents[3] / "docs" / "policies.md"
EXAMPLE = re.compile(r"```yaml\n(policies:.*?)```\n+```text\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
TEXT = PAGE.read_text(encoding="utf-8")
CALLS: list[tuple[str, str, str]] = [
    (policies, *line.rsplit(" -> ", 1))
    for policies, lines in EXAMPLE.findall(TEXT)
    for line in lines.splitlines()
]


@pytest.mark.parametrize(
    ("policies", "described", "answer"), CALLS, ids=[" -> ".join(each[1:]) for each in CALLS]
)
def test_an_example_is_decided_as_the_page_says(policies: str, described: str, answer: str) -> None:
    asked: dict[str, Any] = json.loads(described)
    if "arguments" in asked:
        asked["args"] = asked.pop("arguments")
    specs = YAML(typ="safe").load(policies)["policies"]
    assert said(engine(*specs).decide(call(**asked))) == answer


def test_every_policy_of_the_page_has_calls_and_every_effect_an_example() -> None:
    assert len(EXAMPLE.findall(TEXT)) == TEXT.count("```yaml") == 7
    for effect in ("allow", "approve", "deny", "redact"):
        assert f"effect: {effect}" in TEXT
    assert {answer.split(" ")[0] for _, _, answer in CALLS} == {
        "allow",
        "approve",
        "deny",
        "nothing",
    }


def test_the_example_in_python_runs() -> None:
    [code] = PYTHON.findall(TEXT)
    exec(compile(code, "policies.md", "exec"), {})
