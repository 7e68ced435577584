"""The composition root: builds a router from its configuration, runs it, and takes it down.

Owns which nursery holds what. The order is also the order of taking down, in reverse: upstream
sessions outermost, then the admin address, then the agents' listener. Nothing else may construct
these parts.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import evolve

from kars_router._version import __version__
from kars_router.config.advice import advice
from kars_router.config.schema import Config, OnAuditFailure, Server
from kars_router.front import listen
from kars_router.front.admin import AdminApp
from kars_router.front.admin_token import load_admin_token
from kars_router.front.agents import AgentRegistry
from kars_router.front.approvals_api import ApprovalsApi
from kars_router.front.asgi import AgentApp
from kars_router.front.auth import AgentGate
from kars_router.front.guard import Guard
from kars_router.front.identity import Identities
from kars_router.front.legacy import LegacyServer
from kars_router.front.operations import Operations
from kars_router.front.parking import ParkingLot
from kars_router.front.policy_status import PolicyStatus
from kars_router.front.sealing import Sealer, load_key
from kars_router.front.stateless import StatelessServer
from kars_router.governance.approvals import ApprovalStore
from kars_router.governance.holding import Holder
from kars_router.governance.runner import Governance
from kars_router.plugins import Plugins
from kars_router.session.records import Records
from kars_router.session.server import Connector
from kars_router.session.state import StateDirectory
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import Metrics, log
from kars_router.transports.connectors import TransportFactory, default_transport, new_connector

if TYPE_CHECKING:
    from kars_router.audit import Journal

_MARGIN_SECONDS = 3.0
_LAST_ANSWERS_SECONDS = 1.0
_GOVERNORS_SECONDS = 1.0
_EXIT_SECONDS = 0.5  # of the grace, kept for what comes after the last connection was cut off


class Router:
    """A running router; made by `open_router`.

    Attributes:
        app: the ASGI application for agents.
        admin_app: the ASGI application for operators.
        agent_url: where agents are served, without a path; "" if the router does not listen.
        admin_url: the same for the admin address.
        config: the configuration in force.
    """

    def __init__(self, config: Config, transports: TransportFactory) -> None:
        self.config = config
        self.agent_url = ""
        self.admin_url = ""
        self.metrics = Metrics()
        self.draining = trio.Event()
        self._hurried = trio.Event()
        options = {n: dict(o) for n, o in config.plugins.options.items()}
        self.plugins = Plugins.load(
            blocked=config.plugins.blocked,
            required=config.plugins.required,
            options=options,
            metrics=self.metrics,
        )
        self._transports = transports
        # Nobody asked for the default directory: a read-only file system is no reason to stop.
        self._state = StateDirectory(config.state, optional=config.state == _default_state())
        key = load_key(self._state.path)
        self.holder = Holder(
            ApprovalStore(self._state.path, time.time),
            self.metrics,
            limit=config.governance.held_calls,
            patience=config.governance.approval,
            clock=time.time,
        )
        self.governance = Governance(
            self.plugins,
            self.metrics,
            self.holder,
            state=self._state.path,
            deadline=config.governance.deadline,
        )
        # At the start there are no old rules that could stay.
        self._rules = self.governance.prepare(config.policies, strict=False)
        self.journal: Journal | None = None
        self.policy_status = PolicyStatus()
        self.records = Records(self._state.path, config.sessions.lifetime)
        self.supervisor = Supervisor(
            self.plugins,
            self.metrics,
            self.records,
            self._connector,
            version=__version__,
            tool_limit=config.limits.tools,
        )
        self.agents = AgentRegistry(
            Sealer(key),
            self.metrics,
            limit=config.limits.agent_sessions,
            idle=config.sessions.idle,
            lifetime=config.sessions.lifetime,
            has_ended=self.records.has_ended,
            on_end=self.supervisor.end_agent,
            others=lambda: len(self.identities),
            # Made below, so it cannot be named yet.
            others_make_room=lambda: self.identities.make_room(),  # noqa: PLW0108
        )
        self.operations = Operations(
            self.supervisor, self.governance, limit=config.limits.concurrent_calls
        )
        self.legacy = LegacyServer(
            self.supervisor,
            self.agents,
            self.metrics,
            operations=self.operations,
            version=__version__,
        )
        self.identities = Identities(
            self.supervisor.join,
            partial(self.supervisor.end_agent, may_return=True),
            limit=config.limits.agent_sessions,
            idle=config.sessions.idle,
            lifetime=config.sessions.lifetime,
            others=lambda: len(self.agents),
            make_room_elsewhere=self.agents.make_room,
        )
        self.lot = ParkingLot(key, limit=config.limits.parked_calls, seconds=config.sessions.parked)
        self.stateless = StatelessServer(
            self.supervisor,
            self.operations,
            self.metrics,
            identities=self.identities,
            lot=self.lot,
            version=__version__,
        )
        self.gate = AgentGate(config.agent_auth, self.metrics)
        guard = _guard(config)
        self.app = AgentApp(
            self.legacy,
            self.supervisor,
            guard,
            body_limit=config.limits.request_bytes,
            stateless=self.stateless,
            gate=self.gate,
        )
        self.admin_app = AdminApp(
            self.supervisor,
            self.agents,
            self.metrics,
            guard=guard,
            stopping=self.draining.is_set,
            approvals=ApprovalsApi(self.holder, load_admin_token(self._state.path, os.environ)),
            policy=self.policy_status,
            sick=self._sick,
        )

    async def drain(self) -> None:
        """Refuses new calls, ends GET streams, lets calls in flight end; idempotent.

        Waits for them as long as `shutdownGrace` allows.
        """
        first = not self.draining.is_set()
        self.draining.set()
        if first:
            log().info("draining", calls=self.operations.in_flight)
        # A margin of the grace is kept for the deletions and the last answers.
        with trio.move_on_after(max(self.config.shutdown_grace - _MARGIN_SECONDS, 0.0)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._heed_hurry, nursery.cancel_scope)
                self.stateless.close()
                await self.legacy.drain()
                nursery.cancel_scope.cancel()
        self.governance.hurry(_GOVERNORS_SECONDS)
        # Ending the sessions under what is left gives each call an answer with its fate. It does
        # not wait for agents: one that stopped reading must not keep a server from being told.
        async with trio.open_nursery() as nursery:
            for runtime in self.supervisor.servers.values():
                nursery.start_soon(runtime.stop)

    def open_journal(self) -> None:
        """Opens the record of calls, if there is to be one.

        Raises:
            UserError: it cannot be used.
        """
        if self.config.audit is None:
            return
        # Late, as only this needs the package, and signatures.
        from kars_router.audit import Journal

        self.journal = journal = Journal.open(
            self.config.audit, state=self._state.path, metrics=self.metrics
        )
        self.governance.recorder = journal
        self.governance.fail_open = self.config.audit.on_failure is OnAuditFailure.ALLOW
        self.supervisor.observer.note = journal.note
        self.holder.note = journal.note

    async def start(self) -> None:
        """Puts the policies in force; before anything is served."""
        await self.governance.adopt(self._rules)
        self._note_configuration()

    def close(self) -> None:
        """Lets go of the state directory; the router is of no use afterwards. Idempotent."""
        if self.journal is not None:
            self.journal.close()
        self.records.close()
        self.holder.close()
        self._state.release()

    def hurry(self) -> None:
        """Ends the waiting for calls in flight, now and later; they end with their fate."""
        self._hurried.set()

    async def _heed_hurry(self, patience: trio.CancelScope) -> None:
        await self._hurried.wait()
        patience.cancel()

    async def apply(self, config: Config) -> None:
        """Takes over a changed configuration without touching sessions of unchanged servers.

        Servers, policies, limits, hosts, origins and session lifetimes change at once. Listeners,
        plugins, state, audit and logging need a restart; the log names them.

        Raises:
            ConfigError: a policy cannot be used; then nothing has changed.
            PluginError: a plugin failed to take the policies over; likewise.
        """
        changed = config.policies != self.config.policies
        auth = self.gate.prepare(config.agent_auth)
        # Last of what may be refused: governors hold things, so they must not be made in vain.
        rules = self.governance.prepare(config.policies) if changed else None
        fixed = ("listen", "admin", "listener", "plugins", "state", "audit", "log")
        pending = [n for n in fixed if getattr(config, n) != getattr(self.config, n)]
        if pending:
            log().warning("reload_needs_restart", settings=pending)
        self.config = config
        if rules is not None:
            await self.governance.adopt(rules)
        self.gate.adopt(auth)
        self.governance.deadline = config.governance.deadline
        self.holder.limit = config.governance.held_calls
        self.holder.patience = config.governance.approval
        self._note_configuration()
        self.app.guard = _guard(config)
        self.app.body_limit = config.limits.request_bytes
        self.operations.limit = config.limits.concurrent_calls
        for agents in (self.agents, self.identities):
            agents.limit = config.limits.agent_sessions
            agents.idle = config.sessions.idle
            agents.lifetime = config.sessions.lifetime
        self.lot.limit = config.limits.parked_calls
        self.lot.seconds = config.sessions.parked
        await self.supervisor.apply(config.servers)

    def refuse(self, problems: Sequence[str]) -> None:
        """Takes note of a changed configuration that was refused, for whoever asks.

        Args:
            problems: what is wrong with it; empty if what was refused has been taken back.
        """
        self.policy_status.refuse(problems)
        if problems:
            self.supervisor.observer.note("configuration_refused", problems=list(problems))

    def _note_configuration(self) -> None:
        self.policy_status.adopt(self.config)
        self.supervisor.observer.note("configuration", digest=self.policy_status.digest)

    def _sick(self) -> str:
        journal = self.journal
        return "" if journal is None or journal.healthy else journal.error or "unknown"

    def _connector(self, name: str, server: Server) -> Connector:
        return new_connector(
            name, server, self.config.limits, self._transports, lookout=self.supervisor.lookout
        )


@asynccontextmanager
async def open_router(
    config: Config,
    *,
    serve: bool = True,
    transports: TransportFactory = default_transport,
) -> AsyncIterator[Router]:
    """Runs a router for as long as the context is open.

    On leaving, however that happens, calls in flight may end within `shutdownGrace`, then every
    upstream session is deleted, each within two seconds.

    Args:
        config: the configuration.
        serve: whether to listen for agents; False if another server runs `Router.app`.
        transports: makes the transport for a server.

    Yields:
        the router, once it listens.

    Raises:
        UserError: an address cannot be bound, the state cannot be used, a plugin is broken.
    """
    # Everything that can fail for a reason the user can mend comes before the first nursery.
    with ExitStack() as stack:
        router = Router(config, transports)
        stack.callback(router.close)
        router.open_journal()
        places = []
        for app, address in (
            (router.admin_app, config.admin),
            (router.app, config.listen if serve else None),
        ):
            bound = listen.bind(address) if address is not None else None
            if bound is not None:
                stack.callback(bound.close)
            places.append((app, bound))
        stack.pop_all()
    try:
        await router.start()
        async with _recording(router), trio.open_nursery() as upstream:
            await upstream.start(router.supervisor.run, config.servers)
            upstream.start_soon(router.agents.run)
            await upstream.start(router.legacy.run)
            upstream.start_soon(router.gate.run)
            upstream.start_soon(router.identities.run)
            await upstream.start(router.lot.run)
            async with trio.open_nursery() as listeners:
                urls = [
                    ""
                    if bound is None
                    else await listeners.start(
                        partial(
                            listen.serve,
                            app,
                            bound,
                            router.draining.wait,
                            grace=max(config.shutdown_grace - _EXIT_SECONDS, 0.0),
                            listener=config.listener,
                        )
                    )
                    for app, bound in places
                ]
                router.admin_url, router.agent_url = urls
                log().info(
                    "listening",
                    agent=router.agent_url,
                    admin=router.admin_url,
                    listener=config.listener.value,
                )
                for path, problem in advice(config):
                    log().warning("config_warning", path=path, problem=problem)
                try:
                    yield router
                finally:
                    with trio.CancelScope(shield=True):  # bounded by `shutdownGrace`
                        await router.drain()
                    # Agents may take their last answers, but must not hold up the exit.
                    listeners.cancel_scope.deadline = trio.current_time() + _LAST_ANSWERS_SECONDS
            upstream.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):  # each governor is bounded
            await router.governance.aclose()
        router.close()
        log().info("stopped")


@asynccontextmanager
async def _recording(router: Router) -> AsyncIterator[None]:
    """Has records passed on and signed for as long as the context is open."""
    if router.journal is None:
        yield
        return
    async with trio.open_nursery() as nursery:
        await nursery.start(router.journal.run, router.plugins.audit_sinks())
        yield
        nursery.cancel_scope.cancel()


async def probe_servers(config: Config) -> list[tuple[str, bool, str, list[str]]]:
    """Opens each server once and lists its tools, for `kars check --connect`.

    Returns:
        for each server its name, whether it answered, what was wrong, the admitted tools.
    """
    probed = await probe_definitions(config)
    return [(name, reached, error, list(tools)) for name, reached, error, tools in probed]


async def probe_definitions(
    config: Config,
) -> list[tuple[str, bool, str, dict[str, Mapping[str, Any]]]]:
    """Opens each server once and reads the definitions of its admitted tools, to pin them.

    Returns:
        for each server its name, whether it answered, what was wrong, the definitions by tool.
    """
    # Looking at servers must leave no trace in the state of a router that may be running.
    quiet = Router(evolve(config, state=None, audit=None, policies=()), default_transport)
    found = []
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(quiet.supervisor.run, config.servers)
            longest = max((s.timeouts.connect for s in config.servers.values()), default=1.0)
            await quiet.supervisor.wait_tried(longest * 4)
            for name, runtime in quiet.supervisor.servers.items():
                tools = {tool.name: tool.definition for tool in runtime.catalogue.tools.values()}
                found.append((name, runtime.state == "ready", runtime.error, tools))
            nursery.cancel_scope.cancel()
    finally:
        quiet.close()
    return found


def _default_state() -> Path | None:
    home = os.environ.get("HOME")
    return Path(home) / ".kars" if home else None


def _guard(config: Config) -> Guard:
    hosts = {*config.allowed_hosts}
    host = config.listen.host
    if host:
        hosts.add(f"[{host}]" if ":" in host else host)
    return Guard(hosts, config.allowed_origins)
