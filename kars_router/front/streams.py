"""Event streams towards the agent: the GET stream, and a POST's answer that is more than a message.

Owns keep-alive comments, the beginning and the end of a stream. Must not know where messages come
from.

Source: MCP 2025-11-25 "Sending Messages to the Server", "Listening for Messages from the Server",
"Resumability and Redelivery"; WHATWG HTML, section 9.2.7 (a comment every 15 seconds keeps proxies
from closing a stream).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from attrs import define, field

from kars_router.front.agents import AgentSession
from kars_router.front.attendance import Attendance
from kars_router.front.exchange import (
    JSON,
    LAST_EVENT_ID_HEADER,
    STREAM_HEADERS,
    Exchange,
)
from kars_router.front.replay import EventStream, Reader
from kars_router.wire import sse

KEEPALIVE_SECONDS: Final = 15.0
# Clients of older revisions choke on an event without data.
_PRIMING_SINCE: Final = "2025-11-25"

Undo = Callable[[], None]


@define(eq=False)
class Outlet:
    """Where something can be said while a POST is being answered.

    The stream is made when there is something to say, or when the answer takes long; most requests
    have neither. Then there is nobody but the one task that makes the answer, and the peer's
    leaving goes unnoticed until somebody asks.

    Attributes:
        exchange: the POST.
        session: the agent's session.
        attendance: starts the task that watches the peer, and writes the stream if there is one.
        since: trio's clock when the request was complete, in seconds.
        undo: what is to be taken back if the answer does not reach the agent.
        over: whether all was said.
        stream: what the answer has become a part of.
    """

    exchange: Exchange
    session: AgentSession
    attendance: Attendance
    since: float = field(factory=trio.current_time)
    undo: list[Undo] = field(factory=list)
    over: bool = False
    stream: EventStream | None = None
    _reader: Reader | None = None
    _attending: _Attending | None = None

    @property
    def audible(self) -> bool:
        """Whether somebody reads what is said, or may soon come back to it."""
        return not self.exchange.gone if self.stream is None else self.stream.audible

    def open(self) -> EventStream | None:
        """The stream to say something on; None if nobody ever will be there. Never waits."""
        if self.stream is None and not self.over and not self.exchange.gone:
            if self._attending is None:
                if not self.attendance.attend(self):
                    return None
                self._attending = _Attending()
            self.stream = self.session.log.open()
            self._reader = self.stream.attach()
            self._attending.turn.set()
        return self.stream

    async def finish(self, answer: bytes | None) -> None:
        """Says how the work has ended; returns once that, and all before it, is written.

        Args:
            answer: the JSON-RPC response; None if there is none.
        """
        self.over = True
        self.attendance.leave(self)
        if self.stream is None:
            await self._finish_plainly(answer)
            return
        if answer is not None:
            self.stream.put(answer, on_lost=self.take_back)
        self.stream.end()
        if self._attending is not None:
            await self._attending.done.wait()
            if self._attending.error is not None:
                raise self._attending.error

    async def _finish_plainly(self, answer: bytes | None) -> None:
        if answer is None:
            await self.exchange.start(200, STREAM_HEADERS)
            await self.exchange.finish()
        elif not self.undo:
            await self.exchange.respond(200, answer, (JSON,))
        else:
            if self._attending is not None:
                # It may be about to learn that the peer has left; only one can ask.
                self._attending.scope.cancel()
                await self._attending.done.wait()
            if await self.exchange.deliver(200, answer, (JSON,)):
                self.undo.clear()

    async def attend(self) -> None:
        """See `Attended.attend`: watches the peer, and writes the stream once there is one."""
        attending = self._attending
        if attending is None:
            if self.over:
                return
            self._attending = attending = _Attending()
        try:
            with attending.scope:
                await self._attend(attending)
        except Exception as error:  # noqa: BLE001 - raised again by the task of the request
            attending.error = error
        finally:
            attending.done.set()

    async def _attend(self, attending: _Attending) -> None:
        if await self.exchange.has_left():
            if self.stream is not None and self._reader is not None:
                self.stream.detach(self._reader)
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, self.exchange, nursery.cancel_scope)
            with trio.move_on_at(self.since + KEEPALIVE_SECONDS):
                await attending.turn.wait()
            stream = self.open()
            if stream is not None and self._reader is not None:
                try:
                    await self.exchange.start(200, STREAM_HEADERS)
                    await self.exchange.write(_opening(self.session, stream))
                    await follow(self.exchange, stream, self._reader)
                finally:
                    stream.detach(self._reader)
            nursery.cancel_scope.cancel()

    def close(self) -> None:
        """Leaves nothing behind that waits for more to be said."""
        if not self.over:
            self.attendance.leave(self)
        if self._attending is not None:
            self._attending.scope.cancel()
        if self.stream is None:
            self.take_back()
        elif not self.over:
            self.stream.close()
        self.over = True

    def take_back(self) -> None:
        """Undoes what depended on the answer's arrival."""
        while self.undo:
            self.undo.pop(0)()


