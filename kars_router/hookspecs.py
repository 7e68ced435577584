"""Every hook that a plugin may implement, typed and documented.

Hooks are synchronous and quick; whatever has to wait is an object that a hook hands over and that
the router awaits with a deadline. Implementations are called one by one, the ones of installed
plugins before the built-in ones, so that a plugin which raises silences nobody else. Imports
types only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

import pluggy

if TYPE_CHECKING:
    from kars_router.model import Failure, LossVerdict, ServerInfo, SessionInfo, ToolCall

PROJECT: Final = "kars_router"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Credentials(Protocol):
    """Supplies the headers that authenticate the router to one server."""

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        """The headers to send.

        Args:
            refresh: True after the server refused the previous ones; fetch them anew.

        Returns:
            header names and values; secrets, never logged.

        Raises:
            kars_router.errors.UserError: they cannot be had; names what to change.
        """
        ...


@hookspec
def kars_configure(options: Mapping[str, Any]) -> None:
    """Takes the plugin's own options, once, before any other hook.

    Args:
        options: the mapping at `plugins.options.<plugin name>`, empty if there is none.

    Raises:
        PluginError: an option is unknown or has an impossible value; the message names it.
    """


@hookspec
def kars_classify_loss(failure: Failure) -> LossVerdict | None:
    """Says whether a failure means that the upstream session is gone.

    The first verdict counts; the built-in classifier is asked last. A wrong "lost" costs the
    agent its state, a wrong "not lost" leaves it on a dead session.

    Args:
        failure: phase, status, start of the body, JSON-RPC code, whether a session id was sent.

    Returns:
        a verdict with its reason, or None for no opinion.
    """


@hookspec
def kars_admit_tool(server: ServerInfo, tool: str, definition: Mapping[str, Any]) -> bool | None:
    """Says whether a server's tool may be seen and called at all.

    A tool is admitted when at least one implementation says True and none says False; an
    implementation that raises counts as False (fail closed).

    Args:
        server: the server that offers the tool.
        tool: the tool's name on that server.
        definition: its definition as the server sent it; untrusted.

    Returns:
        True, False, or None for no opinion.
    """


@hookspec
def kars_credentials(server: ServerInfo) -> Credentials | None:
    """Hands over the object that authenticates the router to a server.

    The first object counts; the built-in one, asked last, serves `bearerFromEnv` and
    `bearerFromFile`.

    Args:
        server: the server.

    Returns:
        the credentials, or None if this plugin has none for it.
    """


@hookspec
def kars_detect_state_loss(
    call: ToolCall, session: SessionInfo, result: Mapping[str, Any]
) -> str | None:
    """Says that a server silently lost its state, judging by a result that looks successful.

    Called for each answered tools/call whose result is at most 256 KiB. The agent is then told as
    if the session had been lost.

    Args:
        call: the call.
        session: the session that answered.
        result: the decoded result; untrusted; must not be changed.

    Returns:
        one clause that says what was lost, or None.
    """


@hookspec
def kars_session_opened(session: SessionInfo) -> None:
    """Takes note of a new upstream session, after its handshake.

    Args:
        session: the session.
    """


@hookspec
def kars_session_closed(session: SessionInfo, reason: str) -> None:
    """Takes note of the end of an upstream session, however it came.

    Args:
        session: the session.
        reason: one clause.
    """
