"""What happens in `kars demo`: a server, a router, and two agents with the same script.

Owns the scene and what is concluded from it. Must not know how it is shown: it keeps its state
in `Track`s, and tells sentences to whoever listens.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import trio
from attrs import define, field, frozen

from kars_router.config.load import load
from kars_router.config.schema import Listener
from kars_router.service import open_router
from kars_router.testing import (
    HeartbeatServer,
    HttpStatusError,
    NoAnswerError,
    PlainAgent,
    RpcError,
    SessionGoneError,
    serve,
    text_of,
)
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport

COUNT = 3
_NAME = "demo"
_SESSION_META = "kars.azure.com/session"


@frozen(kw_only=True)
class Timing:
    """The demo's clock, in seconds; a real server's is several times slower.

    Attributes:
        ping_every: the server's pause between an answered ping and the next.
        deadline: how long the server waits for an answer.
        thinking: how long the agents say nothing; at least three times `reaped_after`.
        pause: the agents' pause between two calls.
        patience: bound of each request of an agent, and of the router's start.
        limit: bound of the whole demo.
    """

    ping_every: float = 0.5
    deadline: float = 1.5
    thinking: float = 6.0
    pause: float = 0.15
    patience: float = 5.0
    limit: float = 25.0

    @property
    def reaped_after(self) -> float:
        """The longest that a session of a silent client can live."""
        return self.ping_every + self.deadline


class Step(enum.StrEnum):
    """Where an agent is in its script."""

    WAITING = "waiting"
    COUNTING = "counting"
    THINKING = "thinking"
    READING = "reading"
    DONE = "done"


class State(enum.StrEnum):
    """What became of an agent's counter."""

    KEPT = "kept"
    LOST = "lost"
    UNCLEAR = "unclear"


@define
class Track:
    """One agent's way through its script.

    Attributes:
        name: `direct` or `routed`.
        step: where it is.
        counted: what the server said to each increment.
        thinking_since: Trio's clock when it began to think; None before.
        refused: the answer to the first read, if that was not a result.
        told: what the router said about a reset, if it did.
        final: what the server said to the read in the end.
        trouble: one clause about anything else that went wrong.
        session: the id of its session with the server; for the routed agent, of the router's.
    """

    name: str
    step: Step = Step.WAITING
    counted: list[str] = field(factory=list)
    thinking_since: float | None = None
    refused: str = ""
    told: str = ""
    final: str = ""
    trouble: str = ""
    session: str = ""

    @property
    def state(self) -> State:
        """What became of the counter, from what the server itself said."""
        full = [f"counter: {n + 1}" for n in range(COUNT)]
        if self.counted != full or self.trouble:
            return State.UNCLEAR
        if self.final == full[-1] and not self.refused and not self.told:
            return State.KEPT
        if self.final == "counter: 0" and (self.refused or self.told):
            return State.LOST
        return State.UNCLEAR


@define
class Story:
    """The whole demo while it runs and afterwards.

    Attributes:
        timing: its clock.
        tell: takes a name (`server`, or a track's) and a sentence, as things happen.
        listener: what speaks HTTP at the router.
        began: Trio's clock at the first call.
        server: set once it runs.
        direct: the agent without the router.
        routed: the agent with it.
    """

    timing: Timing
    tell: Callable[[str, str], None]
    listener: Listener = Listener.HYPERCORN
    began: float | None = None
    server: HeartbeatServer | None = None
    direct: Track = field(factory=lambda: Track("direct"))
    routed: Track = field(factory=lambda: Track("routed"))

    @property
    def tracks(self) -> tuple[Track, Track]:
        """Both agents, the direct one first."""
        return (self.direct, self.routed)

    def pings(self, track: Track) -> tuple[int, int]:
        """How many pings the server sent for an agent's session, and how many were answered."""
        if self.server is None or not track.session:
            return (0, 0)
        sent = self.server.happenings("ping", track.session)
        answered = self.server.happenings("pong", track.session)
        return (len(sent), len(answered))

    def destroyed(self, track: Track) -> float | None:
        """Seconds from the first call to the end of an agent's session by a reaper, if it was."""
        if self.server is None or not track.session or self.began is None:
            return None
        reaped = self.server.happenings("reaped", track.session)
        return reaped[0].time - self.began if reaped else None

    def problems(self) -> list[str]:
        """What did not happen as it should; empty if the demo showed what it is for."""
        wanted = ((self.direct, State.LOST), (self.routed, State.KEPT))
        return [_problem(track, state) for track, state in wanted if track.state is not state]

    def summary(self, seconds: float) -> Mapping[str, Any]:
        """The demo as plain data."""
        return {
            "ok": not self.problems(),
            "seconds": round(seconds, 2),
            "timing": {
                "pingEverySeconds": self.timing.ping_every,
                "pingDeadlineSeconds": self.timing.deadline,
                "thinkingSeconds": self.timing.thinking,
            },
            "agents": [self._of(track) for track in self.tracks],
            "problems": self.problems(),
        }

    def _of(self, track: Track) -> Mapping[str, Any]:
        sent, answered = self.pings(track)
        destroyed = self.destroyed(track)
        return {
            "agent": track.name,
            "counted": track.counted,
            "pings": sent,
            "answered": answered,
            "destroyedAfterSeconds": None if destroyed is None else round(destroyed, 2),
            "refused": track.refused or None,
            "read": track.final or None,
            "state": track.state.value,
        }


