"""Which rules can be about a call at all, remembered for each tool.

Patterns and annotations give the same answer for every call of a tool, so they are asked once;
conditions and schemas are left for each call. Must not know what rules do.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

from attrs import define, evolve, field, frozen

from kars_plugin_toolpolicy.matching import Subject
from kars_plugin_toolpolicy.rules import Compiled, CompiledPolicy, CompiledRule
from kars_router.config.toolpolicy import Redact
from kars_router.model import GovernedCall

# Servers have hundreds of tools, and may rename them as they like.
_MOST_REMEMBERED: Final = 4096


@frozen
class Shortlist:
    """What is left to be asked of a call.

    Attributes:
        policies: those that are for the call, with those rules that its tool does not rule out.
        redacts: what is to be taken out; None if conditions have a say in it.
    """

    policies: tuple[CompiledPolicy, ...]
    redacts: tuple[Redact, ...] | None


@define(eq=False)
class Shortlists:
    """The short lists of all policies."""

    _compiled: Compiled
    _remembered: dict[Hashable, Shortlist] = field(factory=dict)

    def of(self, call: GovernedCall) -> Shortlist:
        """The short list for a call.

        Raises:
            UnknownKindError: see `Subject.of`.
        """
        if call.method != "tools/call":
            return self._made(Subject.of(call))  # there is no end to URIs
        hints = [(name, hint) for name, hint in call.annotations.items() if isinstance(hint, bool)]
        key = (call.server, call.name, *hints)
        found = self._remembered.get(key)
        if found is None:
            if len(self._remembered) >= _MOST_REMEMBERED:
                self._remembered.clear()
            found = self._remembered[key] = self._made(Subject.of(call))
        return found

    def _made(self, subject: Subject) -> Shortlist:
        policies = tuple(
            evolve(
                policy,
                rules=_left(policy.rules, subject),
                redactions=_left(policy.redactions, subject),
            )
            for policy in self._compiled.policies
            if policy.scope.holds(subject)
        )
        redactions = [rule for policy in policies for rule in policy.redactions]
        redacts = tuple(rule.redact for rule in redactions if rule.redact is not None)
        conditional = any(rule.condition is not None for rule in redactions)
        return Shortlist(policies, None if conditional else redacts)


def _left(rules: tuple[CompiledRule, ...], subject: Subject) -> tuple[CompiledRule, ...]:
    return tuple(rule for rule in rules if rule.mismatch(subject) is None)
