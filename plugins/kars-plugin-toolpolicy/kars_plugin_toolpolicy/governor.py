"""The governor: rules first, then limits.

Owns that order: what rules deny costs nothing of a limit. Must not know how either of them works.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import attrs
from attrs import frozen

from kars_plugin_toolpolicy.engine import Engine
from kars_plugin_toolpolicy.limits import Limits
from kars_router.model import CallEnd, Decision, GovernedCall, Ruling


def _nothing() -> None:
    """What is to be done at the end, unless somebody says otherwise."""


@frozen
class PolicyGovernor:
    """Decides by policies; see `kars_router.hookspecs.Governor`.

    Args:
        engine: the rules.
        limits: the limits.
        closed: called when no call follows.
    """

    # The router refuses policies that no governor says this of.
    enforces_policies: ClassVar[bool] = True

    _engine: Engine
    _limits: Limits
    _closed: Callable[[], None] = _nothing

    async def before_call(self, call: GovernedCall) -> Decision | None:
        """Says what the rules say, unless a limit is reached; no checkpoint."""
        decision = self._engine.decide(call)
        if decision is not None and decision.ruling is Ruling.DENY:
            return decision
        return self._limits.admit(call) or decision

    async def after_call(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        """Gives back what the call held of limits; denies a result that is beyond its bound."""
        return self._limits.release(call, end)

    async def aclose(self) -> None:
        """Writes down what limits have counted, and lets go of the file."""
        self._limits.save()
        self._closed()

    def explain(self, call: GovernedCall) -> Sequence[Mapping[str, Any]]:
        """Says what became of each rule, for `kars policy test`.

        Args:
            call: the call.

        Returns:
            `rule`, `effect`, `matched` (None: not asked, or no answer) and `why` of each, in the
            order of asking; `why` may quote the call.
        """
        return [attrs.asdict(step) for step in self._engine.explain(call)]
