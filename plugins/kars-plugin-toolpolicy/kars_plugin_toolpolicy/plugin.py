"""The hooks: makes governor and transformer for the policies in force.

Owns what outlives a change of policies, which is the store of what limits count. Must not know
what policies mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from attrs import define, field

from kars_plugin_toolpolicy.engine import Engine
from kars_plugin_toolpolicy.governor import PolicyGovernor
from kars_plugin_toolpolicy.limits import Limits
from kars_plugin_toolpolicy.redaction import Redactor
from kars_plugin_toolpolicy.store import Store
from kars_router.hookspecs import GovernanceSettings, Governor, Transformer, hookimpl

STORE: Final = "toolpolicy.sqlite"


@define(eq=False)
class ToolPolicyPlugin:
    """Enforces `policies`."""

    _engine: Engine | None = field(default=None, init=False)
    _policies: tuple[object, ...] = field(default=(), init=False)
    _store: Store | None = field(default=None, init=False)
    _state: Path | None = field(default=None, init=False)

    @hookimpl
    def kars_governors(self, settings: GovernanceSettings) -> Sequence[Governor]:
        """One governor for all policies; none if there are none.

        Raises:
            ConfigError: a condition, a schema or a profile cannot be used.
            PluginError: the store cannot be opened.
        """
        if not settings.policies:
            return ()
        engine = self._compiled(settings)
        limits = Limits(engine.settings, self._opened(settings.state))
        return (PolicyGovernor(engine, limits),)

    @hookimpl
    def kars_transformers(self, settings: GovernanceSettings) -> Sequence[Transformer]:
        """The one that redacts, if any rule does.

        Raises:
            ConfigError: a condition, a schema or a profile cannot be used.
        """
        engine = self._compiled(settings)
        return (Redactor(engine.matching),) if engine.redacts else ()

    def close(self) -> None:
        """Closes the store; a later call of a hook opens it again. Nothing the second time."""
        if self._store is not None:
            self._store.close()
            self._store = None

    def _compiled(self, settings: GovernanceSettings) -> Engine:
        # Asked by each of the two hooks; compiling is not for nothing.
        policies = tuple(settings.policies)
        if self._engine is None or policies != self._policies:
            self._engine, self._policies = Engine.of(policies), policies
        return self._engine

    def _opened(self, state: Path | None) -> Store:
        if self._store is None or state != self._state:
            self.close()
            self._store, self._state = Store.open(state and state / STORE), state
        return self._store
