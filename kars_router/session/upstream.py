"""One upstream session: one async context manager with one nursery, and nothing outlives it.

Owns the handshake, the ids on this connection, the calls that are on their way and the answers to
the server's requests. A reader never waits: whatever arrives is dealt with where it is read. Must
not know generations, agents or replays.

Source: MCP 2025-11-25 "Lifecycle", "Ping"; JSON-RPC 2.0.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import trio
from attrs import frozen

from kars_router.errors import CallFailed, HandshakeError
from kars_router.model import Failure, LossVerdict, Phase, Sent
from kars_router.session.listener import Listener, ListenState
from kars_router.session.pending import Pending
from kars_router.telemetry import Metrics, log
from kars_router.transports.base import Connection, Delivery
from kars_router.wire import eras, jsonrpc
from kars_router.wire.jsonrpc import Kind, Message

# A server that floods us with requests must not grow our memory; the rest is dropped, counted.
_MAX_ANSWERS: Final = 64
_CLOSE_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 5.0
# After its response has come a stream should end by itself; then its connection can be kept.
_LINGER_SECONDS: Final = 1.0


@frozen(kw_only=True)
class SessionOptions:
    """How one server's sessions are run; all times in seconds.

    Attributes:
        connect_timeout: for the handshake, for each control message, and for how long the first
            call waits for the GET stream to open.
        silence: how long a GET stream may be silent before the session is probed.
        client_version: the router's version, for `clientInfo`.
    """

    server: str
    connect_timeout: float = 5.0
    silence: float = 600.0
    client_version: str = "0"


class UpstreamSession:
    """A live session; made by `open_session` only.

    Attributes:
        initialized: the server's `initialize` result, decoded.
        ended: set once the session is lost or closed.
        lost: why it was lost, or None.
        listener: its GET stream.
    """

    def __init__(
        self,
        options: SessionOptions,
        nursery: trio.Nursery,
        *,
        classify: Callable[[Failure], LossVerdict],
        metrics: Metrics,
        on_notification: Callable[[Message], None],
    ) -> None:
        self.initialized: dict[str, Any] = {}
        self.ended = trio.Event()
        self.lost: LossVerdict | None = None
        self.loss_failure: Failure | None = None
        self.pings = 0
        self.calls = 0
        self._options = options
        self._nursery = nursery
        self._classify = classify
        self._metrics = metrics
        self._on_notification = on_notification
        self._ids = itertools.count()
        self._pending: dict[bytes, Pending] = {}
        self._scopes: dict[bytes, trio.CancelScope] = {}
        self._answers = 0
        self._checked: trio.Event | None = None
        self._idle = trio.Event()
        self._connection: Connection
        self.listener: Listener

    @property
    def alive(self) -> bool:
        """Whether new calls may be made."""
        return not self.ended.is_set()

    @property
    def session_id(self) -> str | None:
        """The server's id for this session; never shown to an agent."""
        return self._connection.session_id

    @property
    def in_flight(self) -> int:
        """How many requests are on their way."""
        return len(self._pending)

    def deliver(self, message: Message) -> None:
        """Takes one message from the server; never waits."""
        if message.kind is Kind.RESPONSE:
            self._take_reply(message)
        elif message.kind is Kind.REQUEST:
            self._take_request(message)
        else:
            self._on_notification(message)

    def submit(self, method: str, params: bytes, *, time_limit: float) -> Pending:
        """Starts one request in the session's nursery.

        Args:
            method: its method.
            params: its params as JSON, or empty.
            time_limit: seconds until it is given up.

        Returns:
            the request on its way; the caller waits for it, or leaves it to its end.
        """
        ident = b"%d" % next(self._ids)
        pending = Pending(ident, method, jsonrpc.request(ident, method, params))
        if not self.alive:
            pending.fail(self._gone(Sent.NO), lost=True)
            return pending
        self._pending[ident] = pending
        self._scopes[ident] = trio.CancelScope()
        if method == "tools/call":
            self.calls += 1
        self._nursery.start_soon(self._run, pending, time_limit)
        return pending

    async def request(self, method: str, params: bytes = b"", *, time_limit: float) -> bytes:
        """Makes one request of the router's own and waits for its result.

        Returns:
            the result as JSON.

        Raises:
            CallFailed: it failed, or the server answered with an error.
        """
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
        """Marks the session as lost; the first reason counts."""
        if self.ended.is_set():
            return
        self.lost, self.loss_failure = verdict, failure
        self.ended.set()

    def finish(self) -> None:
        """Ends the session although nothing is wrong with it; the server is told."""
        self.ended.set()

    async def drain(self, seconds: float) -> None:
        """Lets requests that are on their way end by themselves, for at most so many seconds."""
        with trio.move_on_after(seconds):
            while self._pending:
                self._idle = trio.Event()
                await self._idle.wait()

    async def probe(self) -> bool:
        """Pings the server; whether it answered. A failure is judged like any other."""
        try:
            await self.request("ping", time_limit=_PROBE_SECONDS)
        except CallFailed as error:
            return error.failure.code == "rpc_error"
        return True

    async def _handshake(self) -> None:
        params = jsonrpc.encode(
            {
                "protocolVersion": eras.LATEST_HANDSHAKE,
                "capabilities": {},
                "clientInfo": {"name": "kars-router", "version": self._options.client_version},
            }
        )
        try:
            result = await self.request(
                "initialize", params, time_limit=self._options.connect_timeout
            )
            answer = jsonrpc.decode(result)
        except CallFailed as error:
            raise HandshakeError(error.failure) from error
        except jsonrpc.MalformedError as error:
            raise HandshakeError(self._protocol(str(error))) from error
        revision = answer.get("protocolVersion") if isinstance(answer, dict) else None
        if not isinstance(revision, str) or not eras.is_usable(revision):
            raise HandshakeError(self._protocol(f"the server offers revision {revision!r:.40}"))
        self.initialized = answer
        self._connection.revision = revision
        try:
            with trio.fail_after(self._options.connect_timeout):
                await self._connection.send(
                    jsonrpc.notification("notifications/initialized"),
                    method="notifications/initialized",
                    delivery=Delivery(),
                    control=True,
                )
        except CallFailed as error:
            raise HandshakeError(error.failure) from error
        except trio.TooSlowError as error:
            raise HandshakeError(
                self._protocol("no answer to notifications/initialized")
            ) from error

    async def _run(self, pending: Pending, time_limit: float) -> None:
        scope = self._scopes[pending.ident]
        scope.deadline = trio.current_time() + time_limit
        failure: Failure | None = None
        returned = False
        lost = True  # what is cut off while it is being judged ends with its session
        try:
            with scope:
                # A server that finds no stream for its first ping may never ask again.
                if pending.method == "tools/call":
                    with trio.move_on_after(self._options.connect_timeout):
                        await self.listener.settled.wait()
                    self.listener.settled.set()  # later calls need not wait for it again
                try:
                    await self._connection.send(
                        pending.payload, method=pending.method, delivery=pending.delivery
                    )
                except CallFailed as error:
                    failure = error.failure
                returned = True
            if failure is not None and not pending.done:
                lost = await self._judge(failure, pending.method)
        finally:
            # Runs when the session's nursery is cancelled, too: nothing is left without an end.
            timed_out = scope.cancelled_caught
            self._finish(pending, failure, lost=lost, timed_out=timed_out, returned=returned)

    async def _judge(self, failure: Failure, method: str) -> bool:
        """Loses the session if a failure means that; whether it is lost."""
        verdict = self._classify(failure)
        if verdict.lost and verdict.tentative and method != "ping":
            await self._check()
            return not self.alive
        if verdict.lost:
            self.lose(verdict, failure)
        return verdict.lost

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
        lost: bool,
        timed_out: bool,
        returned: bool,
    ) -> None:
        del self._pending[pending.ident], self._scopes[pending.ident]
        if not self._pending:
            self._idle.set()
        if pending.done:
            return
        if failure is not None:
            pending.fail(failure, lost=lost)
        elif timed_out:
            pending.fail(
                self._failed(pending, "timeout", "no answer within the time limit"), lost=False
            )
            # MCP forbids cancelling initialize; what was not sent needs no cancelling.
            if pending.method != "initialize" and pending.delivery.sent is Sent.YES:
                self._answer(
                    jsonrpc.notification(
                        "notifications/cancelled",
                        b'{"requestId":%b,"reason":"time limit"}' % pending.ident,
                    ),
                    None,
                )
        elif returned:
            # A server that answers before it has read everything may have acted all the same.
            pending.delivery.sent = Sent.YES
            pending.fail(
                self._failed(pending, "no_answer", "the stream ended without an answer"), lost=False
            )
        else:
            pending.fail(self._gone(pending.delivery.sent), lost=True)

    def _take_reply(self, message: Message) -> None:
        pending = self._pending.get(message.id)
        if pending is None or not pending.resolve(message):
            self._drop("late_reply")
            return
        scope = self._scopes[message.id]
        scope.deadline = min(scope.deadline, trio.current_time() + _LINGER_SECONDS)

    def _take_request(self, message: Message) -> None:
        if message.method == "ping":
            self.pings += 1
            self._answer(jsonrpc.result(message.id, b"{}"), trio.current_time())
            return
        text = f"{message.method[:64]} is not offered by this client"
        self._answer(
            jsonrpc.error(message.id, jsonrpc.error_object(jsonrpc.METHOD_NOT_FOUND, text)), None
        )

    def _answer(self, payload: bytes, ping_at: float | None) -> None:
        if self._answers >= _MAX_ANSWERS or self.ended.is_set():
            self._drop("request")
            return
        self._answers += 1
        self._nursery.start_soon(self._send_answer, payload, ping_at)

    async def _send_answer(self, payload: bytes, ping_at: float | None) -> None:
        name = self._options.server
        outcome = "timeout"
        try:
            with trio.move_on_after(self._options.connect_timeout):
                await self._connection.send(payload, method="", delivery=Delivery(), control=True)
                outcome = "answered"
        except CallFailed as error:
            outcome = "failed"
            log().warning("answer_failed", server=name, failure=error.failure.summary())
            await self._judge(error.failure, "")
        finally:
            self._answers -= 1
        if ping_at is not None:
            self._metrics.pings.labels(name, outcome).inc()
            if outcome == "answered":
                self._metrics.pong_seconds.labels(name).observe(trio.current_time() - ping_at)

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

    def _protocol(self, detail: str) -> Failure:
        return Failure(
            server=self._options.server,
            phase=Phase.HANDSHAKE,
            sent=Sent.YES,
            code="protocol",
            detail=detail,
        )

    async def _farewell(self) -> None:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            try:
                await self._connection.close()
            except CallFailed as error:
                log().info(
                    "delete_failed", server=self._options.server, failure=error.failure.summary()
                )


