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
from kars_router.front.exchange import JSON, STREAM_HEADERS, Exchange
from kars_router.front.replay import EventStream, Reader
from kars_router.wire import eras, sse

KEEPALIVE_SECONDS: Final = 15.0
# Clients of older revisions choke on an event without data.
_PRIMING_SINCE: Final = "2025-11-25"

Undo = Callable[[], None]


@define(eq=False)
class Outlet:
    """Where something can be said while a POST is being answered.

    The stream is made when there is something to say, for most requests have nothing.

    Attributes:
        exchange: the POST.
        session: the agent's session.
        undo: what is to be taken back if the answer does not reach the agent.
        answer: the JSON-RPC response; None if there is none, or not yet.
        over: whether all was said.
        stream: what the answer has become a part of.
    """

    exchange: Exchange
    session: AgentSession
    undo: list[Undo] = field(factory=list)
    answer: bytes | None = None
    over: bool = False
    stream: EventStream | None = None
    _reader: Reader | None = None
    _writing: trio.CancelScope = field(factory=trio.CancelScope)
    _turn: trio.Event = field(factory=trio.Event)
    _end: trio.Event = field(factory=trio.Event)

    @property
    def audible(self) -> bool:
        """Whether somebody reads what is said, or may soon come back to it."""
        return not self.exchange.gone if self.stream is None else self.stream.audible

    def open(self) -> EventStream | None:
        """The stream to say something on; None if nobody ever will be there. Never waits."""
        if self.stream is None and not self.over and not self.exchange.gone:
            self.stream = self.session.log.open()
            self._reader = self.stream.attach()
            self._turn.set()
        return self.stream

    async def run(self, work: Callable[[Outlet], Awaitable[bytes | None]]) -> None:
        """Does the work and says how it ended."""
        self.answer = await work(self)
        self.over = True
        if self.stream is not None:
            if self.answer is not None:
                self.stream.put(self.answer, on_lost=self.take_back)
            self.stream.end()
        self._turn.set()
        self._end.set()

    async def watch(self) -> None:
        """Notes when the agent leaves."""
        await self.exchange.note_disconnect()
        self._writing.cancel()

    async def respond(self) -> None:
        """Writes the response, as one message or as a stream; returns once all was said."""
        with trio.move_on_after(KEEPALIVE_SECONDS):
            await self._turn.wait()
        stream = self.open()
        if stream is not None and self._reader is not None:
            try:
                with self._writing:
                    await self.exchange.start(200, STREAM_HEADERS)
                    await self.exchange.write(_opening(self.session, stream))
                    await follow(self.exchange, stream, self._reader)
            finally:
                stream.detach(self._reader)
            await self._end.wait()
            return
        await self._end.wait()
        # Asked before the end is sent: servers also report a finished exchange as a disconnect.
        there = not self.exchange.gone
        if self.answer is None:
            await self.exchange.start(200, STREAM_HEADERS)
            await self.exchange.finish()
        else:
            await self.exchange.respond(200, self.answer, (JSON,))
        if there:
            self.undo.clear()

    def close(self) -> None:
        """Leaves nothing behind that waits for more to be said."""
        if self.stream is None:
            self.take_back()
        elif not self.over:
            self.stream.close()

    def take_back(self) -> None:
        """Undoes what depended on the answer's arrival."""
        while self.undo:
            self.undo.pop(0)()


async def answer(
    exchange: Exchange,
    session: AgentSession,
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
        work: makes the JSON-RPC response, or None if there is nothing to say; takes the way to
            the request's own stream.
    """
    outlet = Outlet(exchange, session)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outlet.watch)
            nursery.start_soon(outlet.run, work)
            await outlet.respond()
            nursery.cancel_scope.cancel()
    finally:
        outlet.close()


async def serve_get(exchange: Exchange, session: AgentSession) -> None:
    """Holds an agent's GET stream until the agent leaves, its session ends, or the router stops.

    It goes on with the stream whose event the agent names, as far as that is known; else what
    waited for a stream is sent first. Cancellation cuts the stream off.
    """
    stream, reader = session.listen(exchange.header(eras.LAST_EVENT_ID_HEADER))
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
    """Writes a stream's events as they come, until its end or until the reader is closed."""
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
    if not (exchange.gone or reader.closed or stream.standing):
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
