"""The hooks: remembers one page per upstream session and asks `page` about each result.

Owns the options and the memory of sessions. Must not know how results are written or what the
router does with a loss.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
from attrs import define, field

from kars_plugin_playwright.page import Memory, judge
from kars_router.errors import PluginError
from kars_router.hookspecs import hookimpl
from kars_router.model import SessionInfo, ToolCall

# Far more than a pod has sessions; only a session whose end was never reported could add up.
MAX_SESSIONS: Final = 1024

_TOOL_PREFIX: Final = "browser_"


@define(eq=False)
class PlaywrightPlugin:
    """Reports a browser that was closed behind the agent's back as a loss of state.

    Attributes:
        servers: names of the servers it looks at; None for all. Tools whose names do not begin
            with `browser_` are passed over on any server.
        clock: seconds that only go forward.
    """

    servers: frozenset[str] | None = None
    clock: Callable[[], float] = time.monotonic
    _memories: OrderedDict[str, Memory] = field(factory=OrderedDict, init=False)

    @hookimpl
    def kars_configure(self, options: Mapping[str, Any]) -> None:
        """Takes `plugins.options.playwright`.

        Args:
            options: `servers`, a list of server names, or nothing.

        Raises:
            PluginError: an option is unknown, or `servers` is no list of names.
        """
        self.servers = _servers(options)

    @hookimpl
    def kars_detect_state_loss(
        self, call: ToolCall, session: SessionInfo, result: Mapping[str, Any]
    ) -> str | None:
        """Says that the page is gone, if the result shows it and the call does not explain it.

        Args:
            call: the call.
            session: the session that answered; each has a memory of its own.
            result: the decoded result.

        Returns:
            one clause without any address in it, since it is also logged; or None.
        """
        if not call.tool.startswith(_TOOL_PREFIX):
            return None
        if self.servers is not None and session.server not in self.servers:
            return None
        before = self._memories.pop(session.key, Memory())
        arguments = _arguments(call.params)
        after, lost = judge(before, call.tool, arguments, result, now=self.clock())
        self._memories[session.key] = after
        if len(self._memories) > MAX_SESSIONS:
            self._memories.popitem(last=False)
        return lost

    @hookimpl
    def kars_session_closed(self, session: SessionInfo) -> None:
        """Forgets the session."""
        self._memories.pop(session.key, None)


def _servers(options: Mapping[str, Any]) -> frozenset[str] | None:
    unknown = sorted(str(name) for name in options if name != "servers")
    if unknown:
        raise PluginError(f"unknown option `{unknown[0]}`; there is only `servers`")
    names = options.get("servers")
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, list | tuple):
        raise PluginError("option `servers` must be a list of server names")
    if not all(isinstance(name, str) for name in names):
        raise PluginError("every entry of option `servers` must be a server's name")
    return frozenset(names)


def _arguments(params: bytes) -> Mapping[str, Any]:
    try:
        decoded = msgspec.json.decode(params)
    except msgspec.DecodeError:
        return {}
    arguments = decoded.get("arguments") if isinstance(decoded, dict) else None
    return arguments if isinstance(arguments, dict) else {}
