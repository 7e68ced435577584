"""One request to a server of the stateless era, from its first message to the answer it ends with.

Owns the messages that it takes: the request, and the request again with what the server asked for
or with other headers. Must not know other requests, or what a failure says of the session.

Source: MCP 2026-07-28 "Multi Round-Trip Requests", "Streamable HTTP", "Cancellation", "Progress".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, evolve, field, frozen

from kars_router.errors import CallFailed
from kars_router.model import Failure, Phase, Sent
from kars_router.session.caller import Caller
from kars_router.session.discovery import DISCOVER
from kars_router.session.pending import Pending
from kars_router.session.rounds import MOST_ROUNDS, Declined, collect
from kars_router.session.stamping import Stamps
from kars_router.telemetry import log
from kars_router.transports.base import Connection, Delivery
from kars_router.wire import envelope, headers, jsonrpc, progress, rounds
from kars_router.wire.jsonrpc import Kind, Message

# After its response has come a stream should end by itself; then its connection can be kept.
_LINGER_SECONDS: Final = 1.0
# What a refusing response says of the way to the server, or of the moment, is not its answer.
NO_REPLY: Final = frozenset({401, 403, 407, 408, 429})
CLIENT_ERRORS: Final = range(400, 500)
# With these codes servers of the handshake era refuse a request that belongs to no session.
_NO_SESSION: Final = (jsonrpc.INVALID_REQUEST, jsonrpc.REFUSED)
_PROGRESS: Final = "notifications/progress"


@frozen(kw_only=True)
class Surroundings:
    """What the requests of one session share.

    Attributes:
        server: the server's configured name.
        connection: the session's.
        stamps: what each message says of this hop.
        exchanges: those that wait for an answer, by the id of the message that was sent last.
        abandon: tells the server that nobody reads the answer to a message any more.
        relist: reads the tools again; None if that cannot be done.
        input_timeout: seconds that an agent, or the person behind it, may take for an answer.
    """

    server: str
    connection: Connection
    stamps: Stamps
    exchanges: dict[bytes, Exchange]
    abandon: Callable[[bytes], None]
    relist: Callable[[], Awaitable[None]] | None
    input_timeout: float


@define(eq=False)
class _Leg:
    ident: bytes
    token: bytes = b""
    reply: Message | None = None
    failure: Failure | None = None
    delivery: Delivery = field(factory=Delivery)
    scope: trio.CancelScope = field(factory=trio.CancelScope)


class Exchange:
    """One request.

    Args:
        pending: what it ends as; its payload are the params.
        caller: the agent's side; None for the router's own requests.
        around: what it shares with others.
    """

    def __init__(self, pending: Pending, caller: Caller | None, around: Surroundings) -> None:
        self._pending = pending
        self._caller = caller
        self._around = around
        self._leg = _Leg(pending.ident)
        self._mended = False
        self._asked = 0

    async def run(self) -> None:
        """Makes the request, in as many messages as it takes; afterwards `pending` is done.

        Raises:
            CallFailed: it failed.

        Cancellation closes the stream of the answer, which tells the server, and takes back what
        the agent was asked.
        """
        try:
            await self._run()
        except CallFailed as error:
            # What a server refuses after it had asked for input, it had begun all the same.
            raise CallFailed(evolve(error.failure, begun=self._asked > 0)) from error
        except Declined as declined:
            self._answer(declined.error)
        except jsonrpc.MalformedError as error:
            text = f"unusable params: {error}"
            self._answer(jsonrpc.error_object(jsonrpc.INVALID_PARAMS, text))

    def take_reply(self, message: Message) -> bool:
        """Takes the reply to its last message; False if there was one. Never waits."""
        leg = self._leg
        if leg.reply is not None or message.id not in (leg.ident, b""):
            return False
        leg.reply = message
        deadline = trio.current_time() + _LINGER_SECONDS
        leg.scope.deadline = min(leg.scope.deadline, deadline)
        self._settle(message)
        return True

    def take_notification(self, method: str, params: bytes) -> bool:
        """Tells the agent what the server says of this request; False if it wants none of it."""
        caller, token = self._caller, self._leg.token
        if caller is None or self._pending.done:
            return False
        if method == _PROGRESS:
            if not token or progress.token_of(params) != self._leg.ident:
                return False
            params = progress.with_token(params, token)
        elif method == "notifications/message" and not caller.log_level:
            return False
        caller.notify(method, params)
        return True

    async def _run(self) -> None:
        pending = self._pending
        params = pending.payload
        while True:
            reply = await self._send(params)
            if pending.done:
                return
            if reply.error is not None:
                await self._mend(reply.error)
            elif self._asked == MOST_ROUNDS:
                raise self._failed("protocol", f"the server asks on after {MOST_ROUNDS} rounds")
            else:
                self._asked += 1
                params = await self._ask(params, reply.result or b"")
            self._leg = _Leg(self._around.stamps.next_ident())

    async def _send(self, params: bytes) -> Message:
        """Sends one message and waits for its reply, which may have ended the request."""
        leg, pending, around = self._leg, self._pending, self._around
        if self._caller is not None:
            params, leg.token = progress.replace_token(params, leg.ident)
        payload = jsonrpc.request(
            leg.ident, pending.method, around.stamps.stamp(params, self._caller)
        )
        earlier = pending.delivery.sent
        cut_off = True
        around.exchanges[leg.ident] = self
        try:
            with leg.scope:
                try:
                    await around.connection.send(
                        payload,
                        method=pending.method,
                        delivery=leg.delivery,
                        ident=leg.ident,
                        headers=around.stamps.headers(pending.method, params),
                    )
                except CallFailed as error:
                    leg.failure = error.failure
            cut_off = False
        finally:
            del around.exchanges[leg.ident]
            # What a server has seen in an earlier round stays seen.
            pending.delivery.sent = earlier if earlier is Sent.YES else leg.delivery.sent
            if cut_off and leg.reply is None and leg.delivery.sent is Sent.YES:
                around.abandon(leg.ident)
        return leg.reply or self._refusal(leg)

    def _refusal(self, leg: _Leg) -> Message:
        """The reply in a response that refuses the message.

        Raises:
            CallFailed: there is none.
        """
        failure = leg.failure
        if failure is None:
            # A server that answers before it has read everything may have acted all the same.
            self._pending.delivery.sent = Sent.YES
            raise self._failed("no_answer", "the stream ended without an answer")
        doubtful = failure.rpc_code in (*_NO_SESSION, envelope.UNSUPPORTED_VERSION)
        if doubtful or not holds_reply(failure) or self._pending.method == DISCOVER:
            raise CallFailed(evolve(failure, sent=self._pending.delivery.sent))
        reply = Message(Kind.RESPONSE, leg.ident, error=failure.rpc_error)
        self._settle(reply)
        return reply

    def _settle(self, reply: Message) -> None:
        """Ends the request with a reply, unless that calls for another message."""
        pending, caller = self._pending, self._caller
        if reply.error is not None:
            if not self._mendable(reply.error):
                pending.resolve(reply)
            return
        result = reply.result or b""
        kind = envelope.result_type(result)
        asks = kind == envelope.INPUT_REQUIRED and pending.method in rounds.METHODS
        if kind != envelope.COMPLETE and (caller is None or not asks):
            text = f"a result of the kind {kind!r:.40} to {pending.method}"
            pending.fail(self._failed("protocol", text).failure)
        elif caller is None or caller.multi_round:
            pending.resolve(reply)
        elif not asks:
            plain = envelope.unstamp_result(result)
            pending.resolve(Message(reply.kind, reply.id, result=plain))

    def _mendable(self, error: bytes) -> bool:
        code, _ = jsonrpc.error_code(error)
        if code == envelope.UNSUPPORTED_VERSION:
            return self._pending.method != DISCOVER
        stale = code == envelope.HEADER_MISMATCH and headers.PARAM_PREFIX.encode() in error.lower()
        return stale and not self._mended and self._around.relist is not None

    async def _mend(self, error: bytes) -> None:
        """Sees to it that a request which was refused can be made once more."""
        failure = answered_with(error, self._pending.method, self._around.server)
        if self._around.relist is None or failure.rpc_code != envelope.HEADER_MISMATCH:
            raise CallFailed(failure)
        self._mended = True
        log().info("tool_annotations_stale", server=self._around.server)
        await self._around.relist()

    async def _ask(self, params: bytes, result: bytes) -> bytes:
        """Gets what a server asks for; the params of the request that goes with it."""
        pending, around = self._pending, self._around
        try:
            questions, state = rounds.input_requests(result), rounds.request_state(result)
        except jsonrpc.MalformedError as error:
            raise self._failed("protocol", f"the server asks: {error}") from error
        if not questions and state is None:
            raise self._failed("protocol", "the server asks for input and does not say which")
        answers: dict[str, bytes] = {}
        if questions and self._caller is not None:
            pending.pause()
            try:
                answers = await collect(
                    around.server, questions, self._caller, limit=around.input_timeout
                )
            finally:
                pending.resume()
        return rounds.with_responses(params, answers, state)

    def _answer(self, error: bytes) -> None:
        self._pending.resolve(Message(Kind.RESPONSE, self._pending.ident, error=error))

    def _failed(self, code: str, detail: str) -> CallFailed:
        return CallFailed(
            Failure(
                server=self._around.server,
                phase=Phase.RESULT,
                sent=Sent.YES,
                method=self._pending.method,
                code=code,
                detail=detail,
            )
        )


def holds_reply(failure: Failure) -> bool:
    """Whether a response that refuses a message holds the server's reply to it."""
    status = failure.status
    return bool(failure.rpc_error) and status in CLIENT_ERRORS and status not in NO_REPLY


def answered_with(error: bytes, method: str, server: str) -> Failure:
    """The failure of a request that was answered with a JSON-RPC error."""
    code, text = jsonrpc.error_code(error)
    return Failure(
        server=server,
        phase=Phase.RESULT,
        sent=Sent.YES,
        method=method,
        rpc_code=code,
        rpc_error=error,
        body=text[:512],
        code="rpc_error",
        detail=f"{method} failed",
    )


def given_up(pending: Pending, server: str) -> Failure:
    """The failure of a request that was cancelled, or whose time is over."""
    code, detail = "timeout", "no answer within the time limit"
    if pending.cancelled:
        code, detail = "cancelled", "the agent cancelled it"
    return Failure(
        server=server,
        phase=Phase.AWAIT,
        sent=pending.delivery.sent,
        method=pending.method,
        code=code,
        detail=detail,
    )


def cut_off(pending: Pending, server: str) -> Failure:
    """The failure of a request whose session has ended."""
    return Failure(
        server=server,
        phase=Phase.AWAIT,
        sent=pending.delivery.sent,
        method=pending.method,
        code="session_lost",
        detail="the session ended",
    )
