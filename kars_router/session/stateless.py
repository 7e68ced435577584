"""A session with a server of the stateless era: one async context manager with one nursery.

There is nothing on the server that could be lost; what is called a session here is the standing
stream and the requests that are on their way. Owns where messages go, and the end of each request.
Must not know generations or replays.

Source: MCP 2026-07-28 "Streamable HTTP", "Cancellation", "Caching".
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

import trio

from kars_router.errors import CallFailed, HandshakeError
from kars_router.model import Failure, LossVerdict
from kars_router.session import freshness, handshake
from kars_router.session.caller import Caller
from kars_router.session.discovery import DISCOVER, discover, other_revision
from kars_router.session.exchange import (
    Exchange,
    Surroundings,
    answered_with,
    cut_off,
    given_up,
    holds_reply,
)
from kars_router.session.judge import Judge
from kars_router.session.listener import ListenState
from kars_router.session.options import SessionOptions
from kars_router.session.pending import Pending
from kars_router.session.stamping import Stamps
from kars_router.session.standing import Standing
from kars_router.telemetry import Metrics, log
from kars_router.transports.base import Connection, Deliver, Delivery
from kars_router.transports.signals import Signal
from kars_router.wire import jsonrpc, progress
from kars_router.wire.jsonrpc import Kind, Message
from kars_router.wire.params import HeaderPlan

_CLOSE_SECONDS: Final = 2.0
_TOOLS: Final = "tools/list"
_CANCELLED: Final = "notifications/cancelled"
# What belongs to no request, even where a server sends it on the stream of one.
_OUTSIDE: Final = frozenset(
    {
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
    }
)


class StatelessSession:
    """A live session; made by `open_stateless` only. See `base.Session` for what is public.

    Attributes:
        standing: its stream of `subscriptions/listen`.
        ttl: for how long the tools may be kept, in seconds, as the server said with the last
            `tools/list`; None if it did not.
    """

    stateful = False
    pings = 0

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
        self.ttl: float | None = None
        self.poll_seconds = math.inf
        self._options = options
        self._nursery = nursery
        self._metrics = metrics
        self._notify = notify
        self._pending: dict[bytes, Pending] = {}
        self._idle = Signal()
        self._judge = Judge(self, classify)
        self._around: Surroundings
        self.standing: Standing

    @property
    def alive(self) -> bool:
        """See `Session.alive`."""
        return not self.ended.is_set()

    @property
    def session_id(self) -> str | None:
        """See `Session.session_id`; there is none."""
        return None

    @property
    def in_flight(self) -> int:
        """See `Session.in_flight`."""
        return len(self._pending)

    @property
    def settled(self) -> Signal:
        """See `Session.settled`."""
        return self.standing.settled

    @property
    def listen_state(self) -> ListenState:
        """See `Session.listen_state`."""
        return self.standing.state

    @property
    def silent_at(self) -> float:
        """See `Session.silent_at`; each stream of this era watches that itself."""
        return math.inf

    def check_silence(self) -> None:
        """See `Session.check_silence`."""

    @property
    def heard(self) -> bool:
        """See `Session.heard`."""
        return self.standing.opened > 0

    def deliver(self, message: Message, cause: bytes) -> None:
        """Takes one message from the server, and the request that it came with; never waits."""
        if self.standing.take(message, cause):
            return
        if message.kind is Kind.RESPONSE:
            self._take_reply(message, cause)
        elif message.kind is Kind.NOTIFICATION:
            self._take_notification(message, cause)
        else:
            self._drop("request")  # there are none in this era, and no way to answer one

    def submit(
        self, method: str, params: bytes, *, time_limit: float, caller: Caller | None = None
    ) -> Pending:
        """See `Session.submit`."""
        ident = self._around.stamps.next_ident()
        pending = Pending(ident, method, params)
        if not self.alive:
            pending.fail(cut_off(pending, self._options.server), lost=True)
            return pending
        self._pending[ident] = pending
        if method == "tools/call":
            self.calls += 1
        self._nursery.start_soon(self._run, pending, caller, time_limit)
        return pending

    async def request(self, method: str, params: bytes = b"", *, time_limit: float) -> bytes:
        """See `Session.request`."""
        pending = self.submit(method, params, time_limit=time_limit)
        await pending.wait()
        if pending.failure is not None:
            raise CallFailed(pending.failure)
        reply = pending.reply
        if reply is None or reply.result is None:
            error = (reply and reply.error) or b"null"
            raise CallFailed(answered_with(error, method, self._options.server))
        if method == _TOOLS:
            self.ttl = freshness.ttl_of(reply.result)
            self.note_polling()
        return reply.result

    def lose(self, verdict: LossVerdict, failure: Failure | None = None) -> None:
        """See `Session.lose`."""
        if self.ended.is_set():
            return
        self.lost, self.loss_failure = verdict, failure
        self.ended.set()

    def finish(self) -> None:
        """See `Session.finish`."""
        self.ended.set()

    async def hold(self, on_end: Callable[[], None], grace: float) -> None:
        """See `Session.hold`; the streams are the session's own tasks."""
        await self.ended.wait()
        on_end()
        await self.drain(grace)

    async def drain(self, seconds: float) -> None:
        """See `Session.drain`."""
        with trio.move_on_after(seconds):
            while self._pending:
                self._idle = Signal()
                await self._idle.wait()

    async def subscribe(self, uri: str, *, time_limit: float) -> bytes | None:
        """See `Session.subscribe`."""
        return await self.standing.subscribe(uri, time_limit)

    def unsubscribe(self, uri: str) -> None:
        """See `Session.unsubscribe`."""
        self.standing.watch(self.standing.uris - {uri})

    def restore(self, uris: frozenset[str], level: str) -> None:  # noqa: ARG002 - see below
        """See `Session.restore`; a log level goes with each request."""
        self.standing.watch(uris)

    def set_log_level(self, level: str) -> None:
        """See `Session.set_log_level`; here each request says it for itself."""

    def roots_changed(self) -> None:
        """See `Session.roots_changed`; here a server asks each time that it needs to know."""

    def abandon(self, ident: bytes) -> None:
        """Tells the server that nobody reads an answer any more; never waits.

        Over HTTP the stream of the answer was closed, and that says it.
        """
        if not self._around.connection.correlates and self.alive:
            self._nursery.start_soon(self._tell_cancelled, ident)

    async def _tell_cancelled(self, ident: bytes) -> None:
        payload = jsonrpc.notification(_CANCELLED, b'{"requestId":%b}' % ident)
        try:
            with trio.move_on_after(self._options.connect_timeout):
                await self._around.connection.send(
                    payload, method=_CANCELLED, delivery=Delivery(), control=True
                )
        except CallFailed as error:
            await self._judge.judge(error.failure)

    async def _run(self, pending: Pending, caller: Caller | None, time_limit: float) -> None:
        scope = pending.scope
        scope.deadline = trio.current_time() + time_limit
        failure: Failure | None = None
        lost = True  # what is cut off while it is being judged ends with its session
        try:
            with scope:
                try:
                    await Exchange(pending, caller, self._around).run()
                except CallFailed as error:
                    failure = error.failure
            if failure is not None and not pending.done:
                lost = await self._judge.judge(failure)
                if not lost and holds_reply(failure) and pending.method != DISCOVER:
                    pending.resolve(Message(Kind.RESPONSE, pending.ident, error=failure.rpc_error))
        finally:
            # Runs when the session's nursery is cancelled, too: nothing is left without an end.
            del self._pending[pending.ident]
            if not self._pending:
                self._idle.set()
            if failure is not None:
                pending.fail(failure, lost=lost)
            elif scope.cancelled_caught:
                pending.fail(given_up(pending, self._options.server))
            else:
                pending.fail(cut_off(pending, self._options.server), lost=True)

    # What arrives

    def _take_reply(self, message: Message, cause: bytes) -> None:
        exchange = self._around.exchanges.get(cause or message.id)
        if exchange is None or not exchange.take_reply(message):
            self._drop("late_reply")

    def _take_notification(self, message: Message, cause: bytes) -> None:
        method, params = message.method, message.params
        if method in _OUTSIDE:
            self._notify(method, params)
            return
        exchange = self._cause(cause, params) if method != _CANCELLED else None
        if exchange is None or not exchange.take_notification(method, params):
            self._drop("notification")

    def _cause(self, cause: bytes, params: bytes) -> Exchange | None:
        exchanges = self._around.exchanges
        if cause or self._around.connection.correlates:
            return exchanges.get(cause)
        # Over a single channel nothing but a token says what a message belongs to; the latest
        # request is likeliest.
        token = progress.token_of(params)
        return exchanges.get(token) if token else next(reversed(exchanges.values()), None)

    def note_polling(self) -> None:
        """Works out anew whether the tools have to be read again without a word of the server."""
        told = "tools" in self.standing.honoured.lists
        self.poll_seconds = math.inf if told else freshness.poll_after(self.ttl)

    def _drop(self, kind: str) -> None:
        self._metrics.dropped.labels(self._options.server, kind).inc()


