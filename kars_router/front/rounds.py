"""One request of a stateless agent, which may take several rounds of HTTP to come to its end.

Owns what waits to be said to the agent: notifications, a server's questions, the end. Must not
know HTTP, nor for how long a call may wait between two rounds.

Source: MCP 2026-07-28 "Multi Round-Trip Requests", "Progress", "Logging".
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec
import trio
from attrs import define, field

from kars_router.errors import AgentError
from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.identity import Identity
from kars_router.front.operations import Answer
from kars_router.session.caller import Reply, refusal
from kars_router.telemetry import Metrics
from kars_router.wire import capabilities, jsonrpc, levels, progress, raw, rounds
from kars_router.wire.envelope import Envelope

_QUEUE_LIMIT: Final = 256
_QUEUE_BYTES: Final = 4 << 20
_PROGRESS: Final = "notifications/progress"
_MESSAGE: Final = "notifications/message"
# They belong to no request, or have no place in this era.
_ELSEWHERE: Final = (
    "notifications/cancelled",
    "notifications/elicitation/",
    "notifications/initialized",
    "notifications/prompts/",
    "notifications/resources/",
    "notifications/roots/",
    "notifications/subscriptions/",
    "notifications/tasks",
    "notifications/tools/",
)
_FREE: Final = ("_meta", "inputResponses", "requestState")


@define(eq=False)
class _Question:
    method: str
    params: bytes
    reply: Reply | None = None
    answered: trio.Event = field(factory=trio.Event)


@define(eq=False, kw_only=True)
class StatelessCaller(AgentCaller):
    """A request of a stateless agent.

    Attributes:
        who: who makes it.
        identity: the same agent, as it is kept.
        method: its method.
        params: its params as the agent first sent them, as JSON.
        bound: what a state for this request is bound to; see `bound_to`.
        metrics: where dropped notifications are counted.
        token: the progress token of the round that is being answered, as JSON; or empty.
        rounds: how often the agent has been asked for input.
        lacking: a capability that a server's question needed and the agent did not declare, or "".
        answer: how it ended, once it has.
        failure: the error that it ended with instead.
        resumed: set whenever an HTTP request attends to it; a new one for each wait.
    """

    who: Requester
    identity: Identity
    method: str
    params: bytes = field(repr=False)
    bound: bytes = field(repr=False)
    metrics: Metrics
    multi_round: bool = True
    token: bytes = b""
    rounds: int = 0
    lacking: str = ""
    answer: Answer | None = None
    failure: AgentError | None = None
    resumed: trio.Event = field(factory=trio.Event)
    _said: deque[tuple[str, bytes]] = field(factory=deque)
    _held: int = 0
    _questions: dict[str, _Question] = field(factory=dict)
    _asked: int = 0
    _wake: trio.Event = field(factory=trio.Event)

    @property
    def over(self) -> bool:
        """Whether the request has ended."""
        return self.answer is not None or self.failure is not None

    @property
    def asks(self) -> bool:
        """Whether the server waits for an answer of the agent."""
        return any(question.reply is None for question in self._questions.values())

    @property
    def audible(self) -> bool:
        """See `Caller.audible`."""
        return not (self.withdrawn or self.identity.ended)

    def begin(self) -> bool:
        """See `AgentCaller.begin`."""
        return self.identity.use()

    def attend(self, envelope: Envelope, token: bytes) -> None:
        """Takes over what the HTTP request that attends to it from now on says for itself.

        Args:
            envelope: what it says of its sender.
            token: its progress token as JSON, or empty.
        """
        self.capabilities, self.log_level = envelope.capabilities, envelope.log_level
        self.token = token
        self.resumed.set()

    def finish(self, answer: Answer) -> None:
        """Ends it with what came out."""
        self.answer = answer
        if self.withdrawn:
            self.discard()
        self._rouse()

    def fail(self, failure: AgentError) -> None:
        """Ends it with an error."""
        self.failure = failure
        self._rouse()

    def withdraw(self, reason: bytes = b"") -> None:
        """See `Caller.withdraw`; open questions are refused."""
        super().withdraw(reason)
        self.refuse("the client has gone")
        if self.over:
            self.discard()

    def discard(self) -> None:
        """Takes back what the answer would have told, since it does not reach the agent."""
        if self.answer is not None:
            for undo in self.answer.undo:
                undo()
            self.answer = Answer(withdrawn=True)

    def tell(self, method: str, params: bytes) -> None:
        """See `AgentCaller.tell`; the oldest are dropped when the agent does not read.

        256 of them wait at most, and no more than 4 MiB unless a single one is larger.
        """
        if self.over or self.withdrawn or method.startswith(_ELSEWHERE):
            return
        if method == _MESSAGE and not self.log_level:
            return
        while self._said and (
            len(self._said) >= _QUEUE_LIMIT or self._held + len(params) > _QUEUE_BYTES
        ):
            self._next()
            self.metrics.notifications_dropped.inc()
        self._said.append((method, params))
        self._held += len(params)
        self._rouse()

    def lacks(self, capability: str) -> None:
        """See `Caller.lacks`."""
        self.lacking = capability

    async def ask(self, method: str, params: bytes) -> Reply:
        """See `AgentCaller.ask`; remembers what was lacking."""
        self.lacking = capabilities.allows(self.capabilities, method, params) or self.lacking
        return await super().ask(method, params)

    async def put(self, method: str, params: bytes) -> Reply:
        """See `AgentCaller.put`."""
        if self.withdrawn:
            return refusal("the client has gone")
        if self.method not in rounds.METHODS:
            return refusal(f"{self.method} cannot ask for input in the client's revision")
        self._asked += 1
        key = f"question-{self._asked}"
        question = self._questions[key] = _Question(method, params)
        self._rouse()
        try:
            await question.answered.wait()
        finally:
            # Also when the server takes it back.
            del self._questions[key]
        return question.reply or refusal("the client has gone")

    def take(self, responses: Mapping[str, bytes]) -> None:
        """Hands the agent's answers to the questions that wait for them; others are ignored.

        Args:
            responses: results as JSON, by the keys of `input_required`.
        """
        for key, result in responses.items():
            question = self._questions.get(key)
            if question is not None and question.reply is None:
                question.reply = Reply(result=result)
                question.answered.set()

    def refuse(self, text: str) -> None:
        """Refuses the questions that are open."""
        for question in self._questions.values():
            if question.reply is None:
                question.reply = refusal(text, jsonrpc.INTERNAL_ERROR)
                question.answered.set()

    def open_questions(self) -> dict[str, tuple[str, bytes]]:
        """Method and params of every question that waits for the agent, by keys of our own."""
        return {
            key: (question.method, question.params)
            for key, question in self._questions.items()
            if question.reply is None
        }

    def said(self) -> bytes | None:
        """The next notification for the agent, as a message; None if there is none now."""
        while self._said:
            message = self._spell(*self._next())
            if message is not None:
                return message
        return None

    async def wait(self) -> None:
        """Waits until there may be something to say: a notification, a question, the end."""
        while not (self._said or self.over or self.asks):
            self._wake = trio.Event()
            await self._wake.wait()

    def _next(self) -> tuple[str, bytes]:
        method, params = self._said.popleft()
        self._held -= len(params)
        return method, params

    def _spell(self, method: str, params: bytes) -> bytes | None:
        # Only now, because a later round has a token and a level of its own.
        if method == _PROGRESS:
            if not self.token or raw.fields(params) is None:
                return None
            params = progress.with_token(params, self.token)
        elif method == _MESSAGE:
            level = raw.text((raw.fields(params) or {}).get("level"))
            if level is None or not self.log_level or not levels.passes(level, self.log_level):
                return None
        return jsonrpc.notification(method, params)

    def _rouse(self) -> None:
        self._wake.set()


def bound_to(who: Requester, method: str, params: bytes) -> bytes:
    """What stays the same in every round of one request, as a digest.

    The agent, the endpoint, the method, and the params but for what differs by design: `_meta`, the
    responses, the state. How the params are spelled makes no difference, except in a member that
    no Python type holds, such as one with the number 1e400: that has to come back as it was.

    Args:
        who: who makes it.
        method: its method.
        params: its params, a JSON object or empty.

    Raises:
        MalformedError: the params are no object.
    """
    members = jsonrpc.members(params or b"{}")
    kept = {k: _canonical(bytes(v)) for k, v in members.items() if k not in _FREE}
    parts = [who.agent, who.endpoint, method, kept]
    return hashlib.sha256(msgspec.json.encode(parts, order="sorted")).digest()


def _canonical(value: bytes) -> bytes:
    try:
        return msgspec.json.encode(jsonrpc.decode(value), order="sorted")
    except (jsonrpc.MalformedError, RecursionError):
        return value
