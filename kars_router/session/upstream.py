"""One session with a server of the handshake era: one nursery, and nothing outlives it.

Owns the ids on this connection, the requests that are on their way, and where each message of the
server goes. A reader never waits: whatever arrives is dealt with where it is read. Must not know
generations, agents or replays.

Source: MCP 2025-11-25 "Lifecycle", "Ping", "Progress", "Cancellation"; JSON-RPC 2.0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio
from attrs import evolve

from kars_router.errors import CallFailed, HandshakeError
from kars_router.model import Failure, LossVerdict, Phase, Sent
from kars_router.session import eras, handshake
from kars_router.session.answers import Answers
from kars_router.session.caller import Caller
from kars_router.session.listener import Listener, ListenState
from kars_router.session.options import SessionOptions
from kars_router.session.pending import Pending
from kars_router.session.questions import Questions
from kars_router.session.runners import Runner, Runners
from kars_router.session.wishes import Wishes
from kars_router.telemetry import Metrics, log
from kars_router.transports.base import Connection, Deliver
from kars_router.transports.signals import Signal
from kars_router.wire import capabilities, jsonrpc, progress
from kars_router.wire.jsonrpc import Kind, Message

_CLOSE_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 5.0
_LINGER_SECONDS: Final = 1.0
# What belongs to a request when it comes on that request's stream.
_OWN: Final = ("ping", "initialize")
_OF_A_REQUEST: Final = frozenset({"notifications/message", "notifications/elicitation/complete"})


class UpstreamSession:
    """A live session; made by `open_session` only. See `base.Session` for what is public."""

    stateful = True
    poll_seconds = math.inf

    def __init__(
        self,
        options: SessionOptions,
        nursery: trio.Nursery,
        *,
        classify: Callable[[Failure], LossVerdict],
        metrics: Metrics,
        notify: Callable[[str, bytes], None],
    ) -> None:
        self.capabilities = b"{}"
        self.instructions = ""
        self.ended = Signal()
        self.lost: LossVerdict | None = None
        self.loss_failure: Failure | None = None
        self.calls = 0
        self._options = options
        self._nursery = nursery
        self._classify = classify
        self._metrics = metrics
        self._notify = notify
        self._ids = itertools.count()
        self._pending: dict[bytes, Pending] = {}
        self._runners = Runners()
        self._callers: dict[bytes, Caller] = {}
        self._checked: trio.Event | None = None
        self._idle = Signal()
        self._over = Signal()
        self._on_end: Callable[[], None] | None = None
        self._grace = 0.0
        self._wishes = Wishes(options.server, self, nursery, seconds=options.connect_timeout)
        self._connection: Connection
        self._answers: Answers
        self._questions: Questions
        self.listener: Listener

    @property
    def alive(self) -> bool:
        """See `Session.alive`."""
        return not self.ended.is_set()

    @property
    def session_id(self) -> str | None:
        """See `Session.session_id`."""
        return self._connection.session_id

    @property
    def in_flight(self) -> int:
        """See `Session.in_flight`."""
        return len(self._pending)

    @property
    def pings(self) -> int:
        """See `Session.pings`."""
        return self._answers.pings

    @property
    def settled(self) -> Signal:
        """See `Session.settled`."""
        return self.listener.settled

    @property
    def listen_state(self) -> ListenState:
        """See `Session.listen_state`."""
        return self.listener.state

    @property
    def silent_at(self) -> float:
        """See `Session.silent_at`."""
        return self.listener.silent_at

    def check_silence(self) -> None:
        """See `Session.check_silence`."""
        self.listener.check_silence()

    @property
    def heard(self) -> bool:
        """See `Session.heard`."""
        return self.listener.opened > 0

    def deliver(self, message: Message, cause: bytes) -> None:
        """Takes one message from the server, and the request that it came with; never waits."""
        if message.kind is Kind.RESPONSE:
            self._take_reply(message, cause)
        elif message.kind is Kind.NOTIFICATION:
            self._take_notification(message, cause)
        elif message.method == "ping":
            self._answers.pong(message.id)
        else:
            pending = self._cause(cause)
            if pending is not None:
                caller = self._callers[pending.ident]
                self._questions.take(message, caller, pending, nursery=self._nursery)
                return
            # A question that came with no call is likely to be about the latest, whose time
            # stands still; if the agent listens, it hears it there, and the call may end first.
            pending = self._newest()
            bystander = self._options.bystander()
            asked = bystander or (self._callers[pending.ident] if pending else None)
            self._questions.take(
                message, asked, pending, nursery=self._nursery, outlives=bystander is not None
            )

    def submit(
        self, method: str, params: bytes, *, time_limit: float, caller: Caller | None = None
    ) -> Pending:
        """See `Session.submit`."""
        ident = b"%d" % next(self._ids)
        token = b""
        if caller is not None:
            params, token = progress.replace_token(params, ident)
        payload = jsonrpc.request(ident, method, params)
        if not self.alive:
            pending = Pending(ident, method, payload, token=token)
            pending.fail(self._gone(Sent.NO), lost=True)
            return pending
        runner = self._runners.take(time_limit)
        if runner is None:
            scope = trio.CancelScope(deadline=trio.current_time() + time_limit)
        else:
            scope = runner.scope
        pending = Pending(ident, method, payload, token=token, scope=scope)
        self._pending[ident] = pending
        if caller is not None:
            self._callers[ident] = caller
        if method == "tools/call":
            self.calls += 1
        if runner is None:
            self._nursery.start_soon(self._run, pending, scope)
        else:
            runner.give(pending)
        return pending

    async def request(self, method: str, params: bytes = b"", *, time_limit: float) -> bytes:
        """See `Session.request`."""
        pending = self.submit(method, params, time_limit=time_limit)
        await pending.wait()
        if pending.failure is not None:
            raise CallFailed(pending.failure)
        reply = pending.reply
        if reply is None or reply.result is None:
            code, text = jsonrpc.error_code((reply and reply.error) or b"null")
            raise CallFailed(
                Failure(
                    server=self._options.server,
                    phase=Phase.RESULT,
                    sent=Sent.YES,
                    method=method,
                    rpc_code=code,
                    body=text,
                    code="rpc_error",
                    detail=f"{method} failed",
                )
            )
        return reply.result

    def lose(self, verdict: LossVerdict, failure: Failure | None = None) -> None:
        """See `Session.lose`."""
        if self.ended.is_set():
            return
        self.lost, self.loss_failure = verdict, failure
        self.finish()

    def finish(self) -> None:
        """See `Session.finish`."""
        if self.ended.is_set():
            return
        self.ended.set()
        self.settled.set()  # a call that waits for the stream is made in another session
        if self._on_end is not None:
            # A task now, as the one that holds the stream goes on with that; none before.
            self._nursery.start_soon(self._wind_up)

    def close(self) -> None:
        """Ends the session at once, and its stream with it, without a word to whoever holds it."""
        self.ended.set()
        self.listener.close()

    async def hold(self, on_end: Callable[[], None], grace: float) -> None:
        """See `Session.hold`."""
        self._on_end, self._grace = on_end, grace
        try:
            if self.alive:
                await self.listener.run()
                await self._over.wait()
            else:
                await self._wind_up()
        finally:
            self._on_end = None

    async def _wind_up(self) -> None:
        if self._on_end is None:
            return  # whoever held the stream was cancelled meanwhile
        self._on_end()
        await self.drain(self._grace)
        self.listener.close()
        self._over.set()

    async def drain(self, seconds: float) -> None:
        """See `Session.drain`."""
        with trio.move_on_after(seconds):
            while self._pending:
                self._idle = Signal()
                await self._idle.wait()

    async def probe(self) -> bool:
        """Pings the server; whether it answered. A failure is judged like any other."""
        try:
            await self.request("ping", time_limit=_PROBE_SECONDS)
        except CallFailed as error:
            return error.failure.code == "rpc_error"
        return True

    async def subscribe(self, uri: str, *, time_limit: float) -> bytes | None:
        """See `Session.subscribe`."""
        return await self._wishes.subscribe(uri, time_limit=time_limit)

    def unsubscribe(self, uri: str) -> None:
        """See `Session.unsubscribe`."""
        self._wishes.unsubscribe(uri)

    def restore(self, uris: frozenset[str], level: str) -> None:
        """See `Session.restore`."""
        self._wishes.watch(uris)
        self.set_log_level(level)

    def set_log_level(self, level: str) -> None:
        """See `Session.set_log_level`."""
        if capabilities.has(self.capabilities, "logging"):
            self._wishes.set_log_level(level)

    def roots_changed(self) -> None:
        """See `Session.roots_changed`."""
        if capabilities.has(self._options.capabilities, "roots"):
            self._answers.send(jsonrpc.notification("notifications/roots/list_changed"))

    async def _run(self, current: Pending | None, scope: trio.CancelScope) -> None:
        """Makes a request, and after that those which are given to this task while it rests."""
        failure: Failure | None = None
        lost = True  # what is cut off while it is being judged ends with its session
        try:
            with scope:
                runner = Runner(scope)
                while current is not None:
                    if not await self._may_leave(current.method):
                        return  # it has not left, and can be made again
                    try:
                        await self._connection.send(
                            current.payload,
                            method=current.method,
                            delivery=current.delivery,
                            ident=current.ident,
                        )
                    except CallFailed as error:
                        if not current.done:
                            failure = error.failure
                            break
                    self._finish(current, None, returned=True)
                    current = None  # nothing of it is kept meanwhile
                    current = await self._runners.rest(runner)
            if failure is not None and current is not None:
                lost = await self._judge(failure, current.method)
        finally:
            # Runs when the session's nursery is cancelled, too: nothing is left without an end.
            if current is not None:
                self._finish(current, failure, lost=lost, timed_out=scope.cancelled_caught)

    async def _may_leave(self, method: str) -> bool:
        if method != "tools/call" or (self.settled.is_set() and self._wishes.are_settled):
            return True
        await self._before_call()
        return self.alive

    async def _before_call(self) -> None:
        if not self.settled.is_set():
            # A server that finds no stream for its first ping may never ask again.
            with trio.move_on_after(self._options.connect_timeout):
                await self.settled.wait()
            self.settled.set()  # later calls need not wait for it again
        await self._wishes.settled()

    async def _judge(self, failure: Failure, method: str) -> bool:
        """Loses the session if a failure means that; whether it is lost."""
        verdict = self._classify(failure)
        if verdict.lost and verdict.tentative and method != "ping":
            await self._check()
            return not self.alive
        if verdict.lost:
            self.lose(verdict, failure)
        elif method not in _OWN and eras.refuses_handshake(failure):
            await self._doubt(failure)
        return not self.alive

    async def _doubt(self, failure: Failure) -> None:
        # Another server may have come in the place of this one. A ping holds nothing that could
        # be refused for its own sake.
        try:
            await self.request("ping", time_limit=_PROBE_SECONDS)
        except CallFailed as error:
            if eras.refuses_handshake(error.failure):
                verdict = LossVerdict(True, "the server speaks another revision now", "session")
                self.lose(verdict, evolve(failure, code=eras.OTHER_REVISION))

    async def _check(self) -> None:
        # A ping holds nothing of an agent's, so a server that refuses it speaks for itself. One
        # ping serves all who doubt meanwhile.
        if self._checked is not None:
            await self._checked.wait()
            return
        self._checked = trio.Event()
        try:
            await self.probe()
        finally:
            self._checked.set()
            self._checked = None

    def _finish(
        self,
        pending: Pending,
        failure: Failure | None,
        *,
        lost: bool = False,
        timed_out: bool = False,
        returned: bool = False,
    ) -> None:
        del self._pending[pending.ident]
        if self._callers.pop(pending.ident, None) is not None:
            self._questions.end(pending)
        if not self._pending:
            self._idle.set()
        if pending.done:
            return
        if failure is not None:
            pending.fail(failure, lost=lost)
        elif timed_out:
            self._give_up(pending)
        elif returned:
            # A server that answers before it has read everything may have acted all the same.
            pending.delivery.sent = Sent.YES
            pending.fail(
                self._failed(pending, "no_answer", "the stream ended without an answer"), lost=False
            )
        else:
            pending.fail(self._gone(pending.delivery.sent), lost=True)

    def _give_up(self, pending: Pending) -> None:
        if pending.cancelled:
            code, detail, reason = "cancelled", "the agent cancelled it", pending.reason
        else:
            code, detail, reason = "timeout", "no answer within the time limit", b'"time limit"'
        pending.fail(self._failed(pending, code, detail), lost=False)
        # MCP forbids cancelling initialize; what was not sent needs no cancelling.
        if pending.method != "initialize" and pending.delivery.sent is Sent.YES:
            because = b',"reason":%b' % reason if reason else b""
            params = b'{"requestId":%b%b}' % (pending.ident, because)
            self._answers.send(jsonrpc.notification("notifications/cancelled", params))

    def _take_reply(self, message: Message, cause: bytes) -> None:
        pending = self._pending.get(message.id)
        if pending is None or not pending.resolve(message):
            self._drop("late_reply")
        elif cause != message.id and (
            self._connection.correlates or pending.delivery.sent is not Sent.YES
        ):
            # Nothing else may end the stream on which it should have come, or the wait of a request
            # for its turn on a channel. One that has left over a channel ends with its answer.
            deadline = trio.current_time() + _LINGER_SECONDS
            pending.scope.deadline = min(pending.scope.deadline, deadline)

    def _take_notification(self, message: Message, cause: bytes) -> None:
        method, params = message.method, message.params
        if method == "notifications/progress":
            self._take_progress(params)
        elif method == "notifications/cancelled":
            self._questions.withdraw(_request_id(params))
        elif method in _OF_A_REQUEST and (pending := self._cause(cause)) is not None:
            self._callers[pending.ident].notify(method, params)
        else:
            self._notify(method, params)

    def _take_progress(self, params: bytes) -> None:
        pending = self._pending.get(progress.token_of(params))
        if pending is None or not pending.token or pending.done:
            self._drop("notification")
            return
        self._callers[pending.ident].notify(
            "notifications/progress", progress.with_token(params, pending.token)
        )

    def _cause(self, cause: bytes) -> Pending | None:
        """The agent's request that a message belongs to, or None."""
        if cause:
            pending = self._pending.get(cause)
            return pending if cause in self._callers and pending and not pending.done else None
        # Over a single channel nothing says what a message belongs to; the latest is likeliest.
        return None if self._connection.correlates else self._newest()

    def _newest(self) -> Pending | None:
        idents = [ident for ident in self._callers if not self._pending[ident].done]
        return self._pending[idents[-1]] if idents else None

    def _drop(self, kind: str) -> None:
        self._metrics.dropped.labels(self._options.server, kind).inc()

    def _listen_lost(self, failure: Failure) -> None:
        verdict = self._classify(failure)
        if not verdict.lost:
            reason = f"the server refused the session's GET stream ({failure.status})"
            verdict = LossVerdict(True, reason, "listener")
        self.lose(verdict, failure)

    def _failed(self, pending: Pending, code: str, detail: str) -> Failure:
        return Failure(
            server=self._options.server,
            phase=Phase.AWAIT,
            sent=pending.delivery.sent,
            had_session=self._connection.session_id is not None,
            method=pending.method,
            code=code,
            detail=detail,
        )

    def _gone(self, sent: Sent) -> Failure:
        return Failure(
            server=self._options.server,
            phase=Phase.AWAIT,
            sent=sent,
            code="session_lost",
            detail="the session ended",
        )


