"""What holds of every policy and every call, and the sentences that denials are told in."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kars_plugin_toolpolicy.bounds import LONGEST
from kars_plugin_toolpolicy.engine import DENIED, FAILED, HELD, NOT_ALLOWED, Engine
from kars_plugin_toolpolicy.testing import call, engine, policies, said

from kars_router.errors import ConfigError
from kars_router.model import ApprovalTerms, Decision, GovernedCall, Ruling


def rules(*listed: dict[str, Any], **more: Any) -> Engine:
    return engine({"name": "p", "rules": list(listed), **more})


def decided(by: Engine, asked: GovernedCall) -> Decision:
    decision = by.decide(asked)
    assert decision is not None
    return decision


# --- sentences -------------------------------------------------------------------------------


def test_the_usual_sentences() -> None:
    usual = rules({"effect": "deny", "tools": ["a"]}, {"effect": "approve", "tools": ["b"]})
    assert decided(usual, call(tool="a")).reason == DENIED
    assert decided(usual, call(tool="b")).reason == HELD
    assert decided(usual, call(tool="c")).reason == NOT_ALLOWED


def test_a_rule_may_say_its_own() -> None:
    own = rules({"effect": "deny", "reason": "Ask for a ticket first."})
    assert decided(own, call(tool="a")).reason == "Ask for a ticket first."


def test_arguments_that_do_not_fit_are_told_by_place_and_with_the_reason_of_the_rule() -> None:
    schema = {"properties": {"path": {"pattern": "^/srv/"}}}
    own = rules({"effect": "allow", "arguments": schema, "reason": "Only /srv may be read."})
    decision = decided(own, call(tool="a", args={"path": "/etc/SECRET"}))
    assert decision.code == "arguments_refused"
    assert decision.reason == (
        "The policy allows this call with other arguments only; what does not fit: "
        "/path (pattern). Only /srv may be read."
    )


def test_no_denial_repeats_anything_of_the_call() -> None:
    secret = "SECRET"
    every = rules(
        {
            "effect": "allow",
            "tools": ["a"],
            "arguments": {"additionalProperties": {"type": "null"}},
        },
        {"effect": "allow", "tools": ["b"], "when": "args[args.x] == 1"},
        {"effect": "deny", "tools": ["c"]},
    )
    for tool in "abcd":
        decision = decided(every, call(tool=tool, args={secret: secret, "x": secret}))
        assert decision.ruling is Ruling.DENY
        assert secret not in f"{decision.reason} {decision.notes} {decision.rule}"
    assert secret not in decided(every, call(resource=f"file:///{secret}")).reason


def test_terms_of_an_approval_are_those_of_its_rule() -> None:
    terms = {"expires": "90s", "via": ["operator"]}
    held = rules({"effect": "approve", "approval": terms})
    decision = decided(held, call(tool="a"))
    assert decision.terms == ApprovalTerms(expires=90.0, operator=True, elicitation=False)


# --- fail closed -----------------------------------------------------------------------------

ALLOWS: dict[str, Any] = {"name": "broken", "effect": "allow"}
DEEP: dict[str, Any] = {}
for _ in range(500):
    DEEP = {"a": DEEP}


@pytest.mark.parametrize(
    ("rule", "asked", "note"),
    [
        ({"when": "args.x"}, {"tool": "a", "args": {"x": 1}}, "gave int instead of bool"),
        ({"when": "args.x == 1"}, {"tool": "a"}, "not there"),
        ({"when": "args.x > 1"}, {"tool": "a", "args": {"x": "y"}}, "type of a value"),
        ({"when": "args.x / 0 == 1"}, {"tool": "a", "args": {"x": 1}}, "cannot be evaluated"),
        ({"when": "args.x == 1"}, {"tool": "a", "args": {"x": 2**70}}, "beyond 64 bits"),
        ({"when": "args.x == 1"}, {"tool": "a", "args": DEEP}, "nested"),
        ({"when": "args.x == 1"}, {"tool": "a", "args": {"l": [0] * 20_000}}, "values"),
        ({"when": "args.x == 1"}, {"tool": "a", "args": {"s": "a" * LONGEST}}, "KiB"),
        (
            {"when": "args.l.all(x, args.l.all(y, x + y >= 0))"},
            {"tool": "a", "args": {"l": [1] * 999}},
            "steps",
        ),
        (
            {"when": "args.l.all(x, args.h.contains('b'))"},
            {"tool": "a", "args": {"l": [1] * 100, "h": "a" * 100_000}},
            "too large for a loop",
        ),
        ({"arguments": {}}, {"tool": "a", "args": DEEP}, "nested"),
        ({"arguments": {}}, {"tool": "a", "args": {"s": "a" * LONGEST}}, "KiB"),
    ],
)
def test_what_is_not_decided_is_denied(
    rule: dict[str, Any], asked: dict[str, Any], note: str
) -> None:
    decision = decided(rules(ALLOWS | rule, default="allow"), call(**asked))
    assert said(decision) == "deny p/broken policy_error"
    assert decision.reason == FAILED
    assert len(decision.notes) == 1
    assert note in decision.notes[0]


def test_a_schema_for_what_is_no_json_denies() -> None:
    broken = rules(ALLOWS | {"arguments": {"properties": {"x": {"type": "string"}}}})
    decision = decided(
        broken,
        GovernedCall(
            id="1", agent="", server="web", method="tools/call", name="a", arguments={"x": object()}
        ),
    )
    assert said(decision) == "deny p/broken policy_error"


@pytest.mark.parametrize("method", ["tools/list", "", "resources/subscribe"])
def test_a_method_that_is_not_known_is_denied(method: str) -> None:
    asked = GovernedCall(id="1", agent="", server="web", method=method, name="a")
    assert said(engine({"name": "p", "default": "allow"}).decide(asked)) == "deny  policy_error"


@pytest.mark.parametrize("params", [b"", b"[]", b"{}", b'{"ref": 5}', b'{"ref": {"type": "x"}}'])
def test_a_completion_of_nothing_is_denied(params: bytes) -> None:
    asked = GovernedCall(
        id="1", agent="", server="web", method="completion/complete", name="a", params=params
    )
    assert said(engine({"name": "p", "default": "allow"}).decide(asked)) == "deny  policy_error"


def test_large_arguments_pass_where_nothing_looks_at_them() -> None:
    bare = rules({"name": "r", "effect": "allow", "when": "tool == 'a'"})
    assert said(bare.decide(call(tool="a", args={"s": "a" * LONGEST}))) == "allow p/r"


# --- what only a compiler finds --------------------------------------------------------------


def test_every_mistake_is_told_with_its_place() -> None:
    specs = (
        {"rules": [{"effect": "deny", "when": "nope"}, {"effect": "deny", "when": "1"}]},
        {
            "rules": [{"effect": "allow", "arguments": {"properties": {"a": {"type": "x"}}}}],
            "agtProfile": {"inline": "policies: [{type: x}]"},
        },
    )
    with pytest.raises(ConfigError) as refused:
        Engine.of(policies(*specs))
    assert [problem.partition(": ")[0] for problem in refused.value.problems] == [
        "policies[0].rules[0].when",
        "policies[0].rules[1].when",
        "policies[1].agtProfile.inline.policies[0].type",
        "policies[1].rules[0].arguments.properties.a.type",
    ]


# --- redaction -------------------------------------------------------------------------------


def test_every_matching_redact_is_done_and_one_without_an_answer_too() -> None:
    redacts = rules(
        {"effect": "redact", "tools": ["a*"], "redact": {"kinds": ["jwt"]}},
        {"effect": "redact", "tools": ["a"], "when": "args.x == 1", "redact": {"kinds": ["aws"]}},
        {"effect": "redact", "tools": ["b"], "redact": {"kinds": ["slack"]}},
    )

    def kinds(**asked: Any) -> list[str]:
        return [kind.value for each in redacts.matching(call(**asked)) for kind in each.kinds]

    assert redacts.redacts
    assert kinds(tool="a", args={"x": 1}) == ["jwt", "aws"]
    assert kinds(tool="a", args={"x": 2}) == ["jwt"]
    assert kinds(tool="a", args={}) == ["jwt", "aws"]
    assert kinds(tool="ab") == ["jwt"]
    assert kinds(resource="a") == []
    assert not rules().redacts


# --- explanation -----------------------------------------------------------------------------


def test_an_explanation_says_what_became_of_each_rule() -> None:
    explained = rules(
        {"name": "other", "effect": "deny", "tools": ["b"]},
        {"name": "false", "effect": "deny", "when": "args.x > 5"},
        {"name": "this", "effect": "allow"},
        {"name": "late", "effect": "deny"},
        {"name": "hide", "effect": "redact"},
        approval={"mode": "always"},
    ).explain(call(tool="a", args={"x": 1}))
    assert [(step.rule, step.effect, step.matched, step.why) for step in explained] == [
        ("p/other", "deny", False, "it is for other tools"),
        ("p/false", "deny", False, "its condition is not true"),
        ("p/this", "allow", True, ""),
        ("p/late", "deny", None, "not asked: the call was decided before"),
        ("p/approval", "approve", True, "every call of this policy is held"),
        ("p/hide", "redact", True, ""),
    ]


def test_an_explanation_says_why_there_is_no_answer() -> None:
    broken = rules(ALLOWS | {"when": "args.x == 1"}, {"name": "late", "effect": "allow"})
    step, late = broken.explain(call(tool="a"))
    assert (step.rule, step.matched) == ("p/broken", None)
    assert "something that it reads is not there" in step.why
    assert (late.rule, late.matched) == ("p/late", None)


# --- whatever the policy and the call ----------------------------------------------------------

names = st.sampled_from(["a", "b", "read_x", "file:///srv/../a", "file:///srv/%61"])
globs = st.lists(st.sampled_from(["a", "b", "*", "read_*", "file:///srv/*", "[ab]"]), max_size=2)
expressions = st.sampled_from(
    ["args.x == 1", "args.x > 1", "tool == 'a'", "agent.subject == 's'", "args.l.all(i, i > 0)"]
)
schemas: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{"required": ["x"]}, {"properties": {"x": {"type": "integer"}}}, {"maxProperties": 1}]
)


@st.composite
def any_rule(draw: st.DrawFn, effects: tuple[str, ...]) -> dict[str, Any]:
    effect = draw(st.sampled_from(effects))
    rule: dict[str, Any] = {"effect": effect, "priority": draw(st.integers(-2, 2))}
    for key in ("tools", "resources", "prompts"):
        rule[key] = draw(globs)
    if draw(st.booleans()):
        rule["when"] = draw(expressions)
    if effect in ("allow", "approve") and draw(st.booleans()):
        rule["arguments"] = draw(schemas)
    if draw(st.booleans()):
        rule["annotations"] = draw(st.dictionaries(st.just("readOnlyHint"), st.booleans()))
    return rule


any_rules = st.lists(any_rule(("allow", "approve", "deny", "redact")), max_size=4)
defaults = st.sampled_from(["allow", "approve", "deny"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.sampled_from(["x", "l", "y"]), json_values, max_size=3)
strange = st.text(max_size=8) | st.just("half a \udc00 character")
calls = st.builds(
    GovernedCall,
    id=st.just("1"),
    agent=strange,
    server=st.sampled_from(["web", "db"]),
    method=st.sampled_from(["tools/call", "resources/read", "prompts/get", "completion/complete"]),
    name=names | strange,
    arguments=arguments,
    params=st.sampled_from([b"{}", b'{"ref": {"type": "ref/prompt"}}', b"x"]),
    annotations=st.dictionaries(st.sampled_from(["readOnlyHint", "title"]), json_values),
    subject=strange,
    time=st.floats(allow_nan=True, allow_infinity=True),
)


@given(listed=any_rules, default=defaults, asked=calls)
def test_no_call_breaks_the_engine(
    listed: list[dict[str, Any]], default: str, asked: GovernedCall
) -> None:
    every = rules(*listed, default=default)
    decision = decided(every, asked)
    every.explain(asked)
    every.matching(asked)
    assert decision.rule or decision.code == "policy_error"


@given(
    listed=any_rules,
    default=defaults,
    asked=calls,
    more=any_rule(("deny",)),
    place=st.integers(0, 4),
)
def test_another_deny_rule_never_lets_a_denied_call_pass(
    listed: list[dict[str, Any]],
    default: str,
    asked: GovernedCall,
    more: dict[str, Any],
    place: int,
) -> None:
    before = decided(rules(*listed, default=default), asked)
    stricter = rules(*listed[:place], more, *listed[place:], default=default)
    if before.ruling is Ruling.DENY:
        assert decided(stricter, asked).ruling is Ruling.DENY


@given(listed=any_rules, default=defaults, others=any_rules, asked=calls)
def test_another_policy_never_makes_it_less_strict(
    listed: list[dict[str, Any]],
    default: str,
    others: list[dict[str, Any]],
    asked: GovernedCall,
) -> None:
    order = [Ruling.ALLOW, Ruling.APPROVE, Ruling.DENY]
    first = {"name": "a", "rules": listed, "default": default}
    alone = decided(engine(first), asked)
    both = decided(engine(first, {"name": "b", "rules": others, "default": "allow"}), asked)
    assert order.index(both.ruling) >= order.index(alone.ruling)


@given(listed=any_rules, default=defaults, asked=calls)
@settings(max_examples=50)
def test_an_explanation_agrees_with_the_decision(
    listed: list[dict[str, Any]], default: str, asked: GovernedCall
) -> None:
    every = rules(*listed, default=default)
    decision = decided(every, asked)
    steps = {step.rule: step.matched for step in every.explain(asked)}
    if decision.code == "policy_error":
        assert decision.rule == "" or steps[decision.rule] is None
    else:
        assert steps[decision.rule] is True


# --- speed -----------------------------------------------------------------------------------


def test_ten_rules_are_decided_quickly() -> None:
    """Far from what it takes, so that only a change of kind makes it fail."""
    listed = [
        {"effect": "deny", "tools": [f"tool_{n}_*"], "when": "args.path.startsWith('/etc')"}
        for n in range(8)
    ]
    schema = {"properties": {"path": {"type": "string", "pattern": "^/srv/"}}}
    inside = "args.path.startsWith('/srv/') && !args.path.contains('..') && now.getHours() < 18"
    ten = rules(
        *listed,
        {"effect": "deny", "tools": ["read_*"], "when": "'read' in agent.scopes == false"},
        {
            "name": "yes",
            "effect": "allow",
            "tools": ["read_*"],
            "when": inside,
            "arguments": schema,
        },
    )
    asked = call(tool="read_file", args={"path": "/srv/a", "lines": 5}, scopes=["read"])
    assert said(ten.decide(asked)) == "allow p/yes"
    best = min(_seconds(ten, asked) for _ in range(5))
    assert best < 1e-3
    print(f"{best * 1e6:.1f} us")


def _seconds(by: Engine, asked: GovernedCall) -> float:
    begun = time.thread_time()
    for _ in range(200):
        by.decide(asked)
    return (time.thread_time() - begun) / 200
