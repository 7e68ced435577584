"""What is said to one agent on event streams, for as long as it may have to be said again.

Owns the events of one agent session: which wait for a reader, which are kept for a reader that
comes back, and the bounds of both. Must not know HTTP, nor what an event means.

Source: MCP 2025-11-25 "Resumability and Redelivery".
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from kars_router.telemetry import Metrics

# How long a reader may stay away until what only it could have taken is given up.
KEPT_SECONDS: Final = 300.0
_MOST_EVENTS: Final = 512
_MOST_BYTES: Final = 4 * 1024 * 1024


@define(eq=False)
class Event:
    """One message on a stream.

    Attributes:
        data: the message.
        stream: the stream that it is on.
        since: trio's clock when it was put, in seconds.
        on_lost: told that it will never reach the agent; None if nobody minds.
        number: its place on the stream, from 1.
    """

    data: bytes = field(repr=False)
    stream: EventStream
    since: float
    on_lost: Callable[[], None] | None = None
    number: int = 0

    @property
    def ident(self) -> str:
        """Its id on the wire."""
        return self.stream.ident(self.number)

    @property
    def was_read(self) -> bool:
        """Whether the stream's reader has taken it."""
        return self.stream.has_read(self.number)

    def discard(self) -> None:
        """Has it forgotten, because it is of no more use."""
        self.stream.drop(self)


class Reader:
    """One connection that a stream is written to.

    Attributes:
        closed: whether it is to write no more: the agent has left, or come back on another one.
    """

    def __init__(self) -> None:
        self.closed = False
        self._wake = trio.Event()

    def wake(self) -> None:
        """Ends the waiting."""
        self._wake.set()

    def close(self) -> None:
        """Has it write no more."""
        self.closed = True
        self._wake.set()

    async def wait(self) -> None:
        """Waits until there may be something to do; only after there was nothing to take."""
        if not self.closed:
            self._wake = trio.Event()
        await self._wake.wait()


