"""Kept connections of one origin: who may have one, which idle one is reused, which is closed.

Owns places, connections and counters. Must not know HTTP: it is told whether a connection may be
kept and for how long.

State first, I/O after: methods without `async` change the state and put what is to be closed
aside; `bury` and `bury_now` close it. So an error or a cancellation at any checkpoint finds the
state consistent.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from typing import Final, Protocol

import msgspec
import trio
from attrs import define, frozen

from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.http_streams import is_stale

_CLOSE_SECONDS: Final = 1.0
_LOOKS: Final = 4


@frozen(kw_only=True)
class PoolStats:
    """Counters for a status page.

    Attributes:
        open: connections that are open now.
        idle: those of them that wait for a request.
        in_use: those of them that carry an exchange.
        waiting: ordinary requests that wait for a place.
        opened_total: connections ever opened.
        stale_dropped: idle connections found dead before or while being reused.
        expired_dropped: idle connections closed because their time was over.
    """

    open: int
    idle: int
    in_use: int
    waiting: int
    opened_total: int
    stale_dropped: int
    expired_dropped: int


@define(eq=False)
class Connection:
    """An open stream, how often the pool was renewed before, and until when it may idle.

    Attributes:
        plain: the stream, if there is no TLS, so that much can be done without waiting.
    """

    stream: trio.abc.Stream
    age: int = 0
    expires: float = 0.0
    plain: CountedStream | None = None

    def __attrs_post_init__(self) -> None:
        if isinstance(self.stream, CountedStream):
            self.plain = self.stream


class Lease(msgspec.Struct, eq=False, kw_only=True):
    """A place in the pool, and the connection that goes with it; the pool alone changes it.

    Attributes:
        control: it takes none of the ordinary places.
        connection: None before there is one, and after the release.
        released: it is over.
    """

    control: bool
    connection: Connection | None = None
    released: bool = False


class Settled(Protocol):
    """A response that nobody waits for, on a connection that would be idle if it were read."""

    def settle(self) -> bool:
        """Look at what has come, and release the connection if that is all; never waits.

        Returns:
            whether somebody else looks after it from now on, or nobody has to.
        """
        ...


class Pool:
    """The connections of one origin.

    `max_connections` bounds ordinary leases, which wait for a place in the order they came.
    Control leases have no bound of their own: there is one GET stream, one DELETE and a pong or
    two for each session, so the number of sessions bounds them already, whereas any limit shared
    by GET streams (which never end) and pongs (which must not wait) would one day make a pong
    wait for a GET stream.

    Idle connections are reused last in, first out, so that the surplus of a burst ages and goes.
    There is no background task: what has expired is closed at the next lease or release, and of the
    responses that nobody waits for a few are looked at whenever a connection is wanted.

    Attributes:
        closed: `aclose` was called; leases are still given, and their users have to look here.

    Args:
        max_connections: most ordinary leases at a time, and most idle connections; at least 1.

    Raises:
        ValueError: `max_connections` is less than 1.
    """

    def __init__(self, max_connections: int) -> None:
        if max_connections < 1:
            raise ValueError("max_connections must be at least 1")
        self.closed = False
        self._limit = max_connections
        self._places = trio.Semaphore(max_connections, max_value=max_connections)
        self._idle: list[Connection] = []  # oldest first
        self._in_use: set[Connection] = set()
        self._unread: deque[Settled] = deque()
        self._doomed: list[trio.abc.Stream] = []
        self._opened = 0
        self._stale = 0
        self._expired = 0
        self._age = 0
        self._soonest = math.inf  # no idle connection's time is over before

    def lease_now(self, lease: Lease) -> bool:
        """Take a place if there is one, as there always is for control; never waits.

        It must be given back by `release`.
        """
        if lease.control:
            return True
        try:
            self._places.acquire_nowait()  # succeeds only when nobody waits
        except trio.WouldBlock:
            return False
        return True

    async def lease(self) -> None:
        """Wait for a place. Cancelled, it is not taken; else it must be given back by `release`."""
        await self._places.acquire()

    async def take_idle(self, lease: Lease) -> bool:
        """Take the idle connection that was used last and is alive; False if there is none.

        For where `take_now` has found none. Cancelled in the middle, the lease holds a connection
        in doubt, to be released as usual.
        """
        while self._idle:
            connection = lease.connection = self._idle.pop()
            self._in_use.add(connection)
            if not await is_stale(connection.stream):
                break
            self.drop_stale(lease)
        if self._doomed:
            await self.bury()
        return lease.connection is not None

    def take_now(self, lease: Lease) -> bool:
        """As `take_idle`, without waiting; it finds none where one cannot tell at once (TLS)."""
        self._sweep(trio.current_time())
        if self._unread:
            self._reclaim()
        while self._idle and lease.connection is None:
            plain = self._idle[-1].plain
            if plain is None:
                return False
            lease.connection = self._idle.pop()
            self._in_use.add(lease.connection)
            if plain.is_readable():
                self.drop_stale(lease)
        return lease.connection is not None

    def expect(self, unread: Settled) -> None:
        """Keep a response on a leased connection; it is looked at when one is wanted."""
        self._unread.append(unread)

    def adopt(self, lease: Lease, stream: trio.abc.Stream) -> None:
        """Take a connection that was just opened."""
        lease.connection = Connection(stream, self._age)
        self._in_use.add(lease.connection)
        self._opened += 1

    def drop_stale(self, lease: Lease) -> None:
        """Give up a reused connection that turned out to be dead, and keep the place."""
        self._stale += 1
        self._let_go(lease)

    def release(
        self, lease: Lease, *, keep_seconds: float = 0.0, since: float | None = None
    ) -> None:
        """Give the place back, and the connection: kept for that long, or put aside. Idempotent.

        The time counts from `since` on trio's clock, or from now.

        The caller then calls `bury`.
        """
        if lease.released:
            return
        lease.released = True
        now = trio.current_time()
        expires = (now if since is None else since) + keep_seconds
        self._let_go(lease, expires if expires > now else 0.0)
        self._sweep(now)
        if not lease.control:
            self._places.release()

    async def bury(self) -> None:
        """Close what was put aside. Shielded from cancellation; closing sends nothing."""
        while self._doomed:
            stream = self._doomed.pop()
            with (
                trio.move_on_after(_CLOSE_SECONDS, shield=True),
                contextlib.suppress(OSError, trio.BrokenResourceError, trio.ClosedResourceError),
            ):
                await trio.aclose_forcefully(stream)

    def bury_now(self) -> None:
        """Close what was put aside and takes no waiting to be closed, as all without TLS does."""
        slow = []
        for stream in self._doomed:
            if isinstance(stream, CountedStream):
                stream.close()
            else:
                slow.append(stream)
        self._doomed = slow

    def renew(self) -> None:
        """Keep none of the present connections; those in use are closed when they are released.

        The caller then calls `bury`.
        """
        self._age += 1
        self._doomed.extend(connection.stream for connection in self._idle)
        self._idle.clear()

    async def aclose(self) -> None:
        """Close every connection, those in use too; their users get an error. Idempotent."""
        self.closed = True
        self._doomed.extend(connection.stream for connection in (*self._idle, *self._in_use))
        self._idle.clear()
        self._in_use.clear()
        self._unread.clear()
        await self.bury()

    def stats(self) -> PoolStats:
        """The counters as they are now."""
        return PoolStats(
            open=len(self._idle) + len(self._in_use),
            idle=len(self._idle) + len(self._unread),
            in_use=len(self._in_use) - len(self._unread),
            waiting=self._places.statistics().tasks_waiting,
            opened_total=self._opened,
            stale_dropped=self._stale,
            expired_dropped=self._expired,
        )

    def _let_go(self, lease: Lease, expires: float = 0.0) -> None:
        connection, lease.connection = lease.connection, None
        if connection is None or connection not in self._in_use:
            return  # there was none, or the pool was closed and has closed it
        self._in_use.remove(connection)
        if expires > 0.0 and connection.age == self._age:
            connection.expires = expires
            self._soonest = min(self._soonest, connection.expires)
            self._idle.append(connection)
        else:
            self._doomed.append(connection.stream)

    def _reclaim(self) -> None:
        # Each request adds one at most, so that looking at a few of them bounds how many there are.
        # Whether another connection is idle or not: a session that has ended, a refusal or a cookie
        # must not wait for the day when none is. One that does not come holds up no other.
        for _ in range(min(_LOOKS, len(self._unread))):
            unread = self._unread.popleft()
            if not unread.settle():
                self._unread.append(unread)

    def _sweep(self, now: float) -> None:
        if now < self._soonest and len(self._idle) <= self._limit:
            return
        kept = [connection for connection in self._idle if connection.expires > now]
        gone = [connection for connection in self._idle if connection.expires <= now]
        self._expired += len(gone)
        surplus = max(0, len(kept) - self._limit)
        self._doomed.extend(connection.stream for connection in (*gone, *kept[:surplus]))
        self._idle = kept[surplus:]
        self._soonest = min((connection.expires for connection in self._idle), default=math.inf)
