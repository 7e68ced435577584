"""All upstream servers of a router, and the agents that use them.

Owns which servers there are, and what is known of agents on the upstream side. Must not know HTTP
or public names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import trio
from attrs import evolve, frozen

from kars_router.config.schema import Server
from kars_router.errors import HandshakeError
from kars_router.model import CallOutcome, SessionReset, ToolCall
from kars_router.plugins import Plugins
from kars_router.session.caller import AgentPort, Caller
from kars_router.session.observer import Observer
from kars_router.session.records import Records
from kars_router.session.requests import CALL, Request, Requests
from kars_router.session.server import Connector, ServerRuntime, Surroundings
from kars_router.session.slot import Slot
from kars_router.telemetry import Metrics, log
from kars_router.transports.lookout import Lookout
from kars_router.wire import jsonrpc, levels

_MOST_WATCHED: Final = 256

MakeConnector = Callable[[str, Server], Connector]


@frozen(kw_only=True)
class SessionStatus:
    """A live upstream session, as the admin address shows it."""

    server: str
    agent: str
    generation: int
    listen: str
    pings: int
    calls: int
    in_flight: int
    idle_seconds: float


class Supervisor:
    """The upstream side of a router.

    Args:
        plugins: the loaded plugins.
        metrics: where everything is counted.
        records: what outlives the process.
        connector: makes connectors for a server's settings.
        version: the router's version, for `clientInfo`.
        tool_limit: most tools kept of one server.

    Attributes:
        lookout: for the streams on which servers say what was not asked for.
    """

    def __init__(
        self,
        plugins: Plugins,
        metrics: Metrics,
        records: Records,
        connector: MakeConnector,
        *,
        version: str,
        tool_limit: int = 5000,
    ) -> None:
        self.servers: dict[str, ServerRuntime] = {}
        self._ports: dict[str, AgentPort] = {}
        self._metrics = metrics
        self._plugins = plugins
        self._records = records
        self._make_connector = connector
        self._listeners: list[Callable[[str], None]] = []
        self._nursery: trio.Nursery | None = None
        self.observer = Observer(plugins)
        self._around = Surroundings(
            plugins=plugins,
            observer=self.observer,
            metrics=metrics,
            records=records,
            version=version,
            tool_limit=tool_limit,
            changed=self._changed,
            ports=self._ports,
        )
        self.lookout = Lookout()
        self.requests = Requests(self.servers, plugins, metrics, records, lookout=self.lookout)

    async def run(
        self,
        servers: Mapping[str, Server],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Runs all servers until cancelled; they start concurrently, in the background.

        Cancellation deletes every upstream session, each within a bound.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.lookout.run)
            for name, settings in servers.items():
                await self._start(name, settings)
            task_status.started()
            await trio.sleep_forever()

    async def apply(self, servers: Mapping[str, Server]) -> None:
        """Takes over a new set of servers without touching the sessions of unchanged ones.

        A changed server takes calls under its new configuration before its old sessions are
        ended; calls in flight in those end with their fate. Returns when they are deleted.
        """
        stopping: list[ServerRuntime] = []
        for name, settings in servers.items():
            old = self.servers.get(name)
            if old is not None and _same_sessions(old.settings, settings):
                if old.settings != settings:
                    old.update(settings)
                continue
            await self._start(name, settings, reconfigured=True, replaces=old)
            if old is not None:
                stopping.append(old)
        stopping += [r for name, r in self.servers.items() if name not in servers]
        # The order is the configuration's, because lists show it.
        self.servers = {name: self.servers[name] for name in servers}
        self.requests.servers = self.servers
        for old in stopping:
            now = self.servers.get(old.name)
            if now is None or not now.catalogue.same_as(old.catalogue):
                self._changed(old.name)
        async with trio.open_nursery() as nursery:
            for old in stopping:
                nursery.start_soon(old.stop)
        for old in stopping:
            if old.name not in self.servers:
                self._metrics.tools_withheld.remove(old.name)

    def subscribe(self, listener: Callable[[str], None]) -> None:
        """Registers a function that is told the name of each server whose tools changed."""
        self._listeners.append(listener)

    def end_agent(self, agent: str, reason: str, *, may_return: bool = False) -> None:
        """Ends everything that belongs to an agent; deletion goes on in the background.

        Args:
            agent: the agent.
            reason: one clause, for the log.
            may_return: whether the same identifier may come again; it is then told what it lost.
        """
        for runtime in self.servers.values():
            runtime.end_agent(agent, reason)
        self._ports.pop(agent, None)
        if not may_return:
            self._records.note_end(agent)

    def return_reset(self, agent: str, server: str, reset: SessionReset) -> None:
        """Takes back a notice that did not reach its agent; the next result will carry it."""
        runtime = self.servers.get(server)
        slot = runtime.existing_slot(agent) if runtime else None
        if slot is not None and not self._records.has_ended(agent):
            slot.return_reset(agent, reset)

    async def wait_tried(self, seconds: float, only: str = "") -> None:
        """Waits until each server's first attempt has ended, for at most so many seconds.

        Args:
            seconds: the longest wait.
            only: the one server to wait for, or "" for all.
        """
        untried = [
            runtime.tried
            for name, runtime in self.servers.items()
            if only in ("", name) and not runtime.tried.is_set()
        ]
        if not untried:
            return
        with trio.move_on_after(seconds):
            for tried in untried:
                await tried.wait()

    async def call(self, call: ToolCall, caller: Caller | None = None) -> CallOutcome:
        """Makes a tools/call; see `Requests.make`."""
        request = Request(
            agent=call.agent, server=call.server, method=CALL, params=call.params, call=call
        )
        return await self.requests.make(request, caller or Caller())

    def join(self, agent: str, port: AgentPort) -> None:
        """Makes an agent known, before its first request; it is told things from then on."""
        self._ports[agent] = port

    async def subscribe_resource(self, agent: str, server: str, uri: str) -> bytes | None:
        """Has an agent told when a resource changes.

        Args:
            agent: the agent.
            server: the server's name.
            uri: the resource, as the server calls it.

        Returns:
            None, or what is wrong, as a JSON-RPC error object.
        """
        runtime = self.servers.get(server)
        present = agent in self._ports
        slot: Slot | None = None
        try:
            slot = await runtime.slot_for(agent) if runtime else None
            session = await slot.acquire() if slot else None
        except HandshakeError as error:
            log().debug("acquire_failed", failure=error.failure.summary())
            session = None
        if runtime is None or slot is None or session is None:
            text = f"the server {server} cannot be reached at the moment"
            return jsonrpc.error_object(jsonrpc.INTERNAL_ERROR, text)
        if slot.watchers.count(agent) >= _MOST_WATCHED:
            text = f"at most {_MOST_WATCHED} resources of a server can be watched"
            return jsonrpc.error_object(jsonrpc.REFUSED, text)
        # One after another, so that the second one knows what became of the first.
        async with slot.subscribing:
            if present and agent not in self._ports:
                return jsonrpc.error_object(jsonrpc.REFUSED, "the agent has left")
            if not slot.watchers.add(agent, uri):
                return None
            wrong = await session.subscribe(uri, time_limit=runtime.settings.timeouts.call)
            if wrong is not None:
                slot.watchers.remove(agent, uri)
            return wrong

    def unsubscribe_resource(self, agent: str, server: str, uri: str) -> None:
        """Takes that back; what was never asked for is no mistake. Never waits."""
        runtime = self.servers.get(server)
        slot = runtime.existing_slot(agent) if runtime else None
        if slot is not None and slot.watchers.remove(agent, uri) and slot.session is not None:
            slot.session.unsubscribe(uri)

    def set_log_level(self, agent: str) -> None:
        """Takes note of the log level that an agent's port names now; never waits."""
        for runtime in self.servers.values():
            slot = runtime.existing_slot(agent)
            if slot is not None:
                concerned = list(self._ports) if runtime.shares(agent) else [agent]
                slot.set_level(levels.most_verbose([self._level(a) for a in concerned]))

    def roots_changed(self, agent: str) -> None:
        """Tells the servers of an agent's own sessions that its roots have changed."""
        for runtime in self.servers.values():
            slot = None if runtime.shares(agent) else runtime.existing_slot(agent)
            if slot is not None and slot.session is not None:
                slot.session.roots_changed()

    def _level(self, agent: str) -> str:
        port = self._ports.get(agent)
        return port.log_level if port else ""

    def sessions(self) -> list[SessionStatus]:
        """The live upstream sessions."""
        now = trio.current_time()
        return [
            SessionStatus(
                server=runtime.name,
                agent=slot.agent,
                generation=slot.generation,
                listen=session.listen_state.value,
                pings=session.pings,
                calls=session.calls,
                in_flight=session.in_flight,
                idle_seconds=round(now - slot.last_used, 3),
            )
            for runtime in self.servers.values()
            for slot in runtime.slots.values()
            if (session := slot.session) is not None
        ]

    async def _start(
        self,
        name: str,
        settings: Server,
        *,
        reconfigured: bool = False,
        replaces: ServerRuntime | None = None,
    ) -> None:
        runtime = ServerRuntime(
            name,
            settings,
            self._make_connector(name, settings),
            self._around,
            reconfigured=reconfigured,
            replaces=replaces,
        )
        # Not before it can take calls: one that came earlier would find the server removed.
        if self._nursery is not None:
            await self._nursery.start(runtime.run)
        self.servers[name] = runtime

    def _changed(self, name: str) -> None:
        for listener in self._listeners:
            listener(name)
        for port in list(self._ports.values()):
            port.notify(name, "notifications/tools/list_changed", b"")


def _same_sessions(old: Server, new: Server) -> bool:
    """Whether sessions opened under one configuration may go on under the other."""
    names = ("allowed_tools", "allowed_resources", "allowed_prompts", "on_session_loss", "pins")
    return evolve(old, **{name: getattr(new, name) for name in names}) == new
