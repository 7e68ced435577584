from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import define, evolve
from kars_plugin_toolpolicy.concurrency import MOST_ROUNDS, Rounds
from kars_plugin_toolpolicy.limits import Limits
from kars_plugin_toolpolicy.store import Store

from kars_router.config.toolpolicy import (
    AppliesTo,
    Budget,
    Per,
    Period,
    RateLimit,
    SimpleRate,
    ToolPolicy,
)
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling

DAY = 86_400.0
NOON = 20_000 * DAY + DAY / 2
ALLOWED = Decision(ruling=Ruling.ALLOW)
_ids = itertools.count()


@define
class Clock:
    now: float = NOON

    def __call__(self) -> float:
        return self.now


def call(name: str = "tool", **changes: Any) -> GovernedCall:
    given = {"id": str(next(_ids)), "agent": "a", "server": "s", "method": "tools/call"}
    return GovernedCall(name=name, **{**given, **changes})


def ended(fate: Fate = Fate.EXECUTED, result: bytes | None = b"{}", **changes: Any) -> CallEnd:
    return CallEnd(decision=ALLOWED, fate=fate, result=result, **changes)


def rates(*limits: RateLimit, **changes: Any) -> ToolPolicy:
    return ToolPolicy(name="p", rate_limits=limits, **changes)


def budgets(*limits: Budget, **changes: Any) -> ToolPolicy:
    return ToolPolicy(name="p", budgets=limits, **changes)


@define
class Bench:
    """Limits with a clock and a store at hand."""

    limits: Limits
    store: Store
    clock: Clock

    @classmethod
    def of(cls, *policies: ToolPolicy) -> Bench:
        store, clock = Store.open(None), Clock()
        return cls(Limits(policies, store, clock=clock), store, clock)

    def reload(self, *policies: ToolPolicy) -> Bench:
        return Bench(Limits(policies, self.store, clock=self.clock), self.store, self.clock)

    def codes(self, *calls: GovernedCall) -> list[str]:
        said = [self.limits.admit(each) for each in calls]
        return [each.code if each else "ok" for each in said]

    def whole(self, *calls: GovernedCall, end: CallEnd | None = None) -> list[str]:
        """As `codes`, each call ending before the next one begins."""
        said = []
        for each in calls:
            said += self.codes(each)
            self.limits.release(each, end or ended())
        return said


def calls(count: int, **changes: Any) -> Sequence[GovernedCall]:
    return [call(**changes) for _ in range(count)]


# --- rates -----------------------------------------------------------------------------------


def test_a_bucket_lets_its_burst_through_and_refills_with_time() -> None:
    bench = Bench.of(rates(RateLimit(name="r", calls=6, window=60, burst=2)))
    assert bench.codes(*calls(3)) == ["ok", "ok", "rate_limited"]
    bench.clock.now += 9.9
    assert bench.codes(call()) == ["rate_limited"]
    bench.clock.now += 0.1
    assert bench.codes(*calls(2)) == ["ok", "rate_limited"]


def test_the_denial_names_the_limit_and_when_the_call_may_come_again() -> None:
    bench = Bench.of(rates(RateLimit(name="slow", calls=1, window=30)))
    assert bench.codes(call(arguments={"card": "4111"})) == ["ok"]
    bench.clock.now += 10
    denied = bench.limits.admit(call(arguments={"card": "4111"}))
    assert denied is not None
    assert denied.ruling is Ruling.DENY
    assert denied.retry_after == pytest.approx(20)
    assert denied.rule == "p/slow"
    assert denied.reason == "The limit p/slow lets 1 call in 30s through; try again in 20 s."
    bench.clock.now += 20
    assert bench.codes(call()) == ["ok"]


def test_a_call_takes_from_all_of_its_limits_or_from_none() -> None:
    wide = RateLimit(name="wide", calls=3, window=3600)
    narrow = RateLimit(name="narrow", calls=1, window=3600, tools=("b",))
    bench = Bench.of(rates(narrow, wide, RateLimit(name="slots", concurrency=2)))
    assert bench.codes(call("b"), call("b"), call("b")) == ["ok", "rate_limited", "rate_limited"]
    assert bench.codes(call("a")) == ["ok"]  # so the two that were denied hold no slot
    assert len(bench.store.slots) == 2


