"""The hooks: makes governor and transformer for the policies in force.

Owns what outlives a change of policies, which is the store of what limits count. Must not know
what policies mean. What knows it is imported once there are policies: with the libraries for
conditions, schemas and patterns it takes 17 MiB, and the plugin is in every image.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from attrs import define, field

from kars_router.hookspecs import GovernanceSettings, Governor, Transformer, hookimpl

if TYPE_CHECKING:
    from kars_plugin_toolpolicy.engine import Engine
    from kars_plugin_toolpolicy.store import Store

STORE: Final = "toolpolicy.sqlite"


@define(eq=False)
class ToolPolicyPlugin:
    """Enforces `policies`."""

    _engine: Engine | None = field(default=None, init=False)
    _policies: tuple[object, ...] = field(default=(), init=False)
    # More than one if routers with directories of their own share a process.
    _stores: dict[Path | None, Store] = field(factory=dict, init=False)
    _users: dict[Path | None, set[object]] = field(factory=dict, init=False)

    @hookimpl
    def kars_governors(self, settings: GovernanceSettings) -> Sequence[Governor]:
        """One governor for all policies; none if there are none.

        Raises:
            ConfigError: a condition, a schema or a profile cannot be used.
            PluginError: the store cannot be opened.
        """
        if not settings.policies:
            return ()
        from kars_plugin_toolpolicy.governor import PolicyGovernor
        from kars_plugin_toolpolicy.limits import Limits

        engine = self._compiled(settings)
        state, user = settings.state, object()
        limits = Limits(engine.settings, self._opened(state))
        self._users.setdefault(state, set()).add(user)
        return (PolicyGovernor(engine, limits, partial(self._let_go, state, user)),)

    @hookimpl
    def kars_transformers(self, settings: GovernanceSettings) -> Sequence[Transformer]:
        """The one that redacts, if any rule does.

        Raises:
            ConfigError: a condition, a schema or a profile cannot be used.
        """
        if not settings.policies:
            return ()
        from kars_plugin_toolpolicy.redaction import Redactor

        engine = self._compiled(settings)
        return (Redactor(engine.matching),) if engine.redacts else ()

    def close(self) -> None:
        """Closes all stores; a later call of a hook opens one again. Nothing the second time."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()
        self._users.clear()

    def _compiled(self, settings: GovernanceSettings) -> Engine:
        # Asked by each of the two hooks; compiling is not for nothing.
        policies = tuple(settings.policies)
        if self._engine is None or policies != self._policies:
            from kars_plugin_toolpolicy.engine import Engine

            self._engine, self._policies = Engine.of(policies), policies
        return self._engine

    def _opened(self, state: Path | None) -> Store:
        store = self._stores.get(state)
        if store is None:
            from kars_plugin_toolpolicy.store import Store

            store = self._stores[state] = Store.open(state and state / STORE)
        return store

    def _let_go(self, state: Path | None, user: object) -> None:
        """Closes a store that no governor uses any more; what is in memory only stays there."""
        users = self._users.get(state, set())
        users.discard(user)
        store = self._stores.get(state)
        if state is not None and store is not None and not users:
            store.close()
            del self._stores[state]