@define(eq=False)
class _Attending:
    """The task that attends to an outlet."""

    scope: trio.CancelScope = field(factory=trio.CancelScope)
    turn: trio.Event = field(factory=trio.Event)
    done: trio.Event = field(factory=trio.Event)
    error: Exception | None = None


async def answer(
    exchange: Exchange,
    session: AgentSession,
    attendance: Attendance,
    work: Callable[[Outlet], Awaitable[bytes | None]],
) -> None:
    """Answers a POST with what `work` returns.

    Plain JSON if that takes less than fifteen seconds and nothing has to be said before; else an
    event stream, with comments until the answer is there. The agent's leaving does not stop the
    work. If it knows an event of the stream it may come back, and the answer is kept for that, also
    after it was written: the connection may break before the agent has read it.

    Args:
        exchange: the request, its body read.
        session: whose request it is.
        attendance: looks after the agent while the work takes its time.
        work: makes the JSON-RPC response, or None if there is nothing to say; takes the way to
            the request's own stream.
    """
    outlet = Outlet(exchange, session, attendance)
    attendance.enter(outlet)
    try:
        await outlet.finish(await work(outlet))
    finally:
        outlet.close()


async def serve_get(exchange: Exchange, session: AgentSession) -> None:
    """Holds an agent's GET stream until the agent leaves, its session ends, or the router stops.

    It goes on with the stream whose event the agent names, as far as that is known; else what
    waited for a stream is sent first. Cancellation cuts the stream off.
    """
    stream, reader = session.listen(exchange.header(LAST_EVENT_ID_HEADER))
    try:
        await exchange.start(200, STREAM_HEADERS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, exchange, nursery.cancel_scope)
            await exchange.write(_opening(session, stream))
            await follow(exchange, stream, reader)
            nursery.cancel_scope.cancel()
    finally:
        session.leave(stream, reader)
        session.touched = trio.current_time()


async def follow(exchange: Exchange, stream: EventStream, reader: Reader) -> None:
    """Writes a stream's events as they come, until its end or until the reader is closed.

    Somebody else has to keep `exchange.gone` right meanwhile.
    """
    while not reader.closed:
        event = stream.take(reader)
        if event is not None:
            await exchange.write(sse.encode(event.data, ident=event.ident))
        elif stream.ended:
            break
        else:
            with trio.move_on_after(KEEPALIVE_SECONDS) as quiet:
                await reader.wait()
            if quiet.cancelled_caught:
                await exchange.write(sse.KEEPALIVE)
    # Asked before the end is sent: servers also report a finished exchange as a disconnect.
    if not (stream.standing or await exchange.glance() or reader.closed):
        stream.complete()
    await exchange.finish()


def _opening(session: AgentSession, stream: EventStream) -> bytes:
    """What is sent at once: clients and proxies report a stream as open only with its first bytes.

    The event without data tells the agent how to come back; one that has come back knows.
    """
    if stream.told or session.ticket.revision < _PRIMING_SINCE:
        return sse.KEEPALIVE
    stream.told = True
    return f"id: {stream.ident(0)}\ndata: \n\n".encode()


async def _watch(exchange: Exchange, scope: trio.CancelScope) -> None:
    await exchange.note_disconnect()
    scope.cancel()
