"""CEL as its specification has it, what is refused when it is compiled, and what fails later.

The cases follow the ideas of the specification's conformance suite: arithmetic that overflows,
numbers of several types, absent members, macros, time, patterns, errors beside `||` and `&&`.
"""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve
from kars_plugin_toolpolicy.bounds import DEEPEST, LARGEST, LONGEST, measure
from kars_plugin_toolpolicy.conditions import Condition, ConditionError, ConditionFailed
from kars_plugin_toolpolicy.testing import call

ARGS = {
    "i": 5,
    "f": 1.5,
    "s": "str",
    "b": True,
    "n": None,
    "l": [1, 2, 3],
    "o": {"x": 1},
    "big": 9223372036854775807,
}


def ask(source: str, args: dict[str, Any] | None = None, **more: Any) -> bool:
    asked = call(tool="fetch", args=ARGS if args is None else args, **more)
    return Condition.compile(source).holds(asked)


@pytest.mark.parametrize(
    "source",
    [
        # numbers
        "7 / 2 == 3 && -7 / 2 == -3 && -7 % 2 == -1",
        "1.0 / 0.0 > 1.0",
        "dyn(1) == 1.0 && dyn(1) < dyn(1.5) && dyn(1u) == 1",
        "args.i == 5 && args.i == 5.0 && args.i == 5u && args.i < 5.5",
        "args.f == 1.5 && args.f > 1",
        "args.big > 9223372036854775806",
        "-args.i == -5 && 0x1F == 31 && 1e3 == 1000.0",
        "double(args.i) == 5.0 && int('7') == 7 && int(1.9) == 1 && string(1) == '1'",
        "!(0.1 + 0.2 == 0.3)",
        # strings and patterns
        "'abc'.startsWith('a') && 'abc'.endsWith('c') && 'abc'.contains('b')",
        "'abc'.matches('^a.c$') && 'abc'.matches('b') && !'abc'.matches('^b')",
        r"'a1'.matches(r'\d') && 'a1'.matches('\\d')",
        "size('ñandú') == 5 && 'a' + 'b' == 'ab' && 'a' < 'b'",
        # members and lists
        "has(args.i) && !has(args.nope) && 'i' in args && !('nope' in args)",
        "args['i'] == 5 && args.l[0] == 1 && args.o.x == 1",
        "args.l + [4] == [1, 2, 3, 4] && size(args.l) == 3 && 2 in args.l",
        "args.n == null && args.n != 1",
        "{'a': [1, {'b': 2}]} == {'a': [1.0, {'b': 2}]}",
        # macros
        "args.l.all(x, x > 0) && args.l.exists(x, x == 2) && args.l.exists_one(x, x == 2)",
        "args.l.map(x, x * 2) == [2, 4, 6] && args.l.filter(x, x > 1) == [2, 3]",
        "args.l.map(x, x > 1, x * 2) == [4, 6]",
        "args.o.all(key, key != '')",
        "[0, 1].exists(x, 1 / x > 0)",
        "!([1, 0].all(x, 1 / x > 5))",
        # time
        "now == timestamp('2026-05-01T12:00:00Z') && now.getFullYear() == 2026",
        "now.getMonth() == 4 && now.getDate() == 1 && now.getDayOfWeek() == 5",
        "now.getHours() == 12 && now.getHours('+02:00') == 14",
        "now + duration('1h') > now && duration('90s') == duration('1m30s')",
        "now - timestamp('2026-05-01T11:00:00Z') == duration('1h')",
        # types
        "type(args.s) == string && type(args.i) == int && type(args.b) == bool",
        "args.s != 5 && args.i != true",
        # errors beside what settles the matter
        "true || 1 / 0 == 0",
        "1 / 0 == 0 || true",
        "!(false && 1 / 0 == 0)",
        "!(1 / 0 == 0 && false)",
        "args.nope == 1 || true",
        "args.s || true",
        "args.b ? true : 1 / 0 == 0",
    ],
)
def test_what_is_true(source: str) -> None:
    assert ask(source) is True