def test_of_several_refusals_the_one_that_lasts_longest_is_told() -> None:
    short = RateLimit(name="short", calls=1, window=10)
    long = RateLimit(name="long", calls=1, window=100)
    spent = Budget(name="spent", calls=1, period=Period.SESSION)
    bench = Bench.of(rates(short, long))
    bench.codes(call())
    denied = bench.limits.admit(call())
    assert denied is not None
    assert denied.rule == "p/long"
    assert denied.retry_after == pytest.approx(100)
    assert [note for note in denied.notes if "p/short" in note]
    bench = Bench.of(rates(short, long, budgets=(spent,)))
    bench.codes(call())
    denied = bench.limits.admit(call())
    assert denied is not None
    assert (denied.rule, denied.retry_after) == ("p/spent", None)


@pytest.mark.parametrize(
    ("per", "same", "other"),
    [
        ((), {"agent": "b", "server": "t", "name": "u"}, None),
        ((Per.AGENT,), {"server": "t", "name": "u"}, {"agent": "b"}),
        ((Per.SERVER,), {"agent": "b", "name": "u"}, {"server": "t"}),
        ((Per.TOOL,), {"agent": "b"}, {"name": "u"}),
        ((Per.TOOL,), {"agent": "b"}, {"server": "t"}),  # a tool is that of its server
        ((Per.AGENT, Per.TOOL), {}, {"name": "u"}),
    ],
)
def test_each_has_a_bucket_of_its_own(
    per: tuple[Per, ...], same: dict[str, str], other: dict[str, str] | None
) -> None:
    bench = Bench.of(rates(RateLimit(calls=1, window=60, per=per)))
    assert bench.codes(call(), call(**same)) == ["ok", "rate_limited"]
    if other is not None:
        assert bench.codes(call(**other)) == ["ok"]


def test_an_agent_is_who_it_proved_to_be_whatever_its_session() -> None:
    bench = Bench.of(rates(RateLimit(calls=1, per=(Per.AGENT,))))
    first, again = call(agent="1", subject="eve"), call(agent="2", subject="eve")
    assert bench.codes(first, again) == ["ok", "rate_limited"]
    # Neither can a session pass for somebody.
    assert bench.codes(call(agent="eve"), call(agent="subject:eve")) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("limit", "counted", "passed_over"),
    [
        (RateLimit(calls=1, servers=("a*",)), {"server": "ab"}, {"server": "b"}),
        (RateLimit(calls=1, tools=("get_*",)), {"name": "get_x"}, {"name": "set_x"}),
        (RateLimit(calls=1, tools=("get_*",)), {"name": "get_x"}, {"method": "prompts/get"}),
        (RateLimit(calls=1), {"method": "prompts/get"}, None),
        (RateLimit(calls=1), {"method": "resources/read", "name": "file:///a"}, None),
        (RateLimit(calls=1), {"method": "completion/complete"}, None),
    ],
)
def test_a_limit_counts_what_it_names(
    limit: RateLimit, counted: dict[str, str], passed_over: dict[str, str] | None
) -> None:
    bench = Bench.of(rates(limit))
    assert bench.codes(call(**counted), call(**counted)) == ["ok", "rate_limited"]
    if passed_over is not None:
        passing = {"name": "get_x", **passed_over}
        assert bench.codes(*calls(3, **passing)) == ["ok"] * 3


@pytest.mark.parametrize(
    ("applies", "counted", "passed_over"),
    [
        (AppliesTo(tool="get_*"), {"name": "get_x"}, {"name": "set_x"}),
        (AppliesTo(tool="get_*"), {"name": "get_x"}, {"name": "get_x", "method": "prompts/get"}),
        (AppliesTo(mcp_server="s"), {}, {"server": "t"}),
    ],
)
def test_a_policy_limits_the_calls_it_is_for(
    applies: AppliesTo, counted: dict[str, str], passed_over: dict[str, str]
) -> None:
    bench = Bench.of(rates(RateLimit(calls=1), applies_to=applies))
    assert bench.codes(call(**counted), call(**counted)) == ["ok", "rate_limited"]
    assert bench.codes(*calls(2, **passed_over)) == ["ok", "ok"]


