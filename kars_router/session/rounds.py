"""What a server of the stateless era asks instead of answering, put to an agent that can be asked.

Such a server ends a request with a list of questions, and wants the request again with the
answers. An agent of the handshake era knows nothing of that: it is asked while it waits. Owns what
each kind of refusal means to the server. Must not know how a request is sent.

Source: MCP 2026-07-28 "Multi Round-Trip Requests"; MCP 2025-11-25 "Elicitation", "Sampling",
"Roots".
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final

import msgspec
import trio

from kars_router.session.caller import Caller, Reply, refusal
from kars_router.telemetry import log
from kars_router.wire import jsonrpc, raw, rounds

ELICITATION: Final = "elicitation/create"
ROOTS: Final = "roots/list"
MOST_ROUNDS: Final = 10

_CANCEL: Final = b'{"action":"cancel"}'
_NO_ROOTS: Final = b'{"roots":[]}'
_ID: Final = "elicitationId"
_MOST_QUESTIONS: Final = 64


class Declined(Exception):
    """A question without an answer that the server could be given; the request is over.

    Args:
        error: what to tell the agent, as a JSON-RPC error object.
    """

    def __init__(self, error: bytes) -> None:
        self.error = error
        super().__init__("a question was declined")


async def collect(
    server: str, questions: Mapping[str, tuple[str, bytes]], caller: Caller, *, limit: float
) -> dict[str, bytes]:
    """Puts all questions to an agent at once and waits for the answers.

    What an agent refuses, fails at or leaves unanswered is told to the server where there are
    words for that: a form counts as cancelled, and roots are none.

    Args:
        server: the server's configured name.
        questions: method and params (a JSON object, or empty) by the server's keys.
        caller: who is asked.
        limit: seconds that the agent, or the person behind it, may take.

    Returns:
        a result for each key, as JSON.

    Raises:
        Declined: there are no words: a model's answer was refused, or nobody knows the method.

    Cancellation takes all questions back.
    """
    if len(questions) > _MOST_QUESTIONS:
        text = f"the server {server} asks more than {_MOST_QUESTIONS} things at once"
        raise Declined(jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, text))
    for method, _ in questions.values():
        if method not in rounds.QUESTIONS:
            text = f"the server {server} asks for {method[:64]}, which no client offers"
            raise Declined(jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, text))
    replies: dict[str, Reply] = {}
    async with trio.open_nursery() as nursery:
        for key, (method, params) in questions.items():
            question = partial(caller.ask, method, _identified(method, params))
            nursery.start_soon(_ask, replies, key, question, limit)
    return {key: _answer(server, method, replies[key]) for key, (method, _) in questions.items()}


async def _ask(
    replies: dict[str, Reply], key: str, question: Callable[[], Awaitable[Reply]], limit: float
) -> None:
    replies[key] = refusal("no answer in time", jsonrpc.INTERNAL_ERROR)
    with trio.move_on_after(limit):
        replies[key] = await question()


def _identified(method: str, params: bytes) -> bytes:
    """Gives a question that sends the person to a web page the id that it used to have."""
    fields = raw.fields(params)
    if method != ELICITATION or fields is None or raw.text(fields.get("mode")) != "url":
        return params
    if raw.text(fields.get(_ID)) is None:
        fields[_ID] = msgspec.Raw(jsonrpc.encode(secrets.token_urlsafe(16)))
    return jsonrpc.encode(fields)


def _answer(server: str, method: str, reply: Reply) -> bytes:
    if reply.result is not None:
        return reply.result
    log().info("question_declined", server=server, method=method[:64])
    if method == ELICITATION:
        return _CANCEL
    if method == ROOTS:
        return _NO_ROOTS
    text = f"the server {server} asked for {method[:64]}, and the client declined"
    raise Declined(jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, text))