def _problem(track: Track, wanted: State) -> str:
    if track.trouble:
        why = track.trouble
    elif track.step is not Step.DONE:
        why = f"it was still {track.step.value}"
    elif track.told:
        why = f"the router reported a reset: {track.told}"
    else:
        why = f"after {', '.join(track.counted) or 'nothing'} it read {track.final!r}"
    return f"the {track.name} agent's counter should have been {wanted.value}, but {why}"


async def play(story: Story) -> None:
    """Set the scene, let both agents follow their script, and take everything down.

    Args:
        story: filled in as it goes; afterwards `problems` says whether it went as it should.

    Raises:
        UserError: the router could not be started.
        OSError: no loopback address could be bound.

    Cancellation: everything is taken down; the router deletes its sessions within seconds.
    """
    timing = story.timing
    with trio.move_on_after(timing.limit):
        async with _open_scene(story) as urls, trio.open_nursery() as nursery:
            nursery.start_soon(_watch_server, story)
            story.began = trio.current_time()
            async with trio.open_nursery() as agents:
                for track, url in zip(story.tracks, urls, strict=True):
                    agents.start_soon(_perform, story, track, url)
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_scene(story: Story) -> AsyncIterator[Sequence[str]]:
    """Run the server and the router; yield the endpoint of the direct and of the routed agent."""
    timing = story.timing
    async with (
        HeartbeatServer.open(ping_interval=timing.ping_every, ping_deadline=timing.deadline) as it,
        serve(it.app) as server_url,
    ):
        story.server = it
        endpoint = f"{server_url}/mcp"
        story.tell("server", f"listens; destroys a session {timing.deadline:g} s after a lost ping")
        overrides = {
            "listen": "127.0.0.1:0",
            "admin": None,
            "listener": story.listener.value,
            "shutdownGrace": "2s",
        }
        # With an empty environment nothing is read from or written to the user's directories.
        config = load(None, upstreams=[f"{_NAME}={endpoint}"], overrides=overrides, environ={})
        async with open_router(config) as router:
            story.tell("router", "listens; knows nothing of its server but the address")
            await router.supervisor.wait_tried(timing.patience)
            yield (endpoint, f"{router.agent_url}/mcp/{_NAME}")


async def _perform(story: Story, track: Track, url: str) -> None:
    transport = TrioTransport(url)
    try:
        async with new_client(transport) as client:
            client.timeout = httpx.Timeout(story.timing.patience)
            await _follow_script(story, track, PlainAgent(client, url))
    except (httpx.TransportError, HttpStatusError, NoAnswerError, RpcError) as error:
        track.trouble = f"while {track.step.value} it met {type(error).__name__}: {error}"
        story.tell(track.name, track.trouble)
    finally:
        with trio.move_on_after(1, shield=True):
            await transport.aclose()


async def _follow_script(story: Story, track: Track, agent: PlainAgent) -> None:
    """Count, think, read: plain POSTs, no stream, no answers to anything, on either side."""
    await agent.initialize()
    track.step = Step.COUNTING
    for _ in range(COUNT):
        track.counted.append(text_of(await agent.call("increment")))
        story.tell(track.name, f"increment: {track.counted[-1]}")
        if not track.session:
            track.session = _find_session(story, track, agent)
        await trio.sleep(story.timing.pause)
    track.step, track.thinking_since = Step.THINKING, trio.current_time()
    story.tell(track.name, f"thinks for {story.timing.thinking:g} s")
    await trio.sleep(story.timing.thinking)
    track.step = Step.READING
    try:
        result = await agent.call("read")
    except SessionGoneError as error:
        track.refused = f"{error.status} {error.body}"
        story.tell(track.name, f"read: {track.refused}; begins a new session, as MCP says")
        await agent.initialize()
        result = await agent.call("read")
    # A router that lost the session says so in a text of its own before the tool's.
    track.final = text_of(result).rpartition("\n")[2]
    reset = result.get("_meta", {}).get(_SESSION_META)
    track.told = str(reset.get("reason", reset)) if reset else ""
    track.step = Step.DONE
    story.tell(track.name, f"read: {track.final}")
    await agent.delete()


def _find_session(story: Story, track: Track, agent: PlainAgent) -> str:
    """The agent's own session, or for the routed one the server's session that is not direct."""
    assert story.server is not None
    if track is story.direct:
        return agent.session or ""
    called = {received.session for received in story.server.requests("tools/call")}
    others = [s for s in story.server.sessions if s in called and s != story.direct.session]
    return others[0] if len(others) == 1 else ""


async def _watch_server(story: Story) -> None:
    server = story.server
    assert server is not None
    seen = 0
    while True:
        seen += 1
        await server.wait_until(partial(_has_reaped, server, seen))
        reaped = server.happenings("reaped")[seen - 1]
        whose = [track.name for track in story.tracks if track.session == reaped.session]
        name = whose[0] if whose else "some"
        story.tell("server", f"destroys the {name} agent's session: {reaped.detail}")


def _has_reaped(server: HeartbeatServer, sessions: int) -> bool:
    return len(server.happenings("reaped")) >= sessions
