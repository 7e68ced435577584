"""The exception tree, split by whose fault it is and by how far things had got.

    KarsError
    +-- UserError                a person has to change something: a file, a flag, a variable
    |   +-- ConfigError          one or more problems in a configuration, each with its path
    |   +-- UndeterminedError    the answer could not be found out (network, missing tool)
    |   +-- PluginError          a plugin cannot be loaded, or its options are wrong
    +-- AgentError               the agent's message is wrong; becomes a JSON-RPC error
    +-- UpstreamError            an MCP server, or the way to it, failed
    |   +-- HandshakeError       no session could be set up; nothing of the agent's was sent
    |   +-- CallFailed           one message failed; carries the Failure that `loss` judges
    +-- StoreError               approvals cannot be read or kept
    +-- JournalError             a call cannot be recorded; whoever makes it decides what follows

Pure: knows no I/O, no clock, no environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kars_router.model import Failure


class KarsError(Exception):
    """Everything that this project raises on purpose."""


class UserError(KarsError):
    """A mistake that a person can mend.

    The message is one sentence that names the thing to change; the command line prints it
    without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UndeterminedError(UserError):
    """An answer that could not be found out, for lack of a network or of a tool."""

    exit_code = 3


class ConfigError(UserError):
    """A configuration that was refused.

    Args:
        problems: one `path: sentence` line for each mistake, at least one.
        source: the file (or other origin) that holds them; empty if there is none.
    """

    def __init__(self, problems: Sequence[str], source: str = "") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__("\n".join(self.problems))


class AgentError(KarsError):
    """A message from the agent that cannot be acted on.

    Args:
        code: the JSON-RPC error code.
        message: one sentence for the agent's developer; no upstream detail.
        status: the HTTP status of the answer.
    """

    def __init__(self, code: int, message: str, status: int = 200) -> None:
        self.code = code
        self.message = message
        self.status = status
        super().__init__(message)


class UpstreamError(KarsError):
    """An MCP server, or the way to it, failed.

    Args:
        failure: what happened, as values; never shown to an agent as it is.
    """

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.summary())


class HandshakeError(UpstreamError):
    """No session could be set up."""


class CallFailed(UpstreamError):
    """One message to an established session failed."""


class PluginError(UserError):
    """A plugin that cannot be loaded, or options that it cannot use; names the plugin."""


class StoreError(KarsError):
    """Approvals could not be read or kept; the message is one clause that says why."""


class JournalError(KarsError):
    """A record could not be written; the message is one clause that says why."""
