"""Expressions of policies, over texts that a server chose: found or given up, never for long."""

from __future__ import annotations

import json
import time

import pytest
from kars_plugin_toolpolicy.expressions import (
    Expression,
    ExpressionError,
    Patience,
    TooSlowError,
)
from kars_plugin_toolpolicy.redaction import Redactor
from kars_plugin_toolpolicy.testing import call, engine

from kars_router.config.problems import InvalidConfigError
from kars_router.config.toolpolicy import Redact


def spans(source: str, text: str) -> list[tuple[int, int]]:
    return list(Expression.compile(source).within(text, Patience()))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("(a+)+b", "a" * 200_000),
        ("(a|a)*b", "a" * 200_000),
        ("(a|aa)+$", "a" * 200_000 + "!"),
        ("(x+x+)+y", "x" * 200_000),
        (r"^(\w+\s?)*$", "word " * 40_000 + "!"),
        ("(?:a?){200}a{200}b", "a" * 100_000),
        (r"([a-z]+)*@([a-z]+)*\.", "a" * 200_000),
    ],
)
def test_no_expression_takes_longer_than_the_text_is_long(source: str, text: str) -> None:
    begun = time.thread_time()
    assert spans(source, text) == []
    assert time.thread_time() - begun < 0.5


def test_matches_that_take_long_together_are_given_up() -> None:
    text = "x" * 200_000
    redactor = Redactor(lambda _: (Redact(kinds=(), expressions=("x.*y|x",)),))
    begun = time.thread_time()
    with pytest.raises(TooSlowError):
        redactor.incoming(call(tool="t"), json.dumps({"t": text}).encode())
    assert time.thread_time() - begun < 3


def test_the_time_is_that_of_the_whole_message() -> None:
    clock = iter(range(100))
    patience = Patience(lambda: next(clock) / 10)
    expression = Expression.compile("a")
    for _ in range(10):
        assert list(expression.within("b", patience)) == []
    with pytest.raises(TooSlowError):
        list(expression.within("b", patience))


@pytest.mark.parametrize(
    ("source", "text", "found"),
    [
        ("b+", "abba b", [(1, 3), (5, 6)]),
        ("x*", "axx", [(1, 3)]),
        ("\u00e9.", "\U0001f600\u00e9x", [(1, 3)]),
        ("z", "\ud800\udc00 \ud83d z", [(5, 6)]),
        ("(?i)ticket-[0-9]{2}", "TICKET-12", [(0, 9)]),
    ],
)
def test_matches_stand_where_they_stand(
    source: str, text: str, found: list[tuple[int, int]]
) -> None:
    assert spans(source, text) == found


@pytest.mark.parametrize("source", ["(?=a)a", "(?<!a)b", r"(a)\1", "(?P<x>a)(?P=x)", "a{2000}"])
def test_what_linear_time_does_not_allow_is_refused_with_its_place(source: str) -> None:
    rule = {"effect": "redact", "redact": {"expressions": ["fine", source]}}
    with pytest.raises(InvalidConfigError) as refused:
        engine({"name": "p", "rules": [rule]})
    assert "policies[0].rules[0].redact.expressions[1]" in str(refused.value)
    assert "RE2" in str(refused.value)


def test_a_refusal_prints_nothing_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExpressionError):
        Expression.compile("(?=a)")
    assert capfd.readouterr().err == ""
