"""Every example of docs/policies.md, limits.md and redaction.md does what the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from kars_plugin_toolpolicy.limits import Limits
from kars_plugin_toolpolicy.redaction import Redactor
from kars_plugin_toolpolicy.store import Store
from kars_plugin_toolpolicy.testing import call, engine, policies, said
from ruamel.yaml import YAML

from kars_router.config.toolpolicy import SecretKind
from kars_router.model import CallEnd, Decision, Fate, Ruling

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "policies.md"
EXAMPLE = re.compile(r"```yaml\n(policies:.*?)```\n+```text\n(.*?)```", re.DOTALL)
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
TEXT = PAGE.read_text(encoding="utf-8")
CALLS: list[tuple[str, str, str]] = [
    (written, *line.rsplit(" -> ", 1))
    for written, lines in EXAMPLE.findall(TEXT)
    for line in lines.splitlines()
]


@pytest.mark.parametrize(
    ("written", "described", "answer"), CALLS, ids=[" -> ".join(each[1:]) for each in CALLS]
)
def test_an_example_is_decided_as_the_page_says(written: str, described: str, answer: str) -> None:
    asked: dict[str, Any] = json.loads(described)
    if "arguments" in asked:
        asked["args"] = asked.pop("arguments")
    specs = YAML(typ="safe").load(written)["policies"]
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


LIMITS = (DOCS / "limits.md").read_text(encoding="utf-8")
# 20:48 UTC, so that midnight is 3 h 12 min away.
EVENING = 1_767_300_480.0
ALLOWED = Decision(ruling=Ruling.ALLOW)


class Example:
    """The policy of limits.md, at a time of its own."""

    def __init__(self) -> None:
        [spec] = YAML(typ="safe").load(blocks(LIMITS, "yaml")[0])["policies"]
        self.now = EVENING
        self.limits = Limits(policies(spec), Store.open(None), clock=lambda: self.now)
        self.count = 0

    def call(
        self, tool: str = "read", *, agent: str = "ada", end: int | None = 0
    ) -> Decision | None:
        """Makes a call, and ends it with a result of so many bytes unless that is None."""
        self.count += 1
        made = call(tool=tool, agent=agent, id=str(self.count))
        denied = self.limits.admit(made)
        if denied is not None or end is None:
            return denied
        ended = CallEnd(decision=ALLOWED, fate=Fate.EXECUTED, result=b"x" * end)
        return self.limits.release(made, ended)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def sentences(code: str) -> list[list[str]]:
    """The rows of the table of denials: code, sentence, when to try again."""
    rows = [line.strip("| ").split(" | ") for line in LIMITS.splitlines() if line[:1] == "|"]
    return [row for row in rows if row[0] == f"`{code}`"]


def test_ten_of_eleven_calls_pass_and_the_eleventh_reads_what_the_page_says() -> None:
    example = Example()
    assert [example.call() for _ in range(10)] == [None] * 10
    denied = example.call()
    assert denied is not None
    assert denied.code == "rate_limited"
    assert f"\n> {denied.reason}\n" in LIMITS
    example.now += 1
    assert example.call() is None
    assert example.call() is not None


def test_one_call_too_many_at_once_reads_what_the_page_says() -> None:
    example = Example()
    for _ in range(4):
        assert example.call("browser_open", end=None) is None
    denied = example.call("browser_open")
    assert denied is not None
    assert sentences(denied.code) == [["`too_many_calls`", denied.reason, "after 1 s"]]
    assert denied.retry_after == 1
    assert example.call("read") is None


def test_a_budget_that_is_spent_reads_what_the_page_says() -> None:
    example = Example()
    for number in range(5000):
        assert example.call(agent=f"agent-{number}") is None
    denied = example.call(agent="eve")
    assert denied is not None
    assert denied.retry_after == 3 * 3600 + 12 * 60
    other = Example()
    for _ in range(3):
        assert other.call("browser_file_upload") is None
    again = other.call("browser_file_upload")
    assert again is not None
    assert again.retry_after is None
    assert other.call("browser_file_upload", agent="bob") is None
    assert sentences("budget_spent") == [
        ["`budget_spent`", denied.reason, "at midnight UTC"],
        ["`budget_spent`", again.reason, "never in this session"],
    ]


def test_a_result_that_is_too_long_reads_what_the_page_says() -> None:
    example = Example()
    assert example.call(end=1 << 20) is None
    denied = example.call(end=2 << 20)
    assert denied is not None
    [[_, sentence, *_]] = sentences("result_too_long")
    assert sentence.rstrip(" |") == denied.reason
    # The bytes of the daily budget were spent all the same.
    for number in range(250):
        assert example.call(agent=f"agent-{number}", end=2 << 20) is not None
    spent = example.call(agent="eve")
    assert spent is not None
    assert spent.code == "budget_spent"


REDACTION = (DOCS / "redaction.md").read_text(encoding="utf-8")


def test_the_answer_of_the_server_is_redacted_as_the_page_says() -> None:
    specs = YAML(typ="safe").load(blocks(REDACTION, "yaml")[0])["policies"]
    before, after = blocks(REDACTION, "json")
    made = call(tool="find", server="crm")
    cleaned = Redactor(engine(*specs).matching).incoming(made, before.encode())
    assert cleaned.decode() == after
    other = call(tool="find", server="mail")
    assert Redactor(engine(*specs).matching).incoming(other, before.encode()) == before.encode()


def test_the_table_of_secrets_names_every_kind() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", REDACTION, re.MULTILINE)
    assert sorted(named) == sorted(SecretKind)


@pytest.mark.parametrize(
    "value", ["<token>", "$PASSWORD", "********", "required", "Password: must be long"]
)
def test_values_that_the_page_says_stay_do_stay(value: str) -> None:
    assert value in REDACTION
    redactor = Redactor(engine({"rules": [{"effect": "redact"}]}).matching)
    prose = {"text": value}
    bodies = [prose, {"password": value}, {"text": f"password={value}"}]
    for body in bodies[: 1 if " " in value else 3]:
        raw = json.dumps(body).encode()
        assert redactor.incoming(call(tool="t"), raw) == raw


def test_no_example_of_these_pages_is_left_out() -> None:
    assert [len(blocks(LIMITS, each)) for each in ("yaml", "json", "text")] == [1, 0, 0]
    assert [len(blocks(REDACTION, each)) for each in ("yaml", "json", "text")] == [1, 2, 0]
