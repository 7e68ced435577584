"""What transports share that carry a whole session over one channel: WebSocket, stdio, HTTP+SSE.

Owns who waits for which answer, the order of writing, and what the end of the channel means for
both. Must not know bytes, frames or processes: subclasses move messages.

A channel does not say on whose behalf the server speaks, so everything is delivered without a
cause. It cannot be taken up again, so its end is the session's.
"""

from __future__ import annotations

import abc
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import trio
from attrs import define, field

from kars_router.errors import CallFailed
from kars_router.loss import CHANNEL_CLOSED
from kars_router.model import Failure, Phase, Sent
from kars_router.telemetry import log
from kars_router.transports.base import Deliver, Delivery, Position, Told
from kars_router.transports.redaction import SHORTEST, redact
from kars_router.transports.signals import Signal
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Kind, Message

_FAREWELL_SECONDS: Final = 1.0
# Whoever reads knows best why a channel has ended; whoever writes merely notices that it has.
_REASON_SECONDS: Final = 0.5
_CLOSED_HERE: Final = "it was closed by the router"

# Where the id of a response stands in the first or the last bytes of a message. As the last
# member it is followed by the one brace that ends the message, so it is not one deeper inside.
_ID: Final = rb'"id"\s*:\s*(-?\d+|"[^"\\]*")\s*'
_ID_FIRST: Final = re.compile(rb'\s*{\s*(?:"jsonrpc"\s*:\s*"2.0"\s*,\s*)?' + _ID + b",")
_ID_LAST: Final = re.compile(rb"[,{]\s*" + _ID + rb"}\s*\Z")


@define(eq=False)
class Waiter:
    """One message on its way.

    Attributes:
        delivery: how much of it the channel has taken.
        method: its method.
        trouble: phase, code and detail of what is wrong, if anything is.
        done: set once nothing is to be waited for any more: it is answered, or in trouble.
    """

    delivery: Delivery
    method: str
    trouble: tuple[Phase, str, str] | None = None
    done: trio.Event = field(factory=trio.Event)

    def fail(self, phase: Phase, code: str, detail: str) -> None:
        """Ends the waiting; what came first counts."""
        if not self.done.is_set():
            self.trouble = phase, code, detail
            self.done.set()


