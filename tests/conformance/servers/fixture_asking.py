"""Asking the client something in the middle of a request, as each era does it.

A handshake client gets a request of its own while the call waits. A stateless one gets the
questions as the result, and calls again with the answers. The tools know of neither.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.shared.exceptions import MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

Context = Any
Question = types.ElicitRequest | types.CreateMessageRequest | types.ListRootsRequest
Answers = dict[str, dict[str, Any]]

ANSWER_TYPES = {
    "elicitation/create": types.ElicitResult,
    "sampling/createMessage": types.CreateMessageResult,
    "roots/list": types.ListRootsResult,
}
CAPABILITIES = {
    "elicitation/create": "elicitation",
    "sampling/createMessage": "sampling",
    "roots/list": "roots",
}


def in_handshake_era(context: Context) -> bool:
    """Whether the request at hand came within a session."""
    return context.protocol_version not in MODERN_PROTOCOL_VERSIONS


def form(message: str, schema: dict[str, Any]) -> types.ElicitRequest:
    params = types.ElicitRequestFormParams(message=message, requested_schema=schema)
    return types.ElicitRequest(params=params)


def sample(prompt: str) -> types.CreateMessageRequest:
    message = types.SamplingMessage(role="user", content=types.TextContent(text=prompt))
    params = types.CreateMessageRequestParams(messages=[message], max_tokens=100)
    return types.CreateMessageRequest(params=params)


def roots() -> types.ListRootsRequest:
    return types.ListRootsRequest(params=types.RequestParams())


class InputNeeded(Exception):
    """Ends the handling of a stateless request: `result` is what the client gets."""

    def __init__(self, result: types.InputRequiredResult) -> None:
        super().__init__("input needed")
        self.result = result


class NotDeclared(ValueError):
    """A handshake client that cannot be asked this; a tool's own failure."""


class Asker:
    """Asks for one request. `params` are that request's."""

    def __init__(self, context: Context, params: Any) -> None:
        self._context = context
        self._stateless = not in_handshake_era(context)
        self._state = getattr(params, "request_state", None)
        given = getattr(params, "input_responses", None) or {}
        self._given: Answers = {name: _dump(answer) for name, answer in given.items()}

    def may_ask(self, question: Question) -> bool:
        """Whether the client has declared what `question` needs."""
        declared = self._context.session.client_capabilities
        return getattr(declared, CAPABILITIES[question.method], None) is not None

    async def __call__(
        self, questions: Mapping[str, Question], *, remember: bool = False
    ) -> Answers:
        """The answers by name.

        With `remember` a stateless client has to bring back a state with them, in which are the
        answers to what was asked before; without that state its answers count for nothing.
        """
        for question in questions.values():
            self._check(question)
        if not self._stateless:
            return {name: await self._request(question) for name, question in questions.items()}
        known = self._given
        if remember:
            known = {**json.loads(self._state), **self._given} if self._state else {}
        missing = {name: question for name, question in questions.items() if name not in known}
        if missing:
            state = json.dumps(known) if remember else None
            raise InputNeeded(
                types.InputRequiredResult(input_requests=missing, request_state=state)
            )
        return {name: known[name] for name in questions}

    def _check(self, question: Question) -> None:
        if self.may_ask(question):
            return
        name = CAPABILITIES[question.method]
        if not self._stateless:
            raise NotDeclared(f"The client has not declared {name}")
        raise MCPError(
            types.MISSING_REQUIRED_CLIENT_CAPABILITY,
            f"The client has not declared {name}",
            {"requiredCapabilities": {name: {}}},
        )

    async def _request(self, question: Question) -> dict[str, Any]:
        cause = ServerMessageMetadata(related_request_id=self._context.request_id)
        kind = ANSWER_TYPES[question.method]
        return _dump(await self._context.session.send_request(question, kind, metadata=cause))


def _dump(answer: Any) -> dict[str, Any]:
    return dict(answer.model_dump(by_alias=True, mode="json", exclude_none=True))
