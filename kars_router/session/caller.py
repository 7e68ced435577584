"""Who made a request, as far as the upstream side has to know: what it can be told and asked.

The agent side implements both protocols, one for each era, so that nothing here asks which era an
agent is of. Must not know HTTP, public names or JSON-RPC ids of agents.

Source: MCP 2025-11-25 "Sampling", "Elicitation", "Roots", "Progress", "Cancellation";
MCP 2026-07-28 "Multi Round-Trip Requests".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, frozen

from kars_router.session.pending import Pending
from kars_router.wire import jsonrpc


@frozen
class Reply:
    """What an agent answered to a question: a result or an error, as JSON."""

    result: bytes | None = None
    error: bytes | None = None


def refusal(text: str, code: int = jsonrpc.METHOD_NOT_FOUND) -> Reply:
    """The answer to a question that cannot be put to anybody."""
    return Reply(error=jsonrpc.error_object(code, text))


@define(eq=False)
class Caller:
    """The agent's side of one request on its way; this base class stands for nobody.

    Attributes:
        capabilities: the capabilities that the agent declared, as a JSON object.
        log_level: the least important log messages that it wants with this request; "" for none.
        multi_round: whether the agent takes an `input_required` result and calls again.
        withdrawn: whether the agent has cancelled the request.
        reason: why, as a JSON string, or empty.
        pending: the request on its way to the server, once there is one.
        on_withdraw: called when the agent cancels the request while it is held, if it is.
    """

    capabilities: bytes = b"{}"
    log_level: str = ""
    multi_round: bool = False
    withdrawn: bool = False
    reason: bytes = b""
    pending: Pending | None = None
    on_withdraw: Callable[[], None] | None = None

    @property
    def audible(self) -> bool:
        """Whether the agent hears the answer, or may soon come back for it."""
        return not self.withdrawn

    def withdraw(self, reason: bytes = b"") -> None:
        """Cancels the request, wherever it is; never waits.

        Args:
            reason: a JSON string for the server, or empty.
        """
        self.withdrawn, self.reason = True, reason
        if self.pending is not None:
            self.pending.cancel(reason)
        if self.on_withdraw is not None:
            self.on_withdraw()

    def lacks(self, capability: str) -> None:
        """Told that a server's question was refused, because the server was never offered this.

        Args:
            capability: `sampling`, `elicitation.url` and the like.
        """

    def notify(self, method: str, params: bytes) -> None:
        """Passes on a notification that belongs to this request; never waits.

        Args:
            method: `notifications/progress`, `notifications/message` and the like. Progress
                carries the agent's own token again.
            params: as the server sent it, under the server's own names and URIs.
        """

    async def ask(self, method: str, params: bytes) -> Reply:  # noqa: ARG002 - for who overrides it
        """Puts a server's question to the agent and waits for the answer, without a limit.

        Args:
            method: `sampling/createMessage`, `elicitation/create` or `roots/list`.
            params: as the server sent it, under the server's own names and URIs; may be empty.

        Returns:
            the agent's answer; an error if there is no way to put the question.

        Cancellation takes the question back.
        """
        return refusal(f"{method[:64]} is not offered by this client")


class AgentPort(Protocol):
    """An agent outside of any request.

    Attributes:
        capabilities: the capabilities that it declared, as a JSON object.
        log_level: the least important log messages that it wants; "" if it never said.
        has_sessions: whether it is of the era that has sessions, so that a server which speaks
            both is best spoken to in that one.
    """

    capabilities: bytes
    log_level: str
    has_sessions: bool

    def notify(self, server: str, method: str, params: bytes) -> None:
        """Passes on a notification that belongs to no request; never waits.

        Args:
            server: the server that it comes from.
            method: `notifications/message`, `notifications/resources/updated`, ...
            params: as the server sent it, under the server's own names and URIs.
        """
        ...

    def bystander(self, server: str) -> Caller | None:
        """Who may be asked outside of any request, or None if nobody can hear a question."""
        ...
