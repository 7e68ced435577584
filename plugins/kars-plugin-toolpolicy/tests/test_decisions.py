"""The rule table: `decisions.yaml`, one test for each call in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kars_plugin_toolpolicy.testing import call, engine, said
from ruamel.yaml import YAML

TABLE: list[dict[str, Any]] = YAML(typ="safe").load(
    (Path(__file__).parent / "decisions.yaml").read_text(encoding="utf-8")
)
CALLS = [
    pytest.param(group["policies"], asked, id=f"{group['about']}: {number}")
    for group in TABLE
    for number, asked in enumerate(group["calls"])
]


@pytest.mark.parametrize(("policies", "asked"), CALLS)
def test_a_call_is_decided_as_the_table_says(
    policies: list[dict[str, Any]], asked: dict[str, Any]
) -> None:
    described = {key: value for key, value in asked.items() if key != "says"}
    assert said(engine(*policies).decide(call(**described))) == asked["says"]


def test_the_table_is_long_and_holds_every_kind_of_answer() -> None:
    answers = [asked["says"].split(" ") for group in TABLE for asked in group["calls"]]
    assert len(answers) >= 60
    assert {answer[0] for answer in answers} == {"allow", "approve", "deny", "nothing"}
    codes = {answer[2] for answer in answers if len(answer) > 2}
    assert codes == {"policy_error", "arguments_refused"}
