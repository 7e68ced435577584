"""Rules and policies, compiled, with every mistake that only a compiler finds.

Owns the order in which rules are asked and their names in decisions. Must not decide anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from attrs import define, evolve, field, frozen

from kars_plugin_toolpolicy.conditions import Condition, ConditionError
from kars_plugin_toolpolicy.expressions import Expression, ExpressionError
from kars_plugin_toolpolicy.matching import Matcher, Scope, Subject
from kars_plugin_toolpolicy.profile import Line, Profile, read_profile
from kars_plugin_toolpolicy.schemas import Schema, SchemaError
from kars_router.config.problems import InvalidConfigError, Path, Problem
from kars_router.config.toolpolicy import (
    Approval,
    ApprovalMode,
    Channel,
    Effect,
    Redact,
    Rule,
    ToolPolicy,
)
from kars_router.model import ApprovalTerms, Ruling

_USUAL: Final = ApprovalTerms()
_RULINGS: Final = {
    Effect.ALLOW: Ruling.ALLOW,
    Effect.APPROVE: Ruling.APPROVE,
    Effect.DENY: Ruling.DENY,
}


@frozen(kw_only=True)
class CompiledRule:
    """One rule, or one line of a profile.

    Attributes:
        name: with its policy's, as it is shown in decisions.
        priority: higher ones are asked first.
        ruling: what it says of the calls that it matches; None for one that redacts.
        mismatch: says what does not fit about a call, or None if all fits.
        condition: what must be true besides.
        schema: what the arguments must satisfy.
        reason: a sentence for the model; "" for the usual one.
        terms: on which calls are held.
        redact: what is taken out.
    """

    name: str
    priority: int
    ruling: Ruling | None
    mismatch: Callable[[Subject], str | None]
    condition: Condition | None = None
    schema: Schema | None = None
    reason: str = ""
    terms: ApprovalTerms = _USUAL
    redact: Redact | None = None


@frozen(kw_only=True)
class CompiledPolicy:
    """One policy.

    Attributes:
        name: as it is shown in decisions.
        scope: which calls it is for.
        default: what it says of calls that no rule matches.
        always_approve: whether every call that it does not deny is held.
        rules: those that decide, in the order in which they are asked.
        redactions: those that redact.
        notes: what in it has no meaning here.
    """

    name: str
    scope: Scope
    default: Ruling
    always_approve: bool
    rules: tuple[CompiledRule, ...]
    redactions: tuple[CompiledRule, ...]
    notes: tuple[str, ...] = ()


@frozen(kw_only=True)
class Compiled:
    """All policies.

    Attributes:
        policies: compiled, in their order.
        settings: as they were configured, with the limits of their profiles added.
    """

    policies: tuple[CompiledPolicy, ...]
    settings: tuple[ToolPolicy, ...]


def compile_policies(policies: Sequence[ToolPolicy]) -> Compiled:
    """Compiles policies.

    Args:
        policies: as the configuration has them.

    Raises:
        ConfigError: with every mistake, its path from `policies` on.
    """
    compiler = _Compiler()
    compiled, settings = [], []
    for index, policy in enumerate(policies):
        profile = compiler.profile(policy, ("policies", index))
        compiled.append(compiler.policy(policy, profile, index))
        settings.append(evolve(policy, rate_limits=(*policy.rate_limits, *profile.limits)))
    if compiler.problems:
        raise InvalidConfigError(compiler.problems)
    return Compiled(policies=tuple(compiled), settings=tuple(settings))


@define
class _Compiler:
    """Compiles, and goes on after a mistake to find the others."""

    problems: list[Problem] = field(factory=list)

    def profile(self, policy: ToolPolicy, path: Path) -> Profile:
        if policy.agt_profile is None:
            return Profile()
        profile = read_profile(policy.agt_profile.inline)
        self.problems += [each.under(*path, "agtProfile", "inline") for each in profile.problems]
        return profile

    def policy(self, policy: ToolPolicy, profile: Profile, index: int) -> CompiledPolicy:
        name = policy.name or f"policies[{index}]"
        every = [
            self._rule(
                rule, rule.name or f"rules[{place}]", name, ("policies", index, "rules", place)
            )
            for place, rule in enumerate(policy.rules)
        ]
        lines = [_line(line, name) for line in profile.lines]
        deciding = [each for each in every if each.redact is None] + lines
        return CompiledPolicy(
            name=name,
            scope=Scope.of(policy.applies_to),
            default=Ruling(policy.default.value),
            always_approve=policy.approval.mode is ApprovalMode.ALWAYS,
            rules=tuple(sorted(deciding, key=lambda each: -each.priority)),
            redactions=tuple(each for each in every if each.redact is not None),
            notes=tuple(f"{name}/agtProfile: {note}" for note in profile.notes),
        )

    def _rule(self, rule: Rule, name: str, policy: str, path: Path) -> CompiledRule:
        ruling = _RULINGS.get(rule.effect)
        matcher = Matcher.of(rule, permits=ruling is Ruling.ALLOW)
        self._expressions(rule.redact, path)
        return CompiledRule(
            name=f"{policy}/{name}",
            priority=rule.priority,
            ruling=ruling,
            mismatch=matcher.mismatch,
            condition=self._condition(rule.when, path),
            schema=self._schema(rule.arguments, path),
            reason=rule.reason or "",
            terms=_terms(rule.approval),
            redact=rule.redact if ruling is None else None,
        )

    def _expressions(self, redact: Redact, path: Path) -> None:
        for index, source in enumerate(redact.expressions):
            try:
                Expression.compile(source)
            except ExpressionError as error:
                place = (*path, "redact", "expressions", index)
                self.problems.append(Problem(place, str(error)))

    def _condition(self, source: str | None, path: Path) -> Condition | None:
        if source is None:
            return None
        try:
            return Condition.compile(source)
        except ConditionError as error:
            self.problems.append(Problem((*path, "when"), str(error)))
            return None

    def _schema(self, schema: object, path: Path) -> Schema | None:
        if schema is None:
            return None
        try:
            return Schema.compile(schema)
        except SchemaError as error:
            self.problems.append(Problem((*path, "arguments", *error.path), str(error)))
            return None


def _line(line: Line, policy: str) -> CompiledRule:
    return CompiledRule(
        name=f"{policy}/agtProfile/{line.name}",
        priority=line.priority,
        ruling=line.ruling,
        mismatch=partial(_other_actions, line),
    )


def _other_actions(line: Line, subject: Subject) -> str | None:
    return None if line.actions.hold(subject) else "it is for other actions"


def _terms(approval: Approval) -> ApprovalTerms:
    return ApprovalTerms(
        expires=approval.expires,
        operator=Channel.OPERATOR in approval.via,
        elicitation=Channel.ELICITATION in approval.via,
    )
