"""docs/operator.md and docs/mcp.md name what there is: options, variables, metrics, reasons."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from kars_operator.main import run_operator
from kars_operator.metrics import Metrics
from operator_kit import new_cluster, operator, sandbox_manifest
from trio.testing import MockClock

DOCS = Path(__file__).resolve().parents[3] / "docs"


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def options() -> list[click.Option]:
    return [each for each in run_operator.params if isinstance(each, click.Option) and each.name]


@pytest.mark.parametrize("option", options(), ids=lambda option: str(option.name))
def test_an_option_is_in_the_table_with_its_variable(option: click.Option) -> None:
    if option.name == "debug":
        return
    rows = [line for line in page("operator").splitlines() if "KARS_OPERATOR_RUN" in line]
    (row,) = (each for each in rows if re.match(rf"\| `{option.opts[0]}[ `]", each))
    assert f"`KARS_OPERATOR_RUN_{option.name}`".upper().replace("`", "") in row
    if isinstance(option.default, str | int) and not isinstance(option.default, bool):
        assert re.search(rf"\| `?{re.escape(str(option.default))}`? \|", row)
    assert ("repeatable" in row) == option.multiple


def test_no_variable_is_made_up() -> None:
    known = {f"KARS_OPERATOR_RUN_{each.name}".upper() for each in options()}
    named = set(re.findall(r"KARS_OPERATOR_RUN_[A-Z_]+", page("operator")))
    assert named - known == set()


async def test_every_metric_is_in_the_table(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        metrics = Metrics(controller=bench.controller)
        text = metrics.render().decode()
    there = set(re.findall(r"^# TYPE (\S+) \w+$", text, re.MULTILINE))
    there = {each for each in there if not each.endswith("_created")}
    named = set(re.findall(r"^\| `(kars_operator_\w+)", page("operator"), re.MULTILINE))
    assert named == there


def test_reasons_in_the_table_of_symptoms_are_those_of_the_resources() -> None:
    table = [line for line in page("mcp").splitlines() if line.startswith("|")]
    words = set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+)`", "\n".join(table)))
    known = set(re.findall(r"`(\w+)`", page("custom-resources")))
    # What the kubelet says, and kinds.
    assert words - known == {"CreateContainerConfigError"}
