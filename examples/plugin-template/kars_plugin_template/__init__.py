"""A kars-router plugin that keeps servers read-only. A template: copy it, and change what it says.

The entry point in `pyproject.toml` names `plugin`; its methods marked `@hookimpl` are the hooks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define, frozen

from kars_router.errors import PluginError
from kars_router.hookspecs import Governor, hookimpl
from kars_router.model import CallEnd, Decision, GovernedCall, Ruling, ServerInfo


@frozen
class ReadOnlyGovernor:
    """Denies calls of tools that do not say of themselves that they only read.

    Attributes:
        servers: names of the servers that are read-only.
    """

    servers: frozenset[str]

    async def before_call(self, call: GovernedCall) -> Decision | None:
        """Decides on one call; None is no opinion.

        The reason goes to the model, so it says what to do instead, and quotes no arguments.
        """
        if call.server not in self.servers or call.method != "tools/call":
            return None
        if call.annotations.get("readOnlyHint") is True:
            return None
        return Decision(
            ruling=Ruling.DENY,
            rule="read-only",
            reason=f"The server {call.server} is read-only here; use a tool that changes nothing.",
        )

    async def after_call(self, call: GovernedCall, end: CallEnd) -> Decision | None:
        """Sees how the call ended; a `deny` would withhold its result."""
        return None

    async def aclose(self) -> None:
        """Has nothing to write down."""


@define(eq=False)
class ReadOnlyPlugin:
    """Keeps the servers that its option `servers` names read-only; without it, does nothing."""

    servers: frozenset[str] = frozenset()

    @hookimpl
    def kars_configure(self, options: Mapping[str, Any]) -> None:
        """Takes `plugins.options.template`: the first hook that is called, and only once.

        Raises:
            PluginError: an option is unknown, or `servers` is no list of names. The router then
                does not start, and says this sentence.
        """
        for name in options:
            if name != "servers":
                raise PluginError(f"unknown option `{name}`; there is only `servers`")
        names = options.get("servers", ())
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            raise PluginError("option `servers` must be a list of server names")
        self.servers = frozenset(names)

    @hookimpl
    def kars_governors(self) -> Sequence[Governor]:
        """Makes the governor. A hook may leave out arguments that it does not need."""
        return [ReadOnlyGovernor(self.servers)] if self.servers else []

    @hookimpl
    def kars_admit_tool(self, server: ServerInfo, definition: Mapping[str, Any]) -> bool | None:
        """Hides the same tools, so that models do not try them. None is no opinion."""
        if server.name not in self.servers:
            return None
        hints = definition.get("annotations")
        reads = isinstance(hints, Mapping) and hints.get("readOnlyHint") is True
        return None if reads else False


plugin = ReadOnlyPlugin()
