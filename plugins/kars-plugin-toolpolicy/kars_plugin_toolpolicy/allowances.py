"""The limits of policies, made ready: what each bounds, for whom, and how its denial is told.

Pure. Owns names and sentences; must not know what was counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from attrs import evolve, frozen

from kars_plugin_toolpolicy.buckets import Bucket, bucket, simple_bucket
from kars_plugin_toolpolicy.budgets import Spent, ends
from kars_plugin_toolpolicy.scopes import Scope
from kars_router.config.toolpolicy import Budget, Per, Period, RateLimit, ToolPolicy
from kars_router.config.units import format_duration, format_size
from kars_router.model import Decision, Ruling

RATE_LIMITED: Final = "rate_limited"
TOO_MANY_CALLS: Final = "too_many_calls"
BUDGET_SPENT: Final = "budget_spent"
RESULT_TOO_LONG: Final = "result_too_long"

# When a slot becomes free is not known; asking again this soon costs little.
SLOT_RETRY: Final = 1.0


@frozen(kw_only=True)
class Rate:
    """How often."""

    scope: Scope
    bucket: Bucket
    says: str

    def refusal(self, wait: float) -> Decision:
        """The denial of a call that comes too early by `wait` seconds."""
        return _denial(
            RATE_LIMITED,
            self.scope,
            f"The limit {self.scope.rule} lets {self.says} through; try again in {spoken(wait)}.",
            wait,
        )


@frozen(kw_only=True)
class Concurrency:
    """How many at once."""

    scope: Scope
    bound: int

    def refusal(self) -> Decision:
        """The denial of one call too many."""
        return _denial(
            TOO_MANY_CALLS,
            self.scope,
            f"The limit {self.scope.rule} lets {_calls(self.bound)} be under way at once;"
            " try again when an earlier one has ended.",
            SLOT_RETRY,
        )


@frozen(kw_only=True)
class Allowance:
    """How much in all: one side of a budget."""

    scope: Scope
    bound: int
    of_bytes: bool
    period: Period

    def refusal(self, spent: Spent, now: float) -> Decision:
        """The denial of a call for which nothing is left."""
        much = f"{_size(self.bound)} of results" if self.of_bytes else _calls(self.bound)
        if self.period is Period.SESSION:
            return _denial(
                BUDGET_SPENT,
                self.scope,
                f"The budget {self.scope.rule} of {much} for a session is spent;"
                " do not make this call again in this session.",
                None,
            )
        wait = max(1.0, ends(spent.day) - now)
        return _denial(
            BUDGET_SPENT,
            self.scope,
            f"The budget {self.scope.rule} of {much} for a day is spent;"
            f" it begins anew at midnight UTC, in {spoken(wait)}.",
            wait,
        )


@frozen(kw_only=True)
class Length:
    """How long a result."""

    scope: Scope
    bound: int

    def refusal(self, size: int) -> Decision:
        """The denial of a result."""
        return _denial(
            RESULT_TOO_LONG,
            self.scope,
            f"The call was made, and its result of {size} bytes withheld: {self.scope.rule} lets"
            f" {_size(self.bound)} through. Ask for less, if the tool can give less.",
            None,
        )


Limit = Rate | Concurrency | Allowance | Length


def limits_of(policies: Sequence[ToolPolicy]) -> Iterator[Limit]:
    """The limits of policies, each under a name of its own.

    A second one of the same name gets a number, so that no two count in one place.
    """
    taken: set[str] = set()
    for place, policy in enumerate(policies):
        name = policy.name or f"policies[{place}]"
        for limit in _limits_of(policy, name):
            scope, again = limit.scope, 1
            while f"{scope.kind} {scope.rule}" in taken:
                again += 1
                scope = evolve(limit.scope, limit=f"{limit.scope.limit}#{again}")
            taken.add(f"{scope.kind} {scope.rule}")
            yield evolve(limit, scope=scope)


def worst(refusals: Sequence[Decision]) -> Decision:
    """The refusal that lasts longest, with the reasons of the others as notes."""
    first = max(
        refusals, key=lambda each: math.inf if each.retry_after is None else each.retry_after
    )
    return evolve(first, notes=tuple(each.reason for each in refusals if each is not first))


def spoken(seconds: float) -> str:
    """A wait as a person says it, rounded up."""
    whole = math.ceil(round(seconds, 3))
    if whole < 120:
        return f"{whole} s"
    minutes = math.ceil(whole / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _limits_of(policy: ToolPolicy, name: str) -> Iterator[Limit]:
    applies = policy.applies_to
    base = Scope(
        kind="length",
        policy=name,
        limit="resultBytes",
        servers=((applies.mcp_server,),),
        tools=((applies.tool,),),
    )
    if policy.result_bytes is not None:
        yield Length(scope=base, bound=policy.result_bytes)
    simple = policy.rate_limit
    if simple is not None:
        scope = evolve(base, kind="rate", limit="rateLimit", per=frozenset({Per.AGENT}))
        measures = simple_bucket(simple.rps, simple.window, simple.burst)
        yield Rate(scope=scope, bucket=measures, says=f"{_calls(simple.rps)} a second")
    for place, rate in enumerate(policy.rate_limits):
        yield from _rates(rate, _narrowed(base, rate, rate.name or f"rateLimits[{place}]"))
    for place, budget in enumerate(policy.budgets):
        yield from _budgets(budget, _narrowed(base, budget, budget.name or f"budgets[{place}]"))


def _narrowed(base: Scope, limit: RateLimit | Budget, name: str) -> Scope:
    return evolve(
        base,
        limit=name,
        servers=(*base.servers, limit.servers),
        tools=(*base.tools, limit.tools),
        per=frozenset(limit.per),
    )


def _rates(limit: RateLimit, scope: Scope) -> Iterator[Limit]:
    if limit.calls is not None:
        measures = bucket(limit.calls, limit.window, limit.burst)
        says = f"{_calls(limit.calls)} in {format_duration(limit.window)}"
        yield Rate(scope=evolve(scope, kind="rate"), bucket=measures, says=says)
    if limit.concurrency is not None:
        yield Concurrency(scope=evolve(scope, kind="slots"), bound=limit.concurrency)


def _budgets(budget: Budget, scope: Scope) -> Iterator[Limit]:
    session = budget.period is Period.SESSION
    for of_bytes, bound in ((False, budget.calls), (True, budget.result_bytes)):
        if bound is not None:
            kind = f"{budget.period}-{'bytes' if of_bytes else 'calls'}"
            yield Allowance(
                scope=evolve(scope, kind=kind, session=session),
                bound=bound,
                of_bytes=of_bytes,
                period=budget.period,
            )


def _calls(count: int) -> str:
    return "1 call" if count == 1 else f"{count} calls"


def _size(size: int) -> str:
    text = format_size(size)
    return text if isinstance(text, str) else f"{text} bytes"


def _denial(code: str, scope: Scope, reason: str, retry_after: float | None) -> Decision:
    return Decision(
        ruling=Ruling.DENY, code=code, rule=scope.rule, reason=reason, retry_after=retry_after
    )