@pytest.mark.parametrize(
    ("source", "clause"),
    [
        ("9223372036854775807 + args.i > 0", "cannot be evaluated"),
        ("-9223372036854775808 - args.i < 0", "cannot be evaluated"),
        ("args.big * 2 > 0", "cannot be evaluated"),
        ("args.i / 0 == 0", "cannot be evaluated"),
        ("args.i % 0 == 0", "cannot be evaluated"),
        ("args.i + 1.0 == 6.0", "type of a value"),
        ("args.s + 5 == 6", "type of a value"),
        ("args.s > 5", "type of a value"),
        ("!args.s", "type of a value"),
        ("args.s", "instead of bool"),
        ("args.n", "instead of bool"),
        ("args.s ? true : false", "type of a value"),
        ("args.nope == 1", "not there"),
        ("has(args.nope.x)", "not there"),
        ("args.l[3] == 1", "cannot be evaluated"),
        ("args.l[-1] == 1", "cannot be evaluated"),
        ("args.o.x.y == 1", "cannot be evaluated"),
        ("[0, 1].all(x, 1 / x > 0)", "cannot be evaluated"),
        ("1 / 0 == 0 || false", "cannot be evaluated"),
        ("timestamp(args.s) < now", "cannot be evaluated"),
        ("int(args.s) == 7", "cannot be evaluated"),
        ("args.s.matches('a') || args.i.matches('a')", "type of a value"),
        ("annotations.readOnlyHint", "not there"),
    ],
)
def test_what_has_no_answer(source: str, clause: str) -> None:
    with pytest.raises(ConditionFailed, match=clause):
        ask(source)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("1 +", "at column 4"),
        ("", "is no condition"),
        ("nope == 1", "undeclared reference to 'nope' at column 1"),
        ("true &&\n  nope(1)", "undeclared reference to 'nope' at line 2, column 7"),
        ("1", "gives int, and must give bool"),
        ("now", "gives timestamp, and must give bool"),
        ("1 == 'a'", "no matching overload"),
        ("tool > 5", "no matching overload"),
        ("agent.subjct == 'x'", "reads agent.subjct; there is only id, client, subject, scopes"),
        ("agent . subjct == 'x'", "there is only"),
        ("name.matches(args.pattern)", "a literal pattern"),
        ("matches(name, 'a')", "a literal pattern"),
        ("name.matches('a' + 'b')", "a literal pattern"),
        ("name.matches('a') && name.matches (args.p)", "a literal pattern"),
        ("name.matches('(')", "no RE2 regular expression"),
        ("name.matches('(?=a)')", "no RE2 regular expression"),
        ("(" * 100 + "true" + ")" * 100, "nested too deep"),
    ],
)
def test_what_is_refused_when_it_is_compiled(source: str, complaint: str) -> None:
    with pytest.raises(ConditionError) as refused:
        Condition.compile(source)
    assert complaint in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "source",
    [
        "name == 'matches(x)' // matches(y) agent.nope",
        "name == \"agent.nope\" || name == '''agent.\"nope\"'''",
        r"name == 'it\'s agent.nope'",
        "args.agent.nope == 1 || true",
    ],
)
def test_names_in_literals_and_comments_are_none(source: str) -> None:
    Condition.compile(source)


@pytest.mark.parametrize(
    ("source", "reads"),
    [
        ("args.x == 1", True),
        ("size(args) > 0", True),
        ("tool == 'args'", False),
        ("agent.id == '' // args", False),
        ("has(annotations.arg)", False),
        (".args.x == 1", True),
    ],
)
def test_whether_arguments_are_read_is_known(source: str, *, reads: bool) -> None:
    assert Condition.compile(source).reads_arguments is reads


@pytest.mark.parametrize(
    ("source", "loops"),
    [
        ("args.l.all(x, x > 0) && args.h == ''", False),
        ("args.l.exists(x, x.matches('args')) || args.l.map(x, x) == []", False),
        ("args.l.all(x, args.h.contains(x))", True),
        ("args.l . filter (x, (x in args.m)) == []", True),
        ("args.l.all(x, x.l.exists_one(y, y == x.h))", True),
        ("['a'].exists(x, args.h.contains(x))", True),
        ("args.all == 1 && args.l.all(x, x != ')') && size(args) == 1", False),
    ],
)
def test_whether_all_arguments_may_be_gone_through_for_each_is_known(
    source: str, *, loops: bool
) -> None:
    assert Condition.compile(source).loops is loops


@pytest.mark.parametrize(
    "source",
    [
        "args.l.existsOne(x, x == 1)",
        "args.l.all(i, x, x == 1)",
        "args.l.transformList(i, x, x) == []",
        "args.l.sortBy(x, x) == []",
        "cel.bind(x, args.l, x == x)",
    ],
)
def test_there_are_no_loops_but_those_that_are_watched(source: str) -> None:
    with pytest.raises(ConditionError, match="undeclared reference"):
        Condition.compile(source)


def test_only_plain_annotations_are_read() -> None:
    hints = {"a": [1], "b": {"c": 1}, "d": "x" * 2000, "e": "x", "f": True, "g": 1}
    assert ask("size(annotations) == 3 && annotations.e == 'x'", annotations=hints)


def test_all_variables_can_be_read() -> None:
    source = (
        "tool == 'fetch' && name == 'fetch' && server == 'web' && method == 'tools/call'"
        " && agent.id == 'agent-1' && agent.client == 'c' && agent.subject == 's'"
        " && agent.scopes == ['r', 'w'] && has(agent.id) && annotations.readOnlyHint"
    )
    more: dict[str, Any] = {"client": "c", "subject": "s", "scopes": ["r", "w"]}
    assert ask(source, annotations={"readOnlyHint": True}, **more) is True


def test_loops_over_arguments_have_a_budget() -> None:
    within = {"l": list(range(90))}
    beyond_it = {"l": list(range(300))}
    source = "args.l.exists(x, args.l.exists(y, x + y < 0))"
    assert ask(source, within) is False
    with pytest.raises(ConditionFailed, match="more steps than are allowed"):
        ask(source, beyond_it)


def test_a_pattern_takes_linear_time() -> None:
    assert ask("args.s.matches('^(a+)+$')", {"s": "a" * 100_000 + "b"}) is False


