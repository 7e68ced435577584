"""The questions that are put to one agent: each gets exactly one answer, or is refused.

Owns their ids, which are the router's own, and their number. Must not know what is asked, nor
HTTP.

Source: MCP 2025-11-25 "Sampling", "Elicitation", "Roots", "Cancellation".
"""

from __future__ import annotations

from functools import partial
from typing import Final

import trio
from attrs import define, field

from kars_router.front.replay import Event, EventStream
from kars_router.session.caller import Reply, refusal
from kars_router.wire import jsonrpc

_MOST: Final = 64
UNHEARD: Final = "nobody hears the question: the client has left"
_CANCELLED: Final = "notifications/cancelled"


@define(eq=False)
class _Question:
    owner: object
    event: Event | None = None
    reply: Reply | None = None
    done: trio.Event = field(factory=trio.Event)

    def resolve(self, reply: Reply) -> None:
        if self.event is not None:
            self.event.discard()  # a question that was answered must not be put again
        if self.reply is None:
            self.reply = reply
            self.done.set()


class Questions:
    """The open questions of one agent session.

    Args:
        name: what begins their ids; no earlier session of the same agent had it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._count = 0
        self._closed = False
        self._open: dict[bytes, _Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def put(
        self, owner: object, stream: EventStream | None, method: str, params: bytes
    ) -> Reply:
        """Puts a question on a stream and waits for the answer, without a limit.

        Args:
            owner: whose question it is, for `end`.
            stream: where it is put; None if there is none.
            method: its method.
            params: its params as JSON, or empty.

        Returns:
            the agent's answer; a refusal if it cannot be heard, when the agent stays away too
            long, when its session ends, or while 64 others are open.

        Cancellation takes the question back and tells the agent so.
        """
        if stream is None or not stream.audible or self._closed:
            return refusal(UNHEARD, jsonrpc.INTERNAL_ERROR)
        if len(self._open) >= _MOST:
            text = f"{_MOST} questions wait for this client's answers, which is the limit"
            return refusal(text, jsonrpc.INTERNAL_ERROR)
        self._count += 1
        ident = b'"%b-%d"' % (self._name.encode(), self._count)
        question = self._open[ident] = _Question(owner)
        message = jsonrpc.request(ident, method, params)
        question.event = stream.put(message, on_lost=partial(self._refuse, ident))
        try:
            await question.done.wait()
        finally:
            self._take_back(ident, b"")
        return question.reply or refusal(UNHEARD, jsonrpc.INTERNAL_ERROR)

    def answer(self, ident: bytes, reply: Reply) -> bool:
        """Takes the agent's answer to the question of an id as JSON; False if there is none."""
        question = self._open.pop(ident, None)
        if question is None:
            return False
        question.resolve(reply)
        return True

    def end(self, owner: object, reason: bytes = b"") -> None:
        """Takes back every question of an owner; they are refused.

        Args:
            owner: as it was given to `put`.
            reason: a JSON string for the agent, or empty.
        """
        for ident, question in [*self._open.items()]:
            if question.owner is owner:
                self._take_back(ident, reason)

    def close(self) -> None:
        """Refuses all questions, from now on."""
        self._closed = True
        for ident in [*self._open]:
            self._refuse(ident)

    def _refuse(self, ident: bytes) -> None:
        self.answer(ident, refusal(UNHEARD, jsonrpc.INTERNAL_ERROR))

    def _take_back(self, ident: bytes, reason: bytes) -> None:
        question = self._open.pop(ident, None)
        if question is None:
            return
        event = question.event
        if event is not None and event.was_read:
            why = b',"reason":%b' % reason if reason else b""
            params = b'{"requestId":%b%b}' % (ident, why)
            event.stream.put(jsonrpc.notification(_CANCELLED, params))
        question.resolve(refusal("the question was taken back", jsonrpc.INTERNAL_ERROR))
