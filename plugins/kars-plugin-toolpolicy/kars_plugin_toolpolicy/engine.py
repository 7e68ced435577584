"""What policies say of a call, by their rules alone.

Pure: the time is the call's own. Owns the order of questions and every sentence that a denial is
told in. Knows neither limits nor budgets, nor how redaction is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from attrs import define, field, frozen

from kars_plugin_toolpolicy.bounds import BUSIEST, Measure, measure
from kars_plugin_toolpolicy.conditions import ConditionFailed
from kars_plugin_toolpolicy.matching import Subject, UnknownKindError
from kars_plugin_toolpolicy.rules import Compiled, CompiledPolicy, CompiledRule, compile_policies
from kars_plugin_toolpolicy.schemas import SchemaFailed
from kars_plugin_toolpolicy.shortlist import Shortlists
from kars_router.config.toolpolicy import Redact, ToolPolicy
from kars_router.model import Decision, GovernedCall, Ruling
from kars_router.policy import fold

NOT_ALLOWED: Final = "No rule of the policy allows this call; do not repeat it as it is."
DENIED: Final = "The policy denies this call; do not repeat it as it is."
HELD: Final = "The policy wants a person to approve this call."
FAILED: Final = (
    "The policy could not be applied to this call, and what is not decided is denied. "
    "Tell the user that the policy has to be looked at."
)


@frozen(kw_only=True)
class Step:
    """What became of one rule.

    Attributes:
        rule: its name, its policy's before it.
        effect: allow, approve, deny or redact.
        matched: whether it matched; None if it could not be said, or was not asked any more.
        why: one clause. It may quote arguments: it is for a person who tests a policy.
    """

    rule: str
    effect: str
    matched: bool | None
    why: str = ""


class _Refused(Exception):
    """A matching rule whose schema the arguments do not satisfy."""

    def __init__(self, places: Sequence[str]) -> None:
        self.places = ", ".join(places)
        super().__init__(self.places)


class _Failed(Exception):
    """A rule that has no answer."""

    def __init__(self, clause: str, detail: str = "") -> None:
        self.clause = clause
        self.detail = detail or clause
        super().__init__(clause)


@define
class _Asked:
    """One call, with what rules want to know of it; looked up when it is first wanted."""

    call: GovernedCall
    _measure: Measure | None = None
    _known: dict[frozenset[str], Any] = field(factory=dict)

    def bound(self, work: int | None = None) -> None:
        """Sees that the arguments are within bounds, before a compiler's code gets them.

        Args:
            work: how much may be done; None where it is in proportion to the arguments.

        Raises:
            _Failed: they are not.
        """
        if self._measure is None:
            self._measure = measure(self.call.arguments, self.call.params)
        if self._measure.beyond:
            raise _Failed(self._measure.beyond)
        if work is not None and self._measure.work > work:
            raise _Failed("the arguments are too large for a loop over them")

    def mismatch(self, rule: CompiledRule) -> str | None:
        """Says why a rule of the short list is not about the call, or None if it is.

        Raises:
            _Failed: its condition has no answer.
        """
        condition = rule.condition
        if condition is None:
            return None
        if condition.reads_arguments:
            self.bound(BUSIEST if condition.loops else None)
        try:
            holds = condition.holds(self.call, self._known)
        except ConditionFailed as error:
            raise _Failed(f"its condition failed: {error.clause}", error.detail) from None
        return None if holds else "its condition is not true"

    def fit(self, rule: CompiledRule) -> None:
        """Holds the arguments against a rule's schema.

        Raises:
            _Refused: they do not fit.
            _Failed: they cannot be held against it.
        """
        if rule.schema is None:
            return
        self.bound()
        try:
            places = rule.schema.misfits(self.call.arguments)
        except SchemaFailed:
            raise _Failed("the arguments cannot be held against its schema") from None
        if places:
            raise _Refused(places)


@frozen
class Engine:
    """Policies in force."""

    _compiled: Compiled
    _shortlists: Shortlists

    @classmethod
    def of(cls, policies: Sequence[ToolPolicy]) -> Engine:
        """Compiles policies.

        Raises:
            ConfigError: with every mistake, its path from `policies` on.
        """
        compiled = compile_policies(policies)
        return cls(compiled, Shortlists(compiled))

    @property
    def settings(self) -> tuple[ToolPolicy, ...]:
        """The policies as configured, with the rate limits of their profiles among their own."""
        return self._compiled.settings

    @property
    def redacts(self) -> bool:
        """Whether any rule redacts."""
        return any(policy.redactions for policy in self._compiled.policies)

    def decide(self, call: GovernedCall) -> Decision | None:
        """What the policies say of a call.

        Returns:
            the strictest of what they say, or None if none of them is for it. Never raises.
        """
        try:
            policies = self._shortlists.of(call).policies
        except UnknownKindError:
            return _broken("", "it is not known what the request is for")
        asked = _Asked(call)
        said = [_judge(each, asked) for each in policies]
        return said[0] if len(said) == 1 else fold(said) if said else None

    def matching(self, call: GovernedCall) -> tuple[Redact, ...]:
        """What is to be taken out of a call and its results.

        Returns:
            the terms of every matching `redact`, in their order. A condition without an answer is
            taken as true: better too little is seen than too much. For what a server says outside
            of any call, those of every policy that is for the server.
        """
        try:
            shortlist = self._shortlists.of(call)
        except UnknownKindError:
            return tuple(
                rule.redact
                for policy in self._compiled.policies
                for rule in policy.redactions
                if rule.redact is not None and policy.scope.serves(call.server)
            )
        if shortlist.redacts is not None:
            return shortlist.redacts
        asked = _Asked(call)
        return tuple(
            rule.redact
            for policy in shortlist.policies
            for rule in policy.redactions
            if rule.redact is not None and _may_match(rule, asked)
        )

    def explain(self, call: GovernedCall) -> list[Step]:
        """What becomes of each rule of each policy that is for a call, in the order of asking."""
        try:
            subject = Subject.of(call)
        except UnknownKindError:
            return []
        asked = _Asked(call)
        steps: list[Step] = []
        for policy in self._compiled.policies:
            if policy.scope.holds(subject):
                steps += _explain(policy, asked, subject)
            else:
                steps.append(Step(rule=policy.name, effect="", matched=False, why="is for others"))
            steps += [Step(rule=policy.name, effect="", matched=None, why=n) for n in policy.notes]
        return steps


def _judge(policy: CompiledPolicy, asked: _Asked) -> Decision:
    decision = _first(policy, asked)
    if decision.ruling is Ruling.ALLOW and policy.always_approve:
        decision = Decision(ruling=Ruling.APPROVE, reason=HELD, rule=f"{policy.name}/approval")
    if decision.ruling is not Ruling.DENY:
        for rule in policy.redactions:
            try:
                asked.mismatch(rule)
            except _Failed as error:
                return _broken(rule.name, error.clause)
    return decision


def _first(policy: CompiledPolicy, asked: _Asked) -> Decision:
    for rule in policy.rules:
        try:
            if asked.mismatch(rule) is None:
                asked.fit(rule)
                return _ruled(rule)
        except _Failed as error:
            return _broken(rule.name, error.clause)
        except _Refused as error:
            return _refused(rule, error.places)
    return _default(policy)


def _ruled(rule: CompiledRule) -> Decision:
    match rule.ruling:
        case Ruling.ALLOW:
            return Decision(ruling=Ruling.ALLOW, code="ok", rule=rule.name, reason=rule.reason)
        case Ruling.APPROVE:
            reason = rule.reason or HELD
            return Decision(ruling=Ruling.APPROVE, reason=reason, rule=rule.name, terms=rule.terms)
        case _:
            return Decision(ruling=Ruling.DENY, reason=rule.reason or DENIED, rule=rule.name)


def _default(policy: CompiledPolicy) -> Decision:
    name = f"{policy.name}/default"
    match policy.default:
        case Ruling.ALLOW:
            return Decision(ruling=Ruling.ALLOW, code="ok", rule=name)
        case Ruling.APPROVE:
            return Decision(ruling=Ruling.APPROVE, reason=HELD, rule=name)
        case _:
            return Decision(ruling=Ruling.DENY, reason=NOT_ALLOWED, rule=name)


def _refused(rule: CompiledRule, places: str) -> Decision:
    sentence = (
        f"The policy allows this call with other arguments only; what does not fit: {places}."
    )
    return Decision(
        ruling=Ruling.DENY,
        code="arguments_refused",
        reason=f"{sentence} {rule.reason}".rstrip(),
        rule=rule.name,
    )


def _broken(rule: str, clause: str) -> Decision:
    note = f"{rule}: {clause}" if rule else clause
    return Decision(
        ruling=Ruling.DENY, code="policy_error", reason=FAILED, rule=rule, notes=(note,)
    )


def _may_match(rule: CompiledRule, asked: _Asked) -> bool:
    try:
        return asked.mismatch(rule) is None
    except _Failed:
        return True


def _explain(policy: CompiledPolicy, asked: _Asked, subject: Subject) -> Iterator[Step]:
    decided = False
    for rule in policy.rules:
        effect = str(rule.ruling)
        if decided:
            why = "not asked: the call was decided before"
            yield Step(rule=rule.name, effect=effect, matched=None, why=why)
            continue
        matched, why = _found(rule, asked, subject)
        decided = matched is not False
        yield Step(rule=rule.name, effect=effect, matched=matched, why=why)
    if not decided:
        why = "no rule matched"
        yield Step(rule=f"{policy.name}/default", effect=str(policy.default), matched=True, why=why)
    if policy.always_approve:
        why = "every call of this policy is held"
        yield Step(rule=f"{policy.name}/approval", effect="approve", matched=True, why=why)
    for rule in policy.redactions:
        matched, why = _found(rule, asked, subject)
        yield Step(rule=rule.name, effect="redact", matched=matched, why=why)


def _found(rule: CompiledRule, asked: _Asked, subject: Subject) -> tuple[bool | None, str]:
    try:
        other = rule.mismatch(subject) or asked.mismatch(rule)
        if other is not None:
            return False, other
        asked.fit(rule)
    except _Failed as error:
        more = "" if error.detail == error.clause else f" ({error.detail})"
        return None, f"{error.clause}{more}"
    except _Refused as error:
        return True, f"the arguments do not fit its schema: {error.places}"
    return True, ""