@asynccontextmanager
async def open_session(
    options: SessionOptions,
    connect: Callable[[Callable[[Message], None]], Connection],
    *,
    classify: Callable[[Failure], LossVerdict],
    metrics: Metrics,
    on_notification: Callable[[Message], None],
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
        on_notification: takes the server's notifications; must not wait.
        on_listen: told of each change of the GET stream's state.

    Yields:
        the session, after `notifications/initialized` was accepted.

    Raises:
        HandshakeError: no session could be set up.
    """
    refused: HandshakeError | None = None
    async with trio.open_nursery() as nursery:
        session = UpstreamSession(
            options, nursery, classify=classify, metrics=metrics, on_notification=on_notification
        )
        session._connection = connection = connect(session.deliver)
        session.listener = Listener(
            connection,
            server=options.server,
            silence=options.silence,
            probe=session.probe,
            lost=session._listen_lost,
            changed=on_listen,
        )
        try:
            await session._handshake()
            nursery.start_soon(session.listener.run)
            yield session
        except HandshakeError as error:
            refused = error
        finally:
            session.ended.set()
            # Before the server is told, lest the stream be asked for again when it ends there.
            session.listener.close()
            if session.lost is None and connection.session_id is not None:
                await session._farewell()  # noqa: ASYNC102 - shielded and bounded there
            nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused
