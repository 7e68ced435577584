"""The agent sessions that are alive, and when they end.

Owns limits and lifetimes. Must not know HTTP or what is said in a session.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import trio
from attrs import define, field

from kars_router.front.questions import Questions
from kars_router.front.replay import EventLog, EventStream, Reader
from kars_router.front.sealing import Sealer, Ticket
from kars_router.session.caller import AgentPort, Caller
from kars_router.session.ended import new_names
from kars_router.telemetry import Metrics, log

_CLIENT_NAME: Final = 64
_SWEEP_SECONDS: Final = 15.0
_ABANDONED_SECONDS: Final = 60.0
# A client that reconnects may leave old connections behind; more than this and the oldest ends.
_MAX_STREAMS: Final = 4


class TooManySessionsError(Exception):
    """The limit on agent sessions is reached."""


@define(eq=False)
class AgentSession:
    """One live agent session.

    Attributes:
        ticket: what its id holds.
        touched: trio's clock at its last request, in seconds.
        log: what is said to it on event streams.
        questions: what it was asked and has not answered yet.
        port: how the upstream side reaches it; None until that side knows of it.
        requests: its requests that are being answered and can be cancelled, by id as JSON.
        in_flight: how many requests are being answered.
        streams: its GET streams that are being read, oldest first.
        ended: whether its id is dead.
        spelt: its id on the wire, once somebody has used it.
        called: whether it has called a tool, so that there is state to lose.
    """

    ticket: Ticket
    touched: float
    log: EventLog
    questions: Questions
    port: AgentPort | None = None
    requests: dict[bytes, Caller] = field(factory=dict)
    in_flight: int = 0
    streams: list[EventStream] = field(factory=list)
    ended: bool = False
    spelt: str = ""
    called: bool = False

    @property
    def agent(self) -> str:
        """The session's identifier; not its id on the wire."""
        return self.ticket.agent

    def notify(self, message: bytes, *, once: bool) -> None:
        """Puts a message on exactly one GET stream, the newest; never waits.

        Args:
            message: the message; without a stream it is kept until one opens.
            once: whether to leave it out if the same one waits already.
        """
        stream = self.streams[-1] if self.streams else self.log.waiting
        stream.put(message, once=once)

    def listen(self, last_event: str) -> tuple[EventStream, Reader]:
        """Begins to read a stream: the one of an event id, or else a new GET stream.

        Args:
            last_event: the last event that the agent has got; "" or unknown for none.
        """
        found = self.log.find(last_event)
        if found is not None:
            stream, reader = found[0], found[0].attach(found[1])
        else:
            stream = self.log.open(standing=True)
            reader = stream.attach()
        if stream.standing:
            self._stand(stream)
        return stream, reader

    def leave(self, stream: EventStream, reader: Reader) -> None:
        """Ends the reading of a stream by one connection.

        What a GET stream had not sent goes to the newest of the others, or waits for the next.
        """
        if stream.reader is reader:
            # First of all, so that nothing is put where nobody reads.
            self.streams = [s for s in self.streams if s is not stream]
            if stream.standing and self.streams:
                self.streams[-1].take_over(stream)
        stream.detach(reader)

    def end_streams(self) -> None:
        """Ends the GET streams that are being read, once what was put on them is taken."""
        while self.streams:
            self.streams.pop().end()

    def close(self) -> None:
        """Ends all that belongs to the session but answers to requests in flight."""
        self.ended = True
        self.questions.close()
        self.end_streams()
        self.log.close()

    def _stand(self, stream: EventStream) -> None:
        self.streams = [*(s for s in self.streams if s is not stream), stream]
        for old in self.streams[:-_MAX_STREAMS]:
            self.streams.remove(old)
            old.end()
        stream.take_over(self.log.waiting)