def test_made_up_uris_share_one_bucket() -> None:
    bench = Bench.of(rates(RateLimit(calls=1, per=(Per.TOOL,))))
    read = {"method": "resources/read"}
    assert bench.codes(call("file:///1", **read), call("file:///2", **read)) == [
        "ok",
        "rate_limited",
    ]
    assert len(bench.limits._found) == 1


def test_kars_own_rate_limit_is_for_each_agent() -> None:
    bench = Bench.of(ToolPolicy(name="p", rate_limit=SimpleRate(rps=2, window=2)))
    assert bench.codes(*calls(5)) == ["ok"] * 4 + ["rate_limited"]
    assert bench.codes(call(agent="b")) == ["ok"]
    bench.clock.now += 0.5
    assert bench.codes(*calls(2)) == ["ok", "rate_limited"]


def test_limits_of_the_same_name_count_apart() -> None:
    twice = (RateLimit(name="r", calls=1, tools=("a",)), RateLimit(name="r", calls=1, tools=("b",)))
    bench = Bench.of(rates(*twice), rates(RateLimit(name="r", calls=1, tools=("c",))))
    assert bench.codes(call("a"), call("b"), call("c")) == ["ok"] * 3
    assert bench.codes(call("a"), call("b"), call("c")) == ["rate_limited"] * 3


def test_refused_calls_and_calls_never_made_are_attempts() -> None:
    bench = Bench.of(rates(RateLimit(calls=2)))
    first, second = calls(2)
    assert bench.codes(first, second) == ["ok", "ok"]
    bench.limits.refund(first)
    bench.limits.release(second, ended(Fate.NOT_EXECUTED, None))
    assert bench.codes(call()) == ["rate_limited"]


# --- clocks ------------------------------------------------------------------------------------


def test_a_clock_that_is_set_back_gives_nothing_and_locks_nobody_out() -> None:
    bench = Bench.of(rates(RateLimit(calls=2, window=20)))
    bench.codes(*calls(2))
    bench.clock.now -= 30 * DAY
    assert bench.codes(call()) == ["rate_limited"]
    bench.clock.now += 10
    assert bench.codes(*calls(2)) == ["ok", "rate_limited"]


def test_a_day_does_not_begin_twice_when_the_clock_is_set_back_over_midnight() -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    bench.clock.now = 20_001 * DAY + 1
    assert bench.codes(*calls(2)) == ["ok", "budget_spent"]
    bench.clock.now -= 2
    assert bench.codes(call()) == ["budget_spent"]
    bench.clock.now += 2
    assert bench.codes(call()) == ["budget_spent"]
    bench.clock.now += DAY
    assert bench.codes(call()) == ["ok"]


def test_a_clock_that_was_years_ahead_locks_nobody_out_for_years() -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    bench.clock.now += 10_000 * DAY
    assert bench.codes(call()) == ["ok"]
    bench.clock.now = NOON
    denied = bench.limits.admit(call())
    assert denied is not None
    assert denied.retry_after == pytest.approx(DAY / 2)
    bench.clock.now += DAY
    assert bench.codes(call()) == ["ok"]


# --- concurrency -----------------------------------------------------------------------------


def test_slots_are_taken_while_calls_are_under_way() -> None:
    bench = Bench.of(rates(RateLimit(name="r", concurrency=2)))
    one, two, three = calls(3)
    assert bench.codes(one, two, three) == ["ok", "ok", "too_many_calls"]
    bench.limits.release(one, ended())
    assert bench.codes(three) == ["ok"]


def test_a_slot_is_given_back_once() -> None:
    bench = Bench.of(rates(RateLimit(concurrency=2)))
    one, two = calls(2)
    assert bench.codes(one, two) == ["ok", "ok"]
    bench.limits.refund(one)
    bench.limits.release(one, ended())
    bench.limits.release(one, ended())
    assert bench.codes(*calls(2)) == ["ok", "too_many_calls"]


def test_a_call_that_was_not_let_through_frees_nobody_elses_slot() -> None:
    bench = Bench.of(rates(RateLimit(concurrency=1)))
    one, two = calls(2)
    assert bench.codes(one, two) == ["ok", "too_many_calls"]
    bench.limits.release(two, ended(Fate.NOT_EXECUTED, None))
    assert bench.codes(call()) == ["too_many_calls"]
    bench.limits.release(one, ended())
    assert len(bench.store.slots) == 0