@pytest.mark.parametrize(
    "args",
    [{"x": 2**64}, {"x": -(2**63) - 1}, {"x": "\ud800"}, {"\udfff": 1}, {"x": object()}],
    ids=["large", "small", "half a character", "half a character in a name", "no JSON"],
)
def test_a_value_that_cel_has_no_room_for_is_no_answer(args: dict[str, Any]) -> None:
    asked = evolve(call(tool="a"), arguments=args)
    with pytest.raises(ConditionFailed):
        Condition.compile("args.x == 1 || args.x != 1").holds(asked)


def test_what_is_said_of_a_failure_quotes_nothing_of_the_call() -> None:
    for source in ("args[args.s] == 1", "int(args.s) == 1", "args.s > 5"):
        with pytest.raises(ConditionFailed) as failed:
            ask(source, {"s": "SECRET"})
        assert "SECRET" not in failed.value.clause


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("within", "over", "clause"),
    [
        (nested(DEEPEST), nested(DEEPEST + 1), "nested more than"),
        (nested(DEEPEST), nested(5000), "nested more than"),
        ({"l": [0] * (LARGEST - 1)}, {"l": [0] * LARGEST}, "values"),
        ({"s": "a" * (LONGEST - 1)}, {"s": "a" * LONGEST}, "KiB"),
        ({"a" * LONGEST: 1}, {"a" * (LONGEST + 1): 1}, "KiB"),
    ],
    ids=["depth", "great depth", "values", "strings", "names"],
)
def test_arguments_have_bounds(within: dict[str, Any], over: dict[str, Any], clause: str) -> None:
    assert measure(within, b"{}").beyond is None
    assert clause in str(measure(over, b"{}").beyond)


def test_params_have_a_bound_before_anything_is_counted() -> None:
    assert measure({}, b" " * LONGEST).beyond is None
    assert "KiB" in str(measure({}, b" " * (LONGEST + 1)).beyond)


@pytest.mark.parametrize(
    ("source", "needs"),
    [
        ("has(args.url) && args.url == 'x'", "url"),
        (" has( args . url )&&tool == 'a' && args.n > 1", "url"),
        ("has(args.url) && args.url == '||?'", "url"),
        ("has(args.url) && args.url == 'x' || tool == 'fetch'", None),
        ("has(args.url) && args.url == 'x' ? false : true", None),
        ("!has(args.url) && tool == 'fetch'", None),
        ("has(args.o.url) && tool == 'fetch'", None),
        ("has(args.url) == false", None),
        ("(has(args.url) && false) == false", None),
    ],
)
def test_an_argument_that_has_to_be_there_is_looked_for_first(source: str, needs: str) -> None:
    condition = Condition.compile(source)
    assert condition.needs == needs
    # Whatever is known beforehand, the answer is what the expression says of such a call.
    asked = call(tool="fetch", args={"o": {}, "n": 2})
    assert condition.holds(asked) is Condition.compile(f"({source}) && true").holds(asked)


def test_an_answer_is_remembered_for_the_one_it_is_about() -> None:
    condition = Condition.compile(
        "agent.subject == 'ada' && 'w' in agent.scopes && tool == 'fetch'"
    )
    ada = call(tool="fetch", subject="ada", scopes=["w"])
    for _ in range(2):
        assert condition.holds(ada)
        assert not condition.holds(evolve(ada, subject="bob"))
        assert not condition.holds(evolve(ada, scopes=("r",)))
        assert not condition.holds(evolve(ada, name="push"))
        assert not condition.holds(evolve(ada, method="prompts/get"))
    by_client = Condition.compile("agent.client == 'a' || agent.id == 'agent-2' || server == 's'")
    for _ in range(2):
        assert not by_client.holds(ada)
        assert by_client.holds(evolve(ada, client="a"))
        assert by_client.holds(evolve(ada, agent="agent-2"))
        assert by_client.holds(evolve(ada, server="s"))


def test_a_variable_is_found_however_it_is_written() -> None:
    for source in (".args.i == 5", ". args.i == 5", "\nargs\n.i == 5", ".agent.id == 'agent-1'"):
        assert ask(source), source


def test_what_may_differ_between_two_calls_is_asked_of_each() -> None:
    time = Condition.compile("now.getHours() == 12")
    hint = Condition.compile("has(annotations.readOnlyHint)")
    args = Condition.compile("size(args) == 1")
    asked = call(tool="fetch")
    assert time.holds(asked)
    assert not time.holds(evolve(asked, time=asked.time + 3600))
    assert not hint.holds(asked)
    assert hint.holds(evolve(asked, annotations={"readOnlyHint": True}))
    assert not args.holds(asked)
    assert args.holds(evolve(asked, arguments={"a": 1}))


def test_only_so_many_answers_are_remembered() -> None:
    condition = Condition.compile("name != ''")
    for number in range(3000):
        assert condition.holds(call(prompt=f"p{number}"))
    assert condition.holds(call(prompt="p" * 5000))
    kept = condition._answers or {}
    assert 0 < len(kept) <= 1024
    assert all(len(str(key)) < 2000 for key in kept)
