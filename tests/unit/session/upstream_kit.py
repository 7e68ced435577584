"""A router without sockets between a test and a scripted server: what the session tests share.

Everything goes through `open_router`, as in production; only the transport is an `AsgiBridge`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import msgspec
import trio
from attrs import define

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.schema import Config, Era, Server, Timeouts
from kars_router.model import CallOutcome, ToolCall
from kars_router.service import Router, open_router
from kars_router.session.base import Session
from kars_router.session.server import ServerRuntime
from kars_router.session.slot import Slot
from kars_router.testing import AsgiBridge, FaultPlan, HeartbeatServer, Received, text_of

URL = "http://upstream.test/mcp"
SETTINGS = Server(
    url=URL,
    allowed_tools=("*",),
    era=Era.HANDSHAKE,
    timeouts=Timeouts(connect=5.0, call=60.0),
)


@define(eq=False)
class Rig:
    """A router, the server behind it, and the bridge between them."""

    router: Router
    server: HeartbeatServer
    bridge: AsgiBridge

    async def call(self, tool: str, /, agent: str = "a", **arguments: Any) -> CallOutcome:
        params = msgspec.json.encode({"name": tool, "arguments": arguments})
        return await self.router.supervisor.call(
            ToolCall(agent=agent, server="s", tool=tool, params=params)
        )

    async def text(self, tool: str, /, agent: str = "a", **arguments: Any) -> str:
        """The text of a call that has to succeed."""
        outcome = await self.call(tool, agent, **arguments)
        assert outcome.result is not None, outcome
        return text_of(msgspec.json.decode(outcome.result))

    @property
    def runtime(self) -> ServerRuntime:
        return self.router.supervisor.servers["s"]

    def slot(self, agent: str = "a") -> Slot:
        return self.runtime.slots[agent]

    def session(self, agent: str = "a") -> Session:
        session = self.slot(agent).session
        assert session is not None
        return session

    def state(self, agent: str = "a") -> str:
        """The state of the agent's GET stream, as the admin address shows it."""
        found = [s.listen for s in self.router.supervisor.sessions() if s.agent == agent]
        assert len(found) == 1, found
        return found[0]

    def upstream_id(self, agent: str = "a") -> str:
        """The id of the agent's session on the server."""
        ident = self.session(agent).session_id
        assert ident is not None
        return ident

    def of(
        self, agent: str, method: str | None = None, *, http_method: str | None = None
    ) -> list[Received]:
        """What the server got in the agent's session."""
        ident = self.upstream_id(agent)
        found = self.server.requests(method, http_method=http_method)
        return [received for received in found if received.session == ident]

    def metric(self, name: str, **labels: str) -> float:
        value = self.router.metrics.registry.get_sample_value(name, {"server": "s", **labels})
        return 0.0 if value is None else value


@asynccontextmanager
async def open_rig(
    *,
    settings: Server = SETTINGS,
    state: Path | None = None,
    faults: FaultPlan | None = None,
    transport: Callable[[httpx.AsyncBaseTransport], httpx.AsyncBaseTransport] = lambda t: t,
    ready: bool = True,
    prepare: Callable[[HeartbeatServer], None] = lambda _: None,
    config: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Rig]:
    """A router in front of a `HeartbeatServer` with these options.

    On leaving it is checked that the router has closed every response.
    """
    async with trio.open_nursery() as nursery, HeartbeatServer.open(**options) as server:
        prepare(server)
        bridge = AsgiBridge(server.app, nursery, faults=faults)
        whole = make_config(settings, state=state, **(config or {}))
        async with open_router(
            whole, serve=False, transports=lambda *_: transport(bridge)
        ) as router:
            if ready:
                await router.supervisor.wait_tried(60)
            yield Rig(router, server, bridge)
        assert bridge.open_responses == 0
        nursery.cancel_scope.cancel()


def make_config(settings: Server = SETTINGS, **more: Any) -> Config:
    return Config(admin=None, servers=FrozenMap({"s": settings}), **more)


def with_settings(**changes: Any) -> Server:
    return attrs.evolve(SETTINGS, **changes)


def count(metric: float) -> int:
    return int(metric)