def test_a_call_that_is_asked_about_twice_takes_once() -> None:
    bench = Bench.of(rates(RateLimit(calls=2, concurrency=2)))
    one = call()
    assert bench.codes(one, one, one, call()) == ["ok"] * 4
    assert bench.codes(call()) == ["rate_limited"]


def test_calls_that_began_under_the_old_policy_hold_their_slots_under_the_new_one() -> None:
    policy = rates(RateLimit(name="r", concurrency=1))
    old = Bench.of(policy)
    one = call()
    assert old.codes(one) == ["ok"]
    new = old.reload(policy)
    assert new.codes(call()) == ["too_many_calls"]
    old.limits.release(one, ended())
    assert new.codes(call()) == ["ok"]


# --- budgets ---------------------------------------------------------------------------------


def test_a_budget_of_a_day_begins_anew_at_midnight_utc() -> None:
    bench = Bench.of(budgets(Budget(name="b", calls=1)))
    assert bench.whole(call(), call(agent="b")) == ["ok", "budget_spent"]
    denied = bench.limits.admit(call())
    assert denied is not None
    assert denied.retry_after == pytest.approx(DAY / 2)
    assert denied.reason == (
        "The budget p/b of 1 call for a day is spent;"
        " it begins anew at midnight UTC, in 12 h 0 min."
    )
    bench.clock.now += DAY / 2
    assert bench.whole(call()) == ["ok"]


def test_a_budget_of_a_session_is_the_sessions_own_and_lasts() -> None:
    bench = Bench.of(budgets(Budget(calls=1, period=Period.SESSION)))
    assert bench.whole(call(subject="eve"), call(subject="eve")) == ["ok", "budget_spent"]
    assert bench.whole(call(agent="b", subject="eve")) == ["ok"]
    bench.clock.now += 7 * DAY
    denied = bench.limits.admit(call())
    assert denied is not None
    assert denied.retry_after is None
    assert "session" in denied.reason


@pytest.mark.parametrize("fate", [Fate.EXECUTED, Fate.UNKNOWN])
def test_what_may_have_been_done_is_spent(fate: Fate) -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    assert bench.whole(call(), call(), end=ended(fate, None)) == ["ok", "budget_spent"]


def test_what_was_not_done_is_given_back_once() -> None:
    bench = Bench.of(budgets(Budget(calls=2)))
    one, two, three = calls(3)
    assert bench.codes(one, two, three) == ["ok", "ok", "budget_spent"]
    bench.limits.release(two, ended(Fate.NOT_EXECUTED, None))
    bench.limits.refund(two)
    assert bench.codes(three, call()) == ["ok", "budget_spent"]


def test_yesterdays_call_is_not_given_back_today() -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    late = call()
    assert bench.codes(late) == ["ok"]
    bench.clock.now += DAY
    assert bench.codes(call()) == ["ok"]
    bench.limits.refund(late)
    assert bench.codes(call()) == ["budget_spent"]


def test_the_call_that_goes_beyond_a_budget_of_bytes_is_the_last() -> None:
    bench = Bench.of(budgets(Budget(name="b", result_bytes=2048)))
    big = ended(result=b" " * 2000)
    assert bench.whole(*calls(3), end=big) == ["ok", "ok", "budget_spent"]
    denied = bench.limits.admit(call())
    assert denied is not None
    assert "2KiB of results" in denied.reason


def test_errors_are_counted_like_results() -> None:
    bench = Bench.of(budgets(Budget(result_bytes=1024)))
    assert bench.whole(*calls(2), end=ended(result=None, error=b" " * 1024)) == [
        "ok",
        "budget_spent",
    ]


def test_results_of_calls_that_were_not_let_through_are_not_counted() -> None:
    bench = Bench.of(budgets(Budget(result_bytes=1024)))
    bench.limits.release(call(), ended(result=b" " * 5000))
    assert bench.codes(call()) == ["ok"]


# --- results ---------------------------------------------------------------------------------


def test_a_result_that_is_too_long_is_withheld() -> None:
    bench = Bench.of(
        ToolPolicy(name="p", result_bytes=1024), ToolPolicy(name="q", result_bytes=9999)
    )
    one = call()
    bench.codes(one)
    assert bench.limits.release(one, ended(result=b" " * 1024)) is None
    denied = bench.limits.release(one, ended(result=b" " * 1025))
    assert denied is not None
    assert (denied.ruling, denied.code) == (Ruling.DENY, "result_too_long")
    assert "1025 bytes" in denied.reason
    assert "1KiB" in denied.reason
    assert denied.rule == "p/resultBytes"


