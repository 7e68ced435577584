"""A tools/call of an agent, from its message to the response.

Owns the checks that a call passes before it leaves, the limit on calls, and what the agent is
told. Must not know HTTP.

Source: MCP 2025-11-25 "Tools / Calling Tools".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import msgspec
import trio

from kars_router.errors import AgentError
from kars_router.front import results
from kars_router.front.agents import AgentSession
from kars_router.front.tools import ToolView
from kars_router.model import CallOutcome, Fate, Tool, ToolCall
from kars_router.session.server import ServerRuntime
from kars_router.session.supervisor import Supervisor
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

_FIRST_SECONDS: Final = 5.0

Undo = Callable[[], None]


class Calls:
    """The calls of all agents.

    Args:
        supervisor: the upstream side.
        tools: what there is to call.
        limit: most calls at once, answers that are not sent yet included.

    Attributes:
        in_flight: calls that have not ended yet.
        unsent: answers to calls that are being made or sent.
        accepting: whether new calls are made.
    """

    def __init__(self, supervisor: Supervisor, tools: ToolView, *, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self.unsent = 0
        self.accepting = True
        self._supervisor = supervisor
        self._tools = tools
        self._idle = trio.Event()

    async def make(self, session: AgentSession, message: Message, undone: list[Undo]) -> bytes:
        """Makes a call and says how it ended.

        Args:
            session: the agent's session.
            message: the request.
            undone: gets what is to be taken back if the response does not reach the agent.

        Returns:
            the JSON-RPC response.

        Raises:
            AgentError: the request is malformed or its tool unknown.
        """
        params = members(message)
        if not params.get("name", b"").startswith(b'"'):
            raise AgentError(jsonrpc.INVALID_PARAMS, "tools/call needs the name of a tool")
        if not params.get("arguments", b"{").startswith(b"{"):
            raise AgentError(jsonrpc.INVALID_PARAMS, "arguments must be an object")
        found = await self._find(session.ticket.endpoint, jsonrpc.decode(params["name"]))
        server = found.name if isinstance(found, ServerRuntime) else found.server
        refusal = self._refusal(session, found)
        if refusal is not None or isinstance(found, ServerRuntime):
            return results.response(message.id, server, refusal or _unreached(server))
        session.called = True
        # Written anew even if the name stays: of a name that is given twice, the server might
        # take the one that was not checked.
        kept = {member: msgspec.Raw(value) for member, value in params.items()}
        call = ToolCall(
            agent=session.agent,
            server=server,
            tool=found.name,
            params=jsonrpc.encode({**kept, "name": found.name}),
            client=session.ticket.client,
        )
        self.in_flight += 1
        try:
            outcome = await self._supervisor.call(call)
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._idle.set()
        response = results.response(message.id, server, outcome)
        if outcome.reset is not None:
            undo = partial(self._supervisor.return_reset, session.agent, server, outcome.reset)
            # An answer of a shape that MCP does not know cannot carry the notice.
            undone.append(undo) if results.carries_notice(response) else undo()
        return response

    async def drain(self) -> None:
        """Refuses new calls and waits for the ones in flight."""
        self.accepting = False
        while self.in_flight:
            self._idle = trio.Event()
            await self._idle.wait()

    async def _find(self, endpoint: str, name: str) -> Tool | ServerRuntime:
        found = self._tools.find(endpoint, name)
        if isinstance(found, ServerRuntime):
            # Only the server that is meant is waited for, and only until its tools are known.
            with trio.move_on_after(_FIRST_SECONDS):
                await found.tried.wait()
            await found.try_now(found.settings.timeouts.connect)
            found = self._tools.find(endpoint, name)
        return found

    def _refusal(self, session: AgentSession, found: Tool | ServerRuntime) -> CallOutcome | None:
        if session.ended:
            return _refused(
                "session_ended",
                "The agent's session has ended, so the call was not made.",
                retryable=False,
            )
        if not self.accepting:
            return _refused("shutting_down", "The router is shutting down; no call was made.")
        if isinstance(found, ServerRuntime):
            return _unreached(found.name)
        if max(self.in_flight + 1, self.unsent) > self.limit:
            return _refused(
                "too_many_calls",
                f"The router has {self.limit} calls in flight, which is its limit, so this one "
                "was not made. Try again when others have ended.",
            )
        return None


def members(message: Message) -> dict[str, bytes]:
    """The members of a request's params, each as JSON.

    Raises:
        AgentError: the params are no object.
    """
    try:
        return {k: bytes(v) for k, v in jsonrpc.members(message.params or b"{}").items()}
    except jsonrpc.MalformedError as error:
        raise AgentError(jsonrpc.INVALID_PARAMS, "params must be an object") from error


def _refused(code: str, text: str, *, retryable: bool = True) -> CallOutcome:
    return CallOutcome(fate=Fate.NOT_EXECUTED, code=code, message=text, retryable=retryable)


def _unreached(server: str) -> CallOutcome:
    return _refused(
        "upstream_unavailable",
        f"The server {server} cannot be reached at the moment, so the call was not made. It may "
        "be tried again later.",
    )