def _request_id(params: bytes) -> bytes:
    try:
        return bytes(jsonrpc.members(params).get("requestId", b""))
    except jsonrpc.MalformedError:
        return b""


@asynccontextmanager
async def open_session(
    options: SessionOptions,
    connect: Callable[[Deliver], Connection],
    *,
    classify: Callable[[Failure], LossVerdict],
    metrics: Metrics,
    notify: Callable[[str, bytes], None],
    on_listen: Callable[[ListenState | None, ListenState], None],
) -> AsyncIterator[UpstreamSession]:
    """Opens a session and keeps it alive for as long as the context is open.

    Leaving the context, however that happens, ends the GET stream and every request that is on
    its way (each with its outcome), and deletes the session on the server unless it is lost; the
    deletion is bounded to two seconds and goes on under cancellation.

    Args:
        options: how the session is run.
        connect: makes the connection; gets the function that takes arriving messages.
        classify: judges failures.
        metrics: where pings and drops are counted.
        notify: takes the method and params of each notification that belongs to no request; must
            not wait.
        on_listen: told of each change of the GET stream's state.

    Yields:
        the session, after `notifications/initialized` was accepted.

    Raises:
        HandshakeError: no session could be set up.
    """
    refused: HandshakeError | None = None
    async with trio.open_nursery() as nursery:
        session = UpstreamSession(
            options, nursery, classify=classify, metrics=metrics, notify=notify
        )
        session._connection = connection = connect(session.deliver)
        session._answers = answers = Answers(
            options.server,
            connection,
            nursery,
            metrics,
            judge=session._judge,
            seconds=options.connect_timeout,
            over=session.ended.is_set,
        )
        session._questions = Questions(
            options.server,
            options.capabilities,
            answers.send,
            roots=options.roots,
            limit=options.input_timeout,
        )
        session.listener = Listener(
            connection,
            nursery,
            server=options.server,
            silence=options.silence,
            probe=session.probe,
            lost=session._listen_lost,
            changed=on_listen,
        )
        try:
            try:
                with trio.move_on_after(options.connect_timeout) as patience:
                    await connection.open(nursery)
            except CallFailed as error:
                raise HandshakeError(error.failure) from error
            if patience.cancelled_caught:
                raise HandshakeError(handshake.slow(options.server))
            session.capabilities, session.instructions = await handshake.initialize(
                connection,
                session.request,
                server=options.server,
                seconds=options.connect_timeout,
                capabilities=options.capabilities,
                version=options.client_version,
            )
            yield session
        except HandshakeError as error:
            refused = error
        finally:
            # Before the server is told, lest the stream be asked for again when it ends there.
            session.close()
            if session.lost is None:
                await _farewell(options.server, connection)  # noqa: ASYNC102 - bounded there
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


async def _farewell(server: str, connection: Connection) -> None:
    with trio.move_on_after(_CLOSE_SECONDS, shield=True):
        try:
            await connection.close()
        except CallFailed as error:
            log().info("delete_failed", server=server, failure=error.failure.summary())
