"""One configured server while the router runs: its slots, and where its notifications go.

Owns the session of the router itself (the shared one, where sessions are shared), which strategy
opens sessions, and the idle limit. Must not know HTTP or what agents call things.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from functools import partial
from typing import Any, Final, Protocol

import trio
from attrs import frozen

from kars_router import pinning
from kars_router.config.globs import matches_any
from kars_router.config.schema import Era, Server, SessionScope, Transport
from kars_router.errors import HandshakeError
from kars_router.hookspecs import Credentials
from kars_router.model import Failure, LossVerdict, Phase, ServerInfo
from kars_router.plugins import Plugins
from kars_router.session.base import Session
from kars_router.session.caller import AgentPort, Caller
from kars_router.session.catalogue import Catalogue
from kars_router.session.eras import Order, Verdict, open_by_era, refuses_sessions
from kars_router.session.keeper import Keeper
from kars_router.session.listener import ListenState
from kars_router.session.observer import Observer
from kars_router.session.options import SessionOptions
from kars_router.session.records import Records
from kars_router.session.silence import watch_silence
from kars_router.session.slot import Slot
from kars_router.session.stateless import open_stateless
from kars_router.session.upstream import open_session
from kars_router.telemetry import Metrics, log
from kars_router.transports.base import Connection, Deliver
from kars_router.transports.select import transport_of
from kars_router.wire import capabilities, jsonrpc
from kars_router.wire.params import HeaderPlan

LIST_CHANGED: Final = {
    "notifications/tools/list_changed": "tools",
    "notifications/prompts/list_changed": "prompts",
    "notifications/resources/list_changed": "resources",
}
UPDATED: Final = "notifications/resources/updated"
_RESTARTED: Final = "the router was restarted"
_RECONFIGURED: Final = "the server's configuration changed"
_CLOSE_SECONDS: Final = 2.0
_ORDERS: Final = {
    Transport.STDIO: Order.HANDSHAKE_FIRST,
    Transport.WEBSOCKET: Order.HANDSHAKE_ONLY,
    Transport.SSE: Order.HANDSHAKE_ONLY,
}
_FIXED: Final = (Era.HANDSHAKE, Era.STATELESS)
_NOBODY: Final[Caller | None] = None


class Connector(Protocol):
    """The way to one server, shared by all of its sessions."""

    def connect(self, deliver: Deliver, credentials: Credentials | None) -> Connection:
        """Makes one session's connection.

        Args:
            deliver: takes every message that arrives.
            credentials: what authenticates the router, or None.
        """
        ...

    async def aclose(self) -> None:
        """Closes what the sessions shared; they are over by then."""
        ...


@frozen(kw_only=True)
class Surroundings:
    """What every server of a router shares.

    Attributes:
        ports: the agents that are there, by identifier.
        changed: told the name of a server whose tools have changed.
        observer: told of the life of sessions.
    """

    plugins: Plugins
    observer: Observer
    metrics: Metrics
    records: Records
    version: str
    tool_limit: int
    changed: Callable[[str], None]
    ports: Mapping[str, AgentPort]


class ServerRuntime:
    """A server while the router runs.

    Args:
        name: its configured name.
        settings: its configuration.
        connector: the way to it; closed when the server is stopped.
        around: what all servers share.
        reconfigured: whether it is there because the configuration changed while the router ran.
        replaces: the same server under its old configuration; its tools are shown until the new
            ones are known.

    Attributes:
        settings: its configuration.
        keeper: what is known of it.
        slots: its sessions' places, by agent; "" is the router's own, or the shared one.
        withheld: tools that are kept from agents because they are not as they were accepted, and
            why.
    """

    def __init__(
        self,
        name: str,
        settings: Server,
        connector: Connector,
        around: Surroundings,
        *,
        reconfigured: bool = False,
        replaces: ServerRuntime | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.slots: dict[str, Slot] = {}
        self.withheld: dict[str, str] = {}
        self._fresh_reason = _RECONFIGURED if reconfigured else _RESTARTED
        self._connector = connector
        self._around = around
        info = _info(name, settings)
        self._credentials = around.plugins.credentials(info)
        self.keeper: Keeper = Keeper(
            info,
            around.plugins.admits_tool,
            connect_timeout=settings.timeouts.connect,
            tool_limit=around.tool_limit,
            changed=partial(around.changed, name),
            before=replaces.keeper if replaces else None,
            built=self._withhold,
        )
        self._sessions_refused = False
        self._verdict = Verdict(settings.era if settings.era in _FIXED else None)
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    @property
    def info(self) -> ServerInfo:
        """The server, as plugins may know it."""
        return self.keeper.info

    @property
    def state(self) -> str:
        """`starting`, `ready` or `down`."""
        return self.keeper.state

    @property
    def error(self) -> str:
        """What was wrong last, for the operator; empty if nothing is."""
        return self.keeper.error

    @property
    def tried(self) -> trio.Event:
        """Set once the first attempt to read the tools has ended."""
        return self.keeper.tried

    @property
    def catalogue(self) -> Catalogue:
        """The tools that it was last seen to offer; kept while it is down."""
        return self.keeper.catalogue

    @property
    def instructions(self) -> str:
        """Its instructions for the model."""
        return self.keeper.instructions

    @property
    def shared(self) -> bool:
        """Whether all agents share one session."""
        return self.settings.session_scope is SessionScope.SHARED or self.keeper.stateful is False

    def shares(self, agent: str) -> bool:
        """Whether an agent uses the session that all share."""
        return self.shared and not self._mirrors(agent)

    def _mirrors(self, agent: str) -> bool:
        """Whether an agent has sessions of its own at a server that also does without them.

        A server of both eras keeps something for its clients in one of them only.
        """
        port = self._around.ports.get(agent)
        return (
            port is not None
            and port.has_sessions
            and self.keeper.stateful is False
            and self.settings.era is Era.MIRROR
            and self.settings.session_scope is not SessionScope.SHARED
            and not self._sessions_refused
        )

    def admits_resource(self, uri: str) -> bool:
        """Whether agents may list and read a resource."""
        allowed = self.settings.allowed_resources
        return bool(self.settings.allowed_tools) if allowed is None else matches_any(uri, allowed)

    def admits_prompt(self, name: str) -> bool:
        """Whether agents may list and get a prompt."""
        allowed = self.settings.allowed_prompts
        return bool(self.settings.allowed_tools) if allowed is None else matches_any(name, allowed)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keeps what is known of the server fresh, and runs the slots, until stopped."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    own = self._new_slot("", nursery)
                    task_status.started()
                    try:
                        nursery.start_soon(self._expire)
                        nursery.start_soon(
                            watch_silence, self.settings.listen_silence, self._sessions
                        )
                        await self.keeper.run(own)
                    finally:
                        # Before the nursery can close: whoever uses it then gets an error.
                        self._nursery = None
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._connector.aclose()
            self.tried.set()
            self._stopped.set()

    async def try_now(self, seconds: float) -> None:
        """Has a server that is down tried at once; waits for that for so many seconds at most."""
        if self._nursery is not None:
            await self.keeper.try_now(seconds)

    async def stop(self) -> None:
        """Ends every session of the server; returns when that is done."""
        self._scope.cancel()
        await self._stopped.wait()

    async def slot_for(self, agent: str) -> Slot | None:
        """The slot whose sessions serve an agent; None once the server is stopping.

        Raises:
            HandshakeError: the server has not been reached so far, and still cannot be.
        """
        present = agent in self._around.ports
        if self.keeper.stateful is None and not self.shared and self._verdict.current is None:
            # Whether agents have sessions of their own depends on the server's era.
            own = self.slots.get("")
            if own is not None and agent not in self.slots:
                session = await own.acquire()
                self.keeper.stateful = session.stateful
        if agent not in self.slots and self._nursery is not None and self._mirrors(agent):
            with suppress(HandshakeError):  # who needs the session is told what is wrong with it
                await self._new_slot(agent, self._nursery).acquire()
        if present and agent not in self._around.ports:
            self.end_agent(agent, "the agent has left")
            return None  # what it had is being deleted
        key = "" if self.shares(agent) else agent
        slot = self.slots.get(key)
        if slot is None and self._nursery is not None:
            slot = self._new_slot(key, self._nursery)
        return slot

    def misplaced(self, slot: Slot, session: Session) -> bool:
        """Whether a session that was opened in a slot must not serve agents there.

        A server that had no sessions may come back as one that has some, in the place that all
        agents shared.
        """
        shared = self.settings.session_scope is SessionScope.SHARED
        return not slot.agent and session.stateful and not shared

    def existing_slot(self, agent: str) -> Slot | None:
        """The slot whose sessions serve an agent, if there is one already."""
        return self.slots.get("" if self.shares(agent) else agent)

    async def reading_session(self, agent: str) -> Session:
        """A session to read lists with: the agent's, if it has one, else the router's own.

        Raises:
            HandshakeError: the server cannot be reached.
        """
        slot = self.existing_slot(agent)
        if slot is not None and (session := slot.session) is not None and session.alive:
            return session
        own = self.slots.get("")
        if own is None:
            raise HandshakeError(_stopping(self.name))
        return await own.acquire()

    def end_agent(self, agent: str, reason: str) -> None:
        """Ends an agent's own sessions, in the background; shared ones live on."""
        slot = self.slots.pop(agent, None) if agent else None
        if slot is not None and self._nursery is not None:
            self._nursery.start_soon(slot.close, reason)
        for other in self.slots.values():
            other.forget(agent)

    def update(self, settings: Server) -> None:
        """Takes over settings that concern no session: what is admitted, and limits."""
        self.settings = settings
        self.keeper.rebuild(_info(self.name, settings))

    def _withhold(self, catalogue: Catalogue) -> None:
        pins: Mapping[str, pinning.Pin] = self.settings.pins or {}
        before = self.withheld
        self.withheld = {
            tool: pinning.reason(pins, tool, definition)
            for tool, definition in catalogue.withheld.items()
        }
        self._around.metrics.tools_withheld.labels(self.name).set(len(self.withheld))
        for tool, reason in self.withheld.items():
            if before.get(tool) != reason:
                log().warning("tool_withheld", server=self.name, tool=tool, reason=reason)
        for tool in before.keys() - self.withheld.keys():
            log().info("tool_no_longer_withheld", server=self.name, tool=tool)

    def _new_slot(self, key: str, nursery: trio.Nursery) -> Slot:
        records = self._around.records
        before = (
            records.latest(self.name)
            if not key or self.shares(key)
            else (records.used(key, self.name) or 0)
        )
        slot = Slot(
            self.name,
            key,
            self._open,
            self._around.metrics,
            observer=self._around.observer,
            generation=before,
            lost_reason=self._fresh_reason if before else "",
        )
        self.slots[key] = slot
        # The one place where a nursery is used across modules: a slot's task belongs to the
        # server, whoever asked for it.
        nursery.start_soon(slot.run)
        return slot

    @asynccontextmanager
    async def _open(self, slot: Slot) -> AsyncIterator[Session]:
        agent = slot.agent
        port = self._around.ports.get(agent)
        timeouts = self.settings.timeouts
        options = SessionOptions(
            server=self.name,
            connect_timeout=timeouts.connect,
            silence=self.settings.listen_silence,
            client_version=self._around.version,
            capabilities=capabilities.offered_upstream(port.capabilities) if port else b"{}",
            input_timeout=timeouts.input,
            roots=slot.roots,
            bystander=partial(port.bystander, self.name) if port else lambda: _NOBODY,
        )
        common: dict[str, Any] = {
            "classify": self._around.plugins.classify_loss,
            "metrics": self._around.metrics,
            "notify": partial(self._notified, agent),
            "on_listen": partial(self._listening, agent),
        }

        def handshake() -> AbstractAsyncContextManager[Session]:
            return open_session(options, self._connect, **common)

        def stateless() -> AbstractAsyncContextManager[Session]:
            return open_stateless(
                options, self._connect, plans=self._plan, relist=self.keeper.reread, **common
            )

        order = _ORDERS.get(transport_of(self.settings), Order.STATELESS_FIRST)
        by_era = open_by_era(self._verdict, handshake=handshake, stateless=stateless, order=order)
        opened = self._mirrored(handshake) if agent and self._mirrors(agent) else by_era
        async with opened as session:
            if not agent:
                self._regroup(slot, session)
            slot.log_level = slot.log_level or (port.log_level if port else "")
            session.restore(slot.watchers.uris, slot.log_level)
            if session.stateful:
                for uri in slot.watchers.uris:  # what changed meanwhile nobody has said
                    self._notified(agent, UPDATED, jsonrpc.encode({"uri": uri}))
            yield session

    @asynccontextmanager
    async def _mirrored(
        self, handshake: Callable[[], AbstractAsyncContextManager[Session]]
    ) -> AsyncIterator[Session]:
        async with AsyncExitStack() as stack:
            try:
                session = await stack.enter_async_context(handshake())
            except HandshakeError as error:
                if refuses_sessions(error.failure):
                    self._sessions_refused = True
                    self._gather()
                raise
            yield session

    def _regroup(self, shared: Slot, session: Session) -> None:
        """Moves what agents watch to where their sessions are, now that the era is known."""
        before, self.keeper.stateful = self.keeper.stateful, session.stateful
        if self._nursery is None or self.settings.session_scope is SessionScope.SHARED:
            return
        if session.stateful:
            for agent, uri in shared.watchers.pairs:
                own = self.slots.get(agent) or self._new_slot(agent, self._nursery)
                shared.watchers.remove(agent, uri)
                own.watchers.add(agent, uri)
            return
        if before:
            # What the server refuses of the router's it does not know of others' any more.
            verdict = LossVerdict(True, "the server speaks another revision now", "server")
            for own in self.slots.values():
                if own.agent and own.session is not None:
                    own.session.lose(verdict)
        # Whoever has sessions tries to get one here, too.
        self._sessions_refused = False
        self._gather()

    def _gather(self) -> None:
        """Ends sessions that a server does not have, and moves what they watched."""
        shared, nursery = self.slots.get(""), self._nursery
        if shared is None or nursery is None:
            return
        for key in [key for key in self.slots if key and self.shares(key)]:
            own = self.slots.pop(key)
            for agent, uri in own.watchers.pairs:
                shared.watchers.add(agent, uri)
            nursery.start_soon(own.close, "the server has no sessions")
        if shared.session is not None:
            shared.session.restore(shared.watchers.uris, shared.log_level)

    def _connect(self, deliver: Deliver) -> Connection:
        return self._connector.connect(deliver, self._credentials)

    def _notified(self, agent: str, method: str, params: bytes) -> None:
        if method == "notifications/tools/list_changed":
            self.keeper.relist()
        elif method in LIST_CHANGED:
            self._tell(self._audience(agent), method, params)
        elif method == UPDATED:
            slot = self.slots.get(agent)
            self._tell(slot.watchers.of(_uri(params)) if slot else (), method, params)
        elif agent or self.shared:
            self._tell([agent] if agent else list(self._around.ports), method, params)
        else:
            self._around.metrics.dropped.labels(self.name, "notification").inc()

    def _audience(self, agent: str) -> list[str]:
        if agent:
            return [agent]
        # Those with a session of their own hear of it there.
        alone = {
            key
            for key, slot in self.slots.items()
            if key and slot.session and slot.session.listen_state is ListenState.OPEN
        }
        return [agent for agent in self._around.ports if agent not in alone]

    def _tell(self, agents: Iterable[str], method: str, params: bytes) -> None:
        for agent in agents:
            port = self._around.ports.get(agent)
            if port is None:
                self._around.metrics.dropped.labels(self.name, "notification").inc()
            else:
                port.notify(self.name, method, params)

    def _listening(self, agent: str, old: ListenState | None, new: ListenState) -> None:
        gauge = self._around.metrics.listen_state
        if old is not None and old is not ListenState.CLOSED:
            gauge.labels(self.name, old.value).dec()
        if new is not ListenState.CLOSED:
            gauge.labels(self.name, new.value).inc()
        level = logging.DEBUG if new is ListenState.OPENING else logging.INFO
        log().log(level, "listen_state", server=self.name, agent=agent, state=new.value)
        if not agent:
            self.keeper.listening(new)

    async def _expire(self) -> None:
        idle = self.settings.timeouts.idle
        while True:
            await trio.sleep(min(idle / 4, 30.0))
            idle = self.settings.timeouts.idle
            for key, slot in list(self.slots.items()):
                if key:
                    slot.retire_if_idle(idle)

    def _sessions(self) -> list[Session]:
        return [slot.session for slot in self.slots.values() if slot.session is not None]

    def _plan(self, tool: str) -> HeaderPlan | None:
        return self.catalogue.plans.get(tool)


def _info(name: str, settings: Server) -> ServerInfo:
    pins = settings.pins
    return ServerInfo(
        name=name,
        allowed_tools=settings.allowed_tools,
        bearer_from_env=settings.bearer_from_env or "",
        bearer_from_file=str(settings.bearer_from_file or ""),
        pins=None if pins is None else {tool: pin.digest for tool, pin in pins.items()},
        url=settings.url or "",
        oauth=settings.oauth,
        allowed_networks=settings.allowed_networks,
    )


def _uri(params: bytes) -> str:
    try:
        uri = jsonrpc.decode(bytes(jsonrpc.members(params).get("uri", b"null")))
    except jsonrpc.MalformedError:
        return ""
    return uri if isinstance(uri, str) else ""


def _stopping(server: str) -> Failure:
    return Failure(server=server, phase=Phase.CONNECT, code="closing", detail="shutting down")