@asynccontextmanager
async def open_stateless(
    options: SessionOptions,
    connect: Callable[[Deliver], Connection],
    *,
    classify: Callable[[Failure], LossVerdict],
    metrics: Metrics,
    notify: Callable[[str, bytes], None],
    on_listen: Callable[[ListenState | None, ListenState], None],
    plans: Callable[[str], HeaderPlan | None],
    relist: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[StatelessSession]:
    """Opens a session and keeps it for as long as the context is open.

    Leaving the context, however that happens, ends the standing stream and every request that is
    on its way, each with its outcome. The server need not be told, unless it is one that lives for
    this session only: that is bounded to two seconds and goes on under cancellation.

    Args:
        options: how the session is run.
        connect: makes the connection; gets the function that takes arriving messages.
        classify: judges failures that are no refusals.
        metrics: where drops are counted.
        notify: takes the method and params of each notification that belongs to no request; must
            not wait.
        on_listen: told of each change of the standing stream's state.
        plans: which arguments of a tool, by its own name, are repeated in headers; None if none.
        relist: reads the tools again when the server says that these are the wrong headers; None
            leaves the call refused.

    Yields:
        the session, after the server has said what it can do.

    Raises:
        HandshakeError: no session could be set up; the failure says what the server answered.
    """
    refused: HandshakeError | None = None
    async with trio.open_nursery() as nursery:
        session = StatelessSession(
            options, nursery, classify=classify, metrics=metrics, notify=notify
        )
        connection = connect(session.deliver)
        stamps = Stamps(connection, options.client_version, plans)
        session._around = Surroundings(
            server=options.server,
            connection=connection,
            stamps=stamps,
            exchanges={},
            abandon=session.abandon,
            relist=relist,
            input_timeout=options.input_timeout,
        )

        def changed(old: ListenState | None, new: ListenState) -> None:
            session.note_polling()
            on_listen(old, new)

        session.standing = Standing(
            connection,
            stamps,
            server=options.server,
            patience=options.connect_timeout,
            silence=options.silence,
            abandon=session.abandon,
            doubt=session._judge.judge,
            notify=notify,
            changed=changed,
        )
        try:
            await _open(options, connection, nursery)
            session.capabilities, session.instructions = await discover(
                connection,
                session.request,
                server=options.server,
                seconds=options.connect_timeout,
            )
            nursery.start_soon(session.standing.run, session.capabilities)
            yield session
        except HandshakeError as error:
            refused = error
        finally:
            session.ended.set()
            session.standing.close()
            if session.lost is None:
                await _farewell(options.server, connection)  # noqa: ASYNC102 - bounded there
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused


async def _open(options: SessionOptions, connection: Connection, nursery: trio.Nursery) -> None:
    correlated = connection.correlates
    try:
        with trio.move_on_after(options.connect_timeout) as patience:
            await connection.open(nursery)
    except CallFailed as error:
        raise HandshakeError(error.failure) from error
    if patience.cancelled_caught:
        raise HandshakeError(handshake.slow(options.server))
    if correlated and not connection.correlates:
        # A URL that turned out to speak HTTP+SSE, whose servers need not even refuse a probe.
        raise HandshakeError(other_revision(options.server, "HTTP+SSE is of the handshake era"))


async def _farewell(server: str, connection: Connection) -> None:
    with trio.move_on_after(_CLOSE_SECONDS, shield=True):
        try:
            await connection.close()
        except CallFailed as error:
            log().info("close_failed", server=server, failure=error.failure.summary())