# --- reload ----------------------------------------------------------------------------------


def test_the_same_names_go_on_from_what_was_counted_wherever_they_stand() -> None:
    one, two = RateLimit(name="one", calls=1), RateLimit(name="two", calls=9)
    bench = Bench.of(rates(one, two))
    assert bench.codes(call()) == ["ok"]
    assert bench.reload(rates(two, one)).codes(call()) == ["rate_limited"]
    assert bench.reload(rates(evolve(one, name="new"), two)).codes(call()) == ["ok"]


def test_what_was_taken_of_a_limit_stays_taken_when_its_size_changes() -> None:
    bench = Bench.of(rates(RateLimit(name="r", calls=10, window=1000)))
    assert bench.codes(*calls(8)) == ["ok"] * 8
    wider = bench.reload(rates(RateLimit(name="r", calls=12, window=1000)))
    assert wider.codes(*calls(5)) == ["ok"] * 4 + ["rate_limited"]
    narrower = bench.reload(rates(RateLimit(name="r", calls=2, window=20)))
    assert narrower.codes(call()) == ["rate_limited"]
    bench.clock.now += 10  # no debt beyond the smaller bucket
    assert narrower.codes(*calls(2)) == ["ok", "rate_limited"]


# --- calls of several rounds -------------------------------------------------------------------

QUESTION = ended(result=b'{"resultType":"input_required","requestState":"x"}')


def round_of(arguments: dict[str, Any], **changes: Any) -> GovernedCall:
    params = {"name": "tool", "arguments": arguments, "requestState": "x", **changes}
    return call(arguments=arguments, params=json.dumps(params).encode())


def test_further_rounds_of_a_call_are_no_further_calls() -> None:
    bench = Bench.of(budgets(Budget(calls=1), rate_limits=(RateLimit(calls=1),)))
    assert bench.whole(call(arguments={"a": 1, "b": 2}), end=QUESTION) == ["ok"]
    assert bench.whole(round_of({"b": 2, "a": 1}), end=QUESTION) == ["ok"]
    assert bench.whole(round_of({"a": 1, "b": 2})) == ["ok"]
    assert bench.whole(round_of({"a": 1, "b": 2})) == ["budget_spent"]


def test_a_round_that_nobody_asked_for_is_a_call() -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    assert bench.whole(round_of({"a": 1}), round_of({"a": 1})) == ["ok", "budget_spent"]


@pytest.mark.parametrize(
    "other",
    [
        round_of({"a": 2}),
        evolve(round_of({"a": 1}), agent="b"),
        evolve(round_of({"a": 1}), server="t"),
        evolve(round_of({"a": 1}), name="other"),
        call(arguments={"a": 1}),  # begins anew rather than going on
        call(arguments={"a": 1}, params=b'{"arguments":{"a":"requestState"}}'),
    ],
)
def test_a_question_is_good_for_the_call_that_it_was_asked_of(other: GovernedCall) -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    assert bench.whole(call(arguments={"a": 1}), end=QUESTION) == ["ok"]
    assert bench.whole(other) == ["budget_spent"]
    assert bench.whole(round_of({"a": 1})) == ["ok"]


def test_a_round_that_was_not_made_may_come_again() -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    assert bench.whole(call(arguments={}), end=QUESTION) == ["ok"]
    assert bench.whole(round_of({}), end=ended(Fate.NOT_EXECUTED, None)) == ["ok"]
    assert bench.whole(round_of({}), round_of({})) == ["ok", "budget_spent"]


def test_a_question_that_nobody_answered_in_an_hour_is_forgotten() -> None:
    bench = Bench.of(budgets(Budget(calls=1)))
    bench.whole(call(arguments={}), end=QUESTION)
    bench.clock.now += 3601
    assert bench.whole(round_of({})) == ["budget_spent"]


def test_only_so_many_questions_are_remembered() -> None:
    rounds = Rounds()
    for number in range(MOST_ROUNDS + 1):
        rounds.expect((str(number),), 10.0)
    assert not rounds.expected(("0",), 0.0)
    assert rounds.expected((str(MOST_ROUNDS),), 0.0)