@define(eq=False)
class EventStream:
    """A stream of events, whichever connections carry it one after the other.

    Attributes:
        key: what tells it from the session's other streams.
        standing: whether it belongs to no request, and so has no last message.
        reader: the connection that carries it now.
        told: whether the agent knows an event id to come back with.
        ended: whether no more events will be put.
        closed: whether it is forgotten.
        left: trio's clock when the last reader left, in seconds.
    """

    _log: EventLog
    key: int
    standing: bool
    left: float
    reader: Reader | None = None
    told: bool = False
    ended: bool = False
    closed: bool = False
    _events: dict[int, Event] = field(factory=dict, repr=False)
    _last: int = 0
    _read: int = 0

    @property
    def audible(self) -> bool:
        """Whether somebody reads it, or may soon come back to it."""
        if self.closed or self.ended:
            return False
        away = trio.current_time() - self.left
        return self.reader is not None or (self.told and away <= KEPT_SECONDS)

    @property
    def is_stale(self) -> bool:
        """Whether its end has passed, nobody came for it in time, and nobody would miss it."""
        missed = any(event.on_lost is not None for event in self._events.values())
        away = trio.current_time() - self.left
        return self.ended and self.reader is None and away > KEPT_SECONDS and not missed

    def ident(self, number: int) -> str:
        """The id of an event; 0 stands for the stream's beginning."""
        return f"{self._log.name}-{self.key}-{number}"

    def knows(self, number: int) -> bool:
        """Whether it has ever had an event of that number, or 0."""
        return number <= self._last

    def has_read(self, number: int) -> bool:
        """Whether the reader has taken the event of that number."""
        return number <= self._read

    def has_after(self, number: int) -> bool:
        """Whether an event is kept that comes after that number."""
        return any(kept > number for kept in self._events)

    def put(
        self, data: bytes, *, once: bool = False, on_lost: Callable[[], None] | None = None
    ) -> Event:
        """Adds an event; never waits. On a stream that has ended it is lost at once.

        Args:
            data: the message.
            once: whether to leave it out if the same one waits already.
            on_lost: told if it will never reach the agent. Such an event is given up only with
                its stream, or when nobody reads and the bounds or the time demand it.
        """
        event = Event(data, self, trio.current_time(), on_lost)
        if self.ended or self.closed:
            if on_lost is not None:
                on_lost()
        elif not (once and any(e.data == data and not e.was_read for e in self._events.values())):
            self._append(event)
        return event

    def take(self, reader: Reader) -> Event | None:
        """The next event for a reader; None if there is none now, or it is not the reader."""
        if self.reader is not reader:
            return None
        number = self._read + 1
        if number not in self._events:
            number = next((n for n in self._events if n > number), 0)
        if not number:
            return None
        self._read = number
        self.told = True
        return self._events[number]

    def attach(self, after: int | None = None) -> Reader:
        """Has a new connection carry the stream, instead of any other.

        Args:
            after: the last event that the agent has got; None for what nobody took so far.
        """
        if self.standing:  # the router may have ended it, for there were too many
            self.ended = self.closed
        if self.reader is not None:
            self.reader.close()
        self.reader = Reader()
        if after is not None:
            self._read, self.told = after, True
        self._weigh()
        return self.reader

    def detach(self, reader: Reader) -> None:
        """Notes that a connection carries the stream no more."""
        reader.close()
        if self.reader is not reader:
            return
        self.reader, self.left = None, trio.current_time()
        if self.standing:
            self._log.waiting.take_over(self)
        if not self.told:
            self.close()
        self._weigh()
        self._log.trim()
        self._tidy()

    def take_over(self, other: EventStream) -> None:
        """Puts here what nobody has taken from another stream."""
        for number in [n for n in other._events if n > other._read]:
            event = other._events.pop(number, None)
            if event is None:  # given up for one that was passed on just now
                continue
            self._log.remove(event)
            event.stream = self
            self._append(event)

    def end(self) -> None:
        """Has the stream end once what was put is taken."""
        self.ended = True
        if self.reader is not None:
            self.reader.wake()
        self._tidy()

    def complete(self) -> None:
        """Notes that all was written, so that nobody misses the last event any more.

        It is kept, for it may be lost with its connection; questions before it are refused.
        """
        last = self._events.get(self._last)
        if last is not None:
            last.on_lost = None
            self._log.settle(last)
        for event in [*self._events.values()]:
            if event.on_lost is not None:
                event.discard()
                event.on_lost()

    def close(self) -> None:
        """Forgets the stream; what was not taken is lost."""
        self.closed = self.ended = True
        self._log.forget(self)
        if self.reader is not None:
            self.reader.close()
        events = [*self._events.values()]
        self._events.clear()
        for event in events:
            self._log.remove(event)
            if event.on_lost is not None:
                event.on_lost()

    def drop(self, event: Event) -> None:
        """Forgets one event."""
        if self._events.get(event.number) is event:
            del self._events[event.number]
            self._log.remove(event)
            self._tidy()

    def _append(self, event: Event) -> None:
        self._last += 1
        event.number = self._last
        self._events[event.number] = event
        self._log.add(event)
        if self.reader is not None:
            self.reader.wake()

    def _weigh(self) -> None:
        for event in self._events.values():
            if event.on_lost is not None:
                self._log.weigh(event)

    def _tidy(self) -> None:
        # Coming back to a stream without events is no more than beginning a new one.
        over = self.standing or self.ended
        if over and self.reader is None and not self._events and self is not self._log.waiting:
            self.closed = self.ended = True
            self._log.forget(self)