class Channel(abc.ABC):
    """One session over one channel; see `base.Connection` for what is public.

    Args:
        server: the server's configured name, for failures.
        deliver: takes every message that arrives, at once and without waiting.
        connect_timeout: seconds for opening, and for writing one message.
        secrets: what must not appear in failures and in the log.
    """

    def __init__(
        self,
        *,
        server: str,
        deliver: Deliver,
        connect_timeout: float = 5.0,
        secrets: Iterable[str] = (),
    ) -> None:
        self.session_id: str | None = None
        self.revision: str | None = None
        self.correlates = False
        self._server = server
        self._deliver = deliver
        self._patience = connect_timeout
        self._hidden = tuple({s for s in secrets if len(s) >= SHORTEST})
        self._under_way: list[Waiter] = []
        self._waiting: dict[bytes, Waiter] = {}
        self._scope = trio.CancelScope()
        self._over = Signal()
        self._gone = Signal()
        self._opened = False
        self._started: Callable[[], None] | None = None
        self._why = ""
        self._position = Position()
        self._malformed = 0

    async def open(self, nursery: trio.Nursery) -> None:
        """See `Connection.open`."""
        self._opened = True
        try:
            with trio.fail_after(self._patience):
                await nursery.start(self._live)
        except trio.TooSlowError as error:
            text = f"it did not open within {self._patience:g} s"
            raise self.failed(Phase.CONNECT, text, code="connect") from error

    async def send(
        self,
        payload: bytes,
        *,
        method: str,
        delivery: Delivery,
        ident: bytes = b"",
        control: bool = False,
        headers: Mapping[str, str] | None = None,  # noqa: ARG002 - there are none in a channel
    ) -> None:
        """See `Connection.send`."""
        delivery.sent = Sent.NO
        waiter = Waiter(delivery, method)
        if self._over.is_set():
            raise self._lost(waiter)
        self._under_way.append(waiter)
        if ident:
            self._waiting[ident] = waiter
        try:
            await self._transmit(payload, waiter, control=control)
            if ident:
                await waiter.done.wait()
        except CallFailed:
            # A server may answer, and hang up, before it has taken the whole message.
            if not waiter.done.is_set() or waiter.trouble is not None:
                raise
        finally:
            self._under_way.remove(waiter)
            if self._waiting.get(ident) is waiter:
                del self._waiting[ident]
        if waiter.trouble is not None:
            raise self._of(waiter, *waiter.trouble)

    def send_now(self, payload: bytes, told: Told) -> bool:  # noqa: ARG002 - for others
        """See `Connection.send_now`; not every channel can."""
        return False

    async def listen(self, position: Position, on_open: Callable[[], None]) -> None:
        """See `Connection.listen`. It ends with the channel only."""
        position.heard = trio.current_time()
        self._position = position
        if not self._over.is_set():
            on_open()
        await self._over.wait()
        raise self.failed(Phase.LISTEN, self._why, method="listen", code=CHANNEL_CLOSED)

    async def close(self) -> None:
        """See `Connection.close`. Idempotent; cancelled, it leaves the rest to the nursery."""
        if not self._opened:
            return
        try:
            with trio.move_on_after(_FAREWELL_SECONDS):
                await self._farewell()
        finally:
            self._scope.cancel()
        await self._gone.wait()

    @abc.abstractmethod
    async def _run(self, opened: Callable[[], None]) -> str:
        """Connects, calls `opened`, hands all that comes to `take`, until the channel ends.

        Returns:
            why it ended, as one clause.

        Raises:
            CallFailed: it could not be opened.
        """

    @abc.abstractmethod
    async def _transmit(self, payload: bytes, waiter: Waiter, *, control: bool) -> None:
        """Sends one message; returns once the server has it, and knows then how much has left.

        Raises:
            CallFailed: it could not be sent.
        """

    @abc.abstractmethod
    async def _release(self) -> None:
        """Lets go of everything, also of half an opening; shielded and bounded."""

    async def _farewell(self) -> None:  # noqa: B027 - not every transport has a word for it
        """Says goodbye."""

    async def _live(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC128, RUF100
        self._started = task_status.started
        del task_status  # it holds on to a nursery
        try:
            with self._scope:
                self.end(await self._run(self._note_open))
        finally:
            self.end(_CLOSED_HERE)
            await self._release()  # noqa: ASYNC102 - shielded and bounded there
            if self._malformed > 1:
                log().warning("malformed_messages", server=self._server, count=self._malformed)
            self._gone.set()

    def _note_open(self) -> None:
        if self._started is not None:
            self._started()
            self._started = None

    def end(self, why: str) -> None:
        """Notes that the channel is over: nobody gets an answer any more; the first reason counts.

        Args:
            why: one clause.
        """
        if self._over.is_set():
            return
        self._why = f"the channel to the server ended: {why}"
        self._over.set()
        for waiter in self._under_way:
            waiter.fail(Phase.AWAIT, CHANNEL_CLOSED, self._why)

    def hear(self) -> None:
        """Notes that the server gives signs of life."""
        self._position.heard = trio.current_time()

    def take(self, data: bytes) -> None:
        """Takes what the server has written as one message, or as a batch; never waits.

        What is no message is logged and passed over, as it says nothing about the ones after it.
        """
        try:
            parts = jsonrpc.split_batch(data) if jsonrpc.is_batch(data) else [data]
        except jsonrpc.MalformedError as error:
            self._pass_over(error)
            return
        for part in parts:
            try:
                message = jsonrpc.parse(part)
            except jsonrpc.MalformedError as error:
                self._pass_over(error)
                continue
            self.take_message(message)

    def take_message(self, message: Message) -> None:
        """Takes one message of the server; never waits."""
        waiter = self._waiting.get(message.id) if message.kind is Kind.RESPONSE else None
        if waiter is not None:
            waiter.delivery.heard = trio.current_time()
        self._deliver(message, b"")
        if waiter is not None:
            waiter.done.set()

    def refuse(self, first: bytes, last: bytes, limit: int) -> None:
        """Passes over a message that is too large, and fails the call that it would have answered.

        Args:
            first: its first bytes.
            last: its last bytes.
            limit: the most bytes of a message.
        """
        text = f"a message exceeds {limit} bytes"
        log().warning("message_too_large", server=self._server, limit=limit)
        found = _ID_FIRST.match(first) or _ID_LAST.search(last)
        waiter = self._waiting.get(found[1]) if found else None
        if waiter is not None:
            waiter.fail(Phase.STREAM, "too_large", text)

    def failed(
        self,
        phase: Phase,
        detail: str,
        *,
        code: str,
        method: str = "",
        sent: Sent = Sent.NO,
        status: int | None = None,
        body: str = "",
    ) -> CallFailed:
        """A failure of this channel, with nothing secret in it."""
        return CallFailed(
            Failure(
                server=self._server,
                phase=phase,
                sent=sent,
                status=status,
                body=redact(body, self._secrets()),
                method=method,
                detail=redact(detail, self._secrets()),
                code=code,
            )
        )

    def _secrets(self) -> frozenset[str]:
        return frozenset(self._hidden)

    def _pass_over(self, error: jsonrpc.MalformedError) -> None:
        self._malformed += 1
        if self._malformed == 1:  # a server may send nothing else
            log().warning("malformed_message", server=self._server, error=str(error))
        waiter = self._waiting.get(error.id) if error.id else None
        if waiter is not None:
            waiter.fail(Phase.STREAM, "protocol", f"the server sent {error}")

    def _lost(self, waiter: Waiter) -> CallFailed:
        return self._of(waiter, Phase.AWAIT, CHANNEL_CLOSED, self._why)

    def _of(self, waiter: Waiter, phase: Phase, code: str, detail: str) -> CallFailed:
        # Not before the transmission is over: only then is it known how much has left.
        sent = waiter.delivery.sent
        if phase is Phase.STREAM:
            sent = Sent.YES  # it was answered, so it had come
        elif sent is not Sent.YES:
            phase = Phase.SEND
        return self.failed(phase, detail, code=code, method=waiter.method, sent=sent)


class ChannelEnded(Exception):
    """The channel is over; the text says why, as one clause."""


class StreamChannel(Channel):
    """A channel that writes its messages into one stream.

    They go out one after the other, each within the connect timeout, and once begun each goes out
    whole, whoever is cancelled meanwhile: half a message would spoil all that follow. None waits
    for more than its turn, so that a pong never waits for the answer to a call.

    Attributes:
        droppable: whether a message of which nothing has left can be given up without harm to the
            ones after it.
    """

    droppable = False

    def __init__(
        self,
        *,
        server: str,
        deliver: Deliver,
        connect_timeout: float = 5.0,
        secrets: Iterable[str] = (),
    ) -> None:
        super().__init__(
            server=server, deliver=deliver, connect_timeout=connect_timeout, secrets=secrets
        )
        # Made when somebody has to wait: most messages go out at once.
        self._turn: trio.Lock | None = None
        self._writing: trio.CancelScope | None = None

    def _write_now(self, payload: bytes, delivery: Delivery | None) -> bool:  # noqa: ARG002 - for others
        """Writes one message if that takes no waiting, whole or not at all; whether it did.

        Called while nobody writes. If it has written, `delivery.sent` is filled in. There is none
        where nobody will ask what has become of the message.
        """
        return False

    @abc.abstractmethod
    async def _write(self, payload: bytes, delivery: Delivery) -> None:
        """Writes one message and fills in `delivery.sent`; nobody else writes meanwhile.

        Raises:
            ChannelEnded: it cannot be written.
        """

    def send_now(self, payload: bytes, told: Told) -> bool:
        """See `Connection.send_now`."""
        if self._over.is_set() or (self._turn is not None and self._turn.locked()):
            return False
        if sent := self._write_now(payload, None):
            told(None)
        return sent

    def end(self, why: str) -> None:
        """See `Channel.end`."""
        super().end(why)
        if self._writing is not None:
            self._writing.cancel()

    async def _transmit(self, payload: bytes, waiter: Waiter, *, control: bool) -> None:  # noqa: ARG002 - all take turns
        delivery = waiter.delivery
        await trio.lowlevel.checkpoint_if_cancelled()
        turn = self._turn
        if (turn is None or not turn.locked()) and self._write_now(payload, delivery):
            return
        if turn is None:
            turn = self._turn = trio.Lock()
        async with turn:
            if self._over.is_set():
                raise self._lost(waiter)
            broken = ""
            with trio.move_on_after(self._patience, shield=True) as writing:
                self._writing = writing
                try:
                    await self._write(payload, delivery)
                except ChannelEnded as error:
                    broken = str(error)
            self._writing = None
            slow = writing.cancelled_caught and not self._over.is_set()
            if slow and self.droppable and delivery.sent is Sent.NO:
                text = f"the server takes no message for {self._patience:g} s"
                raise self.failed(Phase.SEND, text, method=waiter.method, code="busy")
            if slow:
                self.end(f"a message could not be written within {self._patience:g} s")
        if broken:
            with trio.move_on_after(_REASON_SECONDS):
                await self._over.wait()
            self.end(broken)
        if broken or slow:
            self._scope.cancel()
        if delivery.sent is not Sent.YES:
            # Whoever is cancelled hears of that first; it was only put off.
            await trio.lowlevel.checkpoint_if_cancelled()
            raise self._lost(waiter)
