"""What a server of the handshake era asks in the middle of its work, and who is to answer it.

Owns the way of a question to the agent that caused it and of the answer back. Whatever cannot be
put to anybody is answered at once; nothing is left hanging. Must not know agents or HTTP.

Source: MCP 2025-11-25 "Sampling", "Elicitation", "Roots"; SEP-2260 (a question belongs to a request
of the client).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from kars_router.session.caller import Caller, Reply, refusal
from kars_router.session.pending import Pending
from kars_router.telemetry import log
from kars_router.wire import capabilities, jsonrpc
from kars_router.wire.jsonrpc import Message

SAMPLING: Final = "sampling/createMessage"
ELICITATION: Final = "elicitation/create"
ROOTS: Final = "roots/list"
ASKED: Final = frozenset({SAMPLING, ELICITATION, ROOTS})
NO_ROOTS: Final = b'{"roots":[]}'
_MOST: Final = 64


@define(eq=False)
class RootsMemory:
    """The roots that an agent named last; it outlives the session that asked for them."""

    result: bytes = NO_ROOTS


@define(eq=False)
class _Open:
    pending: Pending | None
    outlives: bool
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    withdrawn: bool = False


class Questions:
    """The open questions of one session.

    Args:
        server: the server's configured name, for the log.
        offered: the capabilities that the server was told of, as a JSON object.
        answer: sends one JSON-RPC response to the server; never waits.
        roots: the agent's last roots, for a server that asks when the agent cannot hear it.
        limit: seconds that an agent, or the person behind it, may take for an answer.
    """

    def __init__(
        self,
        server: str,
        offered: bytes,
        answer: Callable[[bytes], None],
        *,
        roots: RootsMemory,
        limit: float,
    ) -> None:
        self._server = server
        self._offered = offered
        self._answer = answer
        self._roots = roots
        self._limit = limit
        self._open: dict[bytes, _Open] = {}

    def take(
        self,
        message: Message,
        caller: Caller | None,
        pending: Pending | None,
        *,
        nursery: trio.Nursery,
        outlives: bool = False,
    ) -> None:
        """Takes one question; never waits.

        Args:
            message: the server's request.
            caller: who is to be asked, or None if nobody can be.
            pending: the request that caused it, if one did; its time stops meanwhile.
            nursery: the session's own.
            outlives: whether the question goes on when that request is over.
        """
        if message.method not in ASKED:
            text = f"{message.method[:64]} is not offered by this client"
            self._reply(message, refusal(text))
            return
        missing = capabilities.allows(self._offered, message.method, message.params)
        if missing is not None:
            if caller is not None:
                caller.lacks(missing)
            self._reply(message, refusal(f"this client does not offer {missing}"))
            return
        if len(self._open) >= _MOST or message.id in self._open:
            text = f"more than {_MOST} questions are open, or one with this id"
            self._reply(message, refusal(text, jsonrpc.INTERNAL_ERROR))
            return
        if caller is None:
            self._unheard(message)
            return
        question = self._open[message.id] = _Open(pending, outlives)
        nursery.start_soon(self._ask, message, caller, question)

    def withdraw(self, ident: bytes) -> None:
        """Takes back a question that the server has cancelled; it gets no answer."""
        question = self._open.get(ident)
        if question is not None:
            question.withdrawn = True
            question.scope.cancel()

    def end(self, pending: Pending) -> None:
        """Ends the questions that a request has caused, because the request is over."""
        for question in self._open.values():
            if question.pending is pending and not question.outlives:
                question.scope.cancel()

    async def _ask(self, message: Message, caller: Caller, question: _Open) -> None:
        reply: Reply | None = None
        pending = question.pending
        if pending is not None:
            pending.pause()
        try:
            with question.scope, trio.move_on_after(self._limit):
                reply = await caller.ask(message.method, message.params)
        finally:
            # Runs when the session ends, too; then there is nobody to answer.
            del self._open[message.id]
            if pending is not None:
                pending.resume()
        if question.withdrawn:
            return
        if reply is None:
            log().info("question_unanswered", server=self._server, method=message.method)
            reply = refusal("the client gave no answer in time", jsonrpc.INTERNAL_ERROR)
        if message.method == ROOTS and reply.result is not None:
            self._roots.result = reply.result
        self._reply(message, reply)

    def _unheard(self, message: Message) -> None:
        if message.method == ROOTS:
            self._reply(message, Reply(result=self._roots.result))
            return
        log().info("question_undeliverable", server=self._server, method=message.method)
        text = "nobody can be asked at the moment: no request of the client is on its way"
        self._reply(message, refusal(text, jsonrpc.INTERNAL_ERROR))

    def _reply(self, message: Message, reply: Reply) -> None:
        if reply.result is not None:
            self._answer(jsonrpc.result(message.id, reply.result))
        else:
            error = reply.error or jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, "no answer")
            self._answer(jsonrpc.error(message.id, error))