class EventLog:
    """All streams of one agent session, and the bounds of what they hold.

    At most 512 events and 4 MiB are kept. What would be too much is given up oldest first,
    what nobody waits for before what somebody does. The latter counts for nothing while its stream
    is being read, since it is bounded by the requests in flight.

    Args:
        metrics: where events are counted that were given up.

    Attributes:
        name: what tells this session's ids from all others, also after a restart.
        waiting: what belongs to no request and waits for a stream.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.name = secrets.token_hex(4)
        self._metrics = metrics
        self._streams: dict[int, EventStream] = {}
        self._opened = 0
        self._loose: dict[Event, None] = {}
        self._held: dict[Event, None] = {}
        # Those among the loose ones that answer a request: few, but they may be large.
        self._written: dict[Event, None] = {}
        self._bytes = 0
        self.waiting = self.open(standing=True)

    def __len__(self) -> int:
        return len(self._loose) + len(self._held)

    def open(self, *, standing: bool = False) -> EventStream:
        """A new stream."""
        self._opened += 1
        stream = EventStream(self, self._opened, standing, trio.current_time())
        self._streams[stream.key] = stream
        return stream

    def find(self, ident: str) -> tuple[EventStream, int] | None:
        """The stream of an event id, and the event's number; None if it is not known here."""
        name, _, place = ident.partition("-")
        key, _, number = place.partition("-")
        if name != self.name or not (_is_number(key) and _is_number(number)):
            return None
        stream = self._streams.get(int(key))
        if stream is None or stream is self.waiting or not stream.knows(int(number)):
            return None
        if stream.ended and not (stream.standing or stream.has_after(int(number))):
            stream.complete()  # who names the last event has got it all
            stream.close()
            return None
        return stream, int(number)

    def expire(self) -> None:
        """Gives up what is too old to be asked for again."""
        now = trio.current_time()
        for event in [*self._loose]:
            if event.was_read and now - event.since > KEPT_SECONDS:
                event.discard()
        for event in [*self._held]:
            if now - max(event.since, event.stream.left) > KEPT_SECONDS:
                self._lose(event)
        for stream in [*self._streams.values()]:
            if stream.is_stale:
                stream.close()

    def close(self) -> None:
        """Ends all streams but those that still carry an answer to somebody who is there."""
        for stream in [*self._streams.values()]:
            if stream.reader is None:
                stream.close()
            elif stream.standing:
                stream.end()

    def add(self, event: Event) -> None:
        """Takes account of an event, and gives others up if it is one too many."""
        self.weigh(event)
        self.trim(event)

    def trim(self, newest: Event | None = None) -> None:
        """Gives up what is too much, but not the newest event."""
        while len(self) > _MOST_EVENTS or self._bytes > _MOST_BYTES:
            # Of bytes, notifications hold too few to make room.
            written = self._written if len(self) <= _MOST_EVENTS else {}
            parts = (written, self._loose, self._held)
            others = (e for part in parts for e in part if e is not newest)
            oldest = next(others, None)
            if oldest is None:
                return
            self._lose(oldest)

    def weigh(self, event: Event) -> None:
        """Takes account of an event whose stream has got or lost its reader."""
        self.remove(event)
        if event.on_lost is None:
            self._loose[event] = None
        elif event.stream.reader is None:
            self._held[event] = None
        else:
            return
        self._bytes += len(event.data)

    def settle(self, event: Event) -> None:
        """Takes account of an answer that was written, as one that nobody waits for any more."""
        self.weigh(event)
        self._written[event] = None
        self.trim()

    def remove(self, event: Event) -> None:
        """Takes an event out of the account."""
        self._written.pop(event, None)
        for part in (self._loose, self._held):
            if event in part:
                del part[event]
                self._bytes -= len(event.data)

    def forget(self, stream: EventStream) -> None:
        """Takes a stream out of the account."""
        self._streams.pop(stream.key, None)

    def _lose(self, event: Event) -> None:
        if event.was_read:
            self._metrics.replays_dropped.inc()
        else:
            self._metrics.notifications_dropped.inc()
        event.discard()
        if event.on_lost is not None:
            event.on_lost()


def _is_number(text: str) -> bool:
    return len(text) < 16 and text.isascii() and text.isdigit()
