"""Multi-round requests: a result that asks for input, and the same request again with the answers.

Must not know who answers, or how a request is kept waiting.

Source: MCP 2026-07-28 "Multi Round-Trip Requests".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from kars_router.wire import jsonrpc, raw
from kars_router.wire.envelope import INPUT_REQUIRED, EnvelopeError

# The methods whose results may ask for input.
METHODS: Final = frozenset({"tools/call", "prompts/get", "resources/read"})
# What they may ask.
QUESTIONS: Final = frozenset({"elicitation/create", "sampling/createMessage", "roots/list"})

_RESPONSES: Final = "inputResponses"
_STATE: Final = "requestState"


def input_requests(result: bytes) -> dict[str, tuple[str, bytes]]:
    """The questions in a result that asks for input.

    Args:
        result: the result as JSON; its `resultType` is not looked at.

    Returns:
        for each of the server's keys the method, which may be any, and its params as a JSON
        object, or empty; nothing at all if the result only wants the request again.

    Raises:
        MalformedError: what the server asks cannot be read.
    """
    asked = jsonrpc.members(result).get("inputRequests")
    if raw.is_null(asked):
        return {}
    questions = {}
    for key, value in jsonrpc.members(bytes(asked or b"")).items():
        question = jsonrpc.members(bytes(value))
        method = raw.text(question.get("method"))
        if method is None:
            raise jsonrpc.MalformedError(jsonrpc.INVALID_REQUEST, "an input request has no method")
        params = question.get("params")
        if not raw.is_null(params) and raw.fields(params) is None:
            raise jsonrpc.MalformedError(jsonrpc.INVALID_REQUEST, "params must be an object")
        questions[key] = (method, b"" if raw.is_null(params) else bytes(params or b""))
    return questions


def request_state(result: bytes) -> bytes | None:
    """What the server wants to see again with the request, as it was written; None if nothing.

    Raises:
        MalformedError: the result is no JSON object.
    """
    state = jsonrpc.members(result).get(_STATE)
    return None if raw.is_null(state) else bytes(state or b"")


def input_required(questions: Mapping[str, tuple[str, bytes]], state: bytes | None) -> bytes:
    """Writes a result that asks for input.

    Args:
        questions: method and params (a JSON object, or empty) for each key.
        state: a JSON string that is to come back with the answers, or None. There must be a
            question or a state.
    """
    fields: dict[str, object] = {"resultType": INPUT_REQUIRED}
    if questions:
        fields["inputRequests"] = {
            key: {"method": method, "params": msgspec.Raw(params or b"{}")}
            for key, (method, params) in questions.items()
        }
    if state is not None:
        fields[_STATE] = msgspec.Raw(state)
    return jsonrpc.encode(fields)


def with_responses(params: bytes, responses: Mapping[str, bytes], state: bytes | None) -> bytes:
    """The params of a request that is made again, with what its last result asked for.

    Args:
        params: those of the request before, as JSON; answers of an earlier round are left out.
        responses: for each key of the questions the answer's result, as JSON; may be empty.
        state: what `request_state` found, or None.

    Raises:
        MalformedError: the params are no JSON object.
    """
    fields = jsonrpc.members(params) if params else {}
    fields.pop(_RESPONSES, None)
    fields.pop(_STATE, None)
    if responses:
        answers = {key: msgspec.Raw(value) for key, value in responses.items()}
        fields[_RESPONSES] = msgspec.Raw(jsonrpc.encode(answers))
    if state is not None:
        fields[_STATE] = msgspec.Raw(state)
    return jsonrpc.encode(fields)


def without_responses(params: bytes) -> tuple[bytes, dict[str, bytes], bytes | None]:
    """Takes the answers out of a request that is made again.

    Args:
        params: as JSON, or empty.

    Returns:
        the params of the request before; the answers' results as JSON by their keys, which may be
        any; the state as a JSON string, or None. The params are the same bytes if it holds
        neither.

    Raises:
        EnvelopeError: INVALID_PARAMS, as the answers or the state are not of the right kind.
        MalformedError: the params are no JSON object.
    """
    if not params:
        return params, {}, None
    fields = jsonrpc.members(params)
    answers, state = fields.pop(_RESPONSES, None), fields.pop(_STATE, None)
    if answers is None and state is None:
        return params, {}, None
    responses = {} if answers is None else raw.fields(answers)
    # An answer's kind is known only to who asked, but it is a result, and results are objects.
    if responses is None or not all(bytes(one).startswith(b"{") for one in responses.values()):
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{_RESPONSES} must be an object of results")
    if raw.is_null(state):
        state = None
    elif raw.text(state) is None:
        raise EnvelopeError(jsonrpc.INVALID_PARAMS, f"{_STATE} must be a string")
    return (
        jsonrpc.encode(fields),
        {key: bytes(value) for key, value in responses.items()},
        None if state is None else bytes(state),
    )
