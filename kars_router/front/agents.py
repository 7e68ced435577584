"""The agent sessions that are alive, and when they end.

Owns limits and lifetimes. Must not know HTTP or what is said in a session.
"""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from kars_router.front.sealing import Sealer, Ticket
from kars_router.telemetry import Metrics, log

_QUEUE_LIMIT: Final = 256
_CLIENT_NAME: Final = 64
_SWEEP_SECONDS: Final = 15.0
_ABANDONED_SECONDS: Final = 60.0


class TooManySessionsError(Exception):
    """The limit on agent sessions is reached."""


@define(eq=False)
class AgentSession:
    """One live agent session.

    Attributes:
        ticket: what its id holds.
        touched: trio's clock at its last request, in seconds.
        in_flight: requests that are being answered.
        streams: its open GET streams, oldest first.
        backlog: messages that wait for a stream.
        ended: whether its id is dead.
        called: whether it has called a tool, so that there is state to lose.
    """

    ticket: Ticket
    touched: float
    in_flight: int = 0
    streams: deque[AgentStream] = field(factory=deque)
    backlog: list[bytes] = field(factory=list)
    ended: bool = False
    called: bool = False

    @property
    def agent(self) -> str:
        """The session's identifier; not its id on the wire."""
        return self.ticket.agent

    def notify(self, message: bytes, metrics: Metrics) -> None:
        """Puts a message on exactly one stream, the newest; never waits.

        Without a stream it is kept until one opens; the same message is kept once.
        """
        if self.streams:
            self.streams[-1].put(message, metrics)
        elif message not in self.backlog:
            self.backlog.append(message)


class AgentStream:
    """The queue behind one open GET stream; when it is full the oldest message is dropped."""

    def __init__(self) -> None:
        self.closed = False
        self._items: deque[bytes] = deque()
        self._wake = trio.Event()

    def put(self, message: bytes, metrics: Metrics) -> None:
        """Adds a message; never waits."""
        if message in self._items:
            return
        if len(self._items) >= _QUEUE_LIMIT:
            self._items.popleft()
            metrics.notifications_dropped.inc()
        self._items.append(message)
        self._wake.set()

    def close(self) -> None:
        """Ends the stream once what is queued was taken."""
        self.closed = True
        self._wake.set()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._items:
            if self.closed:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        return self._items.popleft()


class AgentRegistry:
    """The live agent sessions of one router.

    Args:
        sealer: makes and opens session ids.
        metrics: where sessions are counted.
        limit: most sessions at once.
        idle: seconds without a request or a stream until a session ends.
        lifetime: seconds until it ends in any case.
        has_ended: whether an agent session had ended, in this process or an earlier one.
        on_end: told of each session that ends, with the reason.
        clock: the wall clock, in seconds.
    """

    def __init__(
        self,
        sealer: Sealer,
        metrics: Metrics,
        *,
        limit: int,
        idle: float,
        lifetime: float,
        has_ended: Callable[[str], bool],
        on_end: Callable[[str, str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limit, self.idle, self.lifetime = limit, idle, lifetime
        self._sealer = sealer
        self._metrics = metrics
        self._has_ended = has_ended
        self._on_end = on_end
        self._clock = clock
        self._live: dict[str, AgentSession] = {}

    def __len__(self) -> int:
        return len(self._live)

    def all(self) -> list[AgentSession]:
        """The live sessions."""
        return list(self._live.values())

    def create(self, revision: str, endpoint: str, client: str) -> tuple[str, AgentSession]:
        """Makes a session.

        Returns:
            its id on the wire and the session.

        Raises:
            TooManySessionsError: the limit is reached.
        """
        self._make_room()
        ticket = Ticket(
            secrets.token_hex(8), revision, endpoint, self._clock(), client[:_CLIENT_NAME]
        )
        session = self._add(ticket)
        log().info(
            "agent_session_opened",
            agent=ticket.agent,
            client=ticket.client,
            revision=revision,
            endpoint=endpoint,
        )
        return self._sealer.seal(ticket), session

    def find(self, session_id: str, endpoint: str) -> AgentSession | None:
        """The session of an id, rebuilt if an earlier process had made it.

        Returns:
            None if the id is foreign, expired, ended, or for another endpoint.

        Raises:
            TooManySessionsError: it would have to be rebuilt, and the limit is reached.
        """
        ticket = self._sealer.open(session_id)
        if ticket is None or ticket.endpoint != endpoint:
            return None
        session = self._live.get(ticket.agent)
        if self._clock() - ticket.created > self.lifetime:
            if session is not None:
                self.end(session, "its lifetime is over")
            return None
        if session is None:
            if self._has_ended(ticket.agent):
                return None
            self._make_room()
            session = self._add(ticket)
            log().info("agent_session_rebuilt", agent=ticket.agent, client=ticket.client)
        session.touched = trio.current_time()
        return session

    def end(self, session: AgentSession, reason: str) -> None:
        """Ends a session; its id is dead from now on."""
        if self._live.pop(session.agent, None) is None:
            return
        session.ended = True
        self._metrics.agent_sessions.set(len(self._live))
        for stream in session.streams:
            stream.close()
        log().info("agent_session_ended", agent=session.agent, reason=reason)
        self._on_end(session.agent, reason)

    def broadcast(self, message: bytes, concerns: Callable[[AgentSession], bool]) -> None:
        """Notifies every session that a message concerns."""
        for session in self._live.values():
            if concerns(session):
                session.notify(message, self._metrics)

    def close_streams(self) -> None:
        """Ends every open GET stream; the sessions stay."""
        for session in self._live.values():
            for stream in session.streams:
                stream.close()

    async def run(self) -> None:
        """Ends sessions as they reach their limits, until cancelled."""
        while True:
            await trio.sleep(min(_SWEEP_SECONDS, self.idle / 4))
            now, wall = trio.current_time(), self._clock()
            for session in self.all():
                if session.in_flight or session.streams:
                    session.touched = now
                if wall - session.ticket.created > self.lifetime:
                    self.end(session, "its lifetime is over")
                elif now - session.touched > self.idle:
                    self.end(session, f"idle for {self.idle:g} s")

    def _make_room(self) -> None:
        if len(self._live) < self.limit:
            return
        # An agent that crashes after each start leaves sessions behind that hold nothing.
        idle = trio.current_time() - _ABANDONED_SECONDS
        for session in sorted(self._live.values(), key=lambda s: s.touched):
            if session.touched > idle:
                break
            if not (session.called or session.in_flight or session.streams):
                self.end(session, "idle without a call, and its place was needed")
                return
        raise TooManySessionsError

    def _add(self, ticket: Ticket) -> AgentSession:
        session = AgentSession(ticket, trio.current_time())
        self._live[ticket.agent] = session
        self._metrics.agent_sessions.set(len(self._live))
        return session