class AgentRegistry:
    """The live agent sessions of one router.

    Args:
        sealer: makes and opens session ids.
        metrics: where sessions are counted.
        limit: most sessions at once, the agents among `others` included.
        idle: seconds without a request or a stream until a session ends.
        lifetime: seconds until it ends in any case.
        has_ended: whether an agent session had ended, in this process or an earlier one.
        on_end: told of each session that ends, with the reason.
        others: how many agents there are that have no session here.
        others_make_room: forgets an abandoned one of these; False if there is none.
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
        others: Callable[[], int] = lambda: 0,
        others_make_room: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.limit, self.idle, self.lifetime = limit, idle, lifetime
        self._sealer = sealer
        self._metrics = metrics
        self._has_ended = has_ended
        self._on_end = on_end
        self._others = others
        self._others_make_room = others_make_room
        self._clock = clock
        self._live: dict[str, AgentSession] = {}
        self._names = new_names()
        # Live ones by their ids on the wire, which need not be opened again and again.
        self._spelt: dict[str, AgentSession] = {}

    def __len__(self) -> int:
        return len(self._live)

    def all(self) -> list[AgentSession]:
        """The live sessions."""
        return list(self._live.values())

    def create(
        self,
        revision: str,
        endpoint: str,
        client: str,
        capabilities: bytes = b"{}",
        *,
        owner: str = "",
    ) -> tuple[str, AgentSession]:
        """Makes a session.

        Args:
            revision: the negotiated revision.
            endpoint: the one server it is for, or "" for all.
            client: what the client calls itself.
            capabilities: what it declared, as a JSON object short enough for a header.
            owner: whose it is, as `Principal.owner`; nobody else can use it.

        Returns:
            its id on the wire and the session.

        Raises:
            TooManySessionsError: the limit is reached.
        """
        self._make_room()
        ticket = Ticket(
            next(self._names),
            revision,
            endpoint,
            self._clock(),
            client[:_CLIENT_NAME],
            capabilities.decode(),
            owner,
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

    def find(self, session_id: str, endpoint: str, owner: str = "") -> AgentSession | None:
        """The session of an id, rebuilt if an earlier process had made it.

        Args:
            session_id: its id on the wire.
            endpoint: the one server that is spoken to, or "" for all.
            owner: who asks for it, as `Principal.owner`.

        Returns:
            None if the id is foreign, expired, ended, for another endpoint, or somebody else's.

        Raises:
            TooManySessionsError: it would have to be rebuilt, and the limit is reached.
        """
        session = self._spelt.get(session_id)
        ticket = self._sealer.open(session_id) if session is None else session.ticket
        if ticket is None or (ticket.endpoint, ticket.owner) != (endpoint, owner):
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
        if session.spelt != session_id:
            self._spelt.pop(session.spelt, None)
            self._spelt[session_id] = session
            session.spelt = session_id
        session.touched = trio.current_time()
        return session

    def end(self, session: AgentSession, reason: str) -> None:
        """Ends a session; its id is dead from now on."""
        if self._live.pop(session.agent, None) is None:
            return
        self._spelt.pop(session.spelt, None)
        self._metrics.agent_sessions.set(len(self._live))
        session.close()
        log().info("agent_session_ended", agent=session.agent, reason=reason)
        self._on_end(session.agent, reason)

    def make_room(self) -> bool:
        """Ends the session that was abandoned for the longest time; False if there is none.

        An agent that crashes after each start leaves sessions behind that hold nothing.
        """
        long_ago = trio.current_time() - _ABANDONED_SECONDS
        for session in sorted(self._live.values(), key=lambda s: s.touched):
            if session.touched > long_ago:
                break
            if not (session.called or session.in_flight or session.streams):
                self.end(session, "idle without a call, and its place was needed")
                return True
        return False

    def close_streams(self) -> None:
        """Ends every open GET stream; the sessions stay."""
        for session in self._live.values():
            session.end_streams()

    async def run(self) -> None:
        """Ends sessions as they reach their limits, and forgets old events, until cancelled."""
        while True:
            await trio.sleep(min(_SWEEP_SECONDS, self.idle / 4))
            now, wall = trio.current_time(), self._clock()
            for session in self.all():
                session.log.expire()
                if session.in_flight or session.streams:
                    session.touched = now
                if wall - session.ticket.created > self.lifetime:
                    self.end(session, "its lifetime is over")
                elif now - session.touched > self.idle:
                    self.end(session, f"idle for {self.idle:g} s")

    def _make_room(self) -> None:
        if len(self._live) + self._others() < self.limit:
            return
        if not (self.make_room() or self._others_make_room()):
            raise TooManySessionsError

    def _add(self, ticket: Ticket) -> AgentSession:
        kept = EventLog(self._metrics)
        session = AgentSession(ticket, trio.current_time(), kept, Questions(kept.name))
        self._live[ticket.agent] = session
        self._metrics.agent_sessions.set(len(self._live))
        return session
