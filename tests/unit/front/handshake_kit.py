"""Handshake-era agents and nothing behind them: what servers would do is each test's to say."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import trio
from agent_kit import Listening, Visitor, initialize, rpc
from attrs import define
from serving_kit import open_client
from trio.testing import wait_all_tasks_blocked

from kars_router.config.schema import Server
from kars_router.errors import AgentError
from kars_router.front.agents import AgentRegistry, AgentSession
from kars_router.front.asgi import AgentApp
from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.guard import Guard
from kars_router.front.handshake_caller import HandshakePort
from kars_router.front.legacy import LegacyServer
from kars_router.front.operations import Answer, Operations
from kars_router.front.sealing import Sealer
from kars_router.governance.approvals import ApprovalStore
from kars_router.governance.holding import Holder
from kars_router.governance.runner import Governance
from kars_router.plugins import Plugins
from kars_router.session.caller import AgentPort, Reply
from kars_router.session.records import Records
from kars_router.session.server import Connector
from kars_router.session.supervisor import Supervisor
from kars_router.telemetry import Metrics
from kars_router.wire import jsonrpc

LIFETIME = 100_000.0
ALL = {"sampling": {}, "elicitation": {"form": {}, "url": {}}, "roots": {"listChanged": True}}
QUESTION = b'{"mode":"form","message":"Sure?","requestedSchema":{"type":"object"}}'
ELICIT = "elicitation/create"

Work = Callable[[AgentCaller], Awaitable[Answer]]


def done(value: bytes = b'{"content":[]}', **more: Any) -> Answer:
    """A result."""
    return Answer(result=value, **more)


def _no_connector(name: str, server: Server) -> Connector:
    raise AssertionError("there are no servers")


class Upstream(Supervisor):
    """An upstream side without servers, which keeps what it is told of agents."""

    def __init__(self, metrics: Metrics, records: Records) -> None:
        super().__init__(Plugins.load(), metrics, records, _no_connector, version="1")
        self.joined: dict[str, list[AgentPort]] = {}
        self.told: list[tuple[str, str]] = []

    def join(self, agent: str, port: AgentPort) -> None:
        self.joined.setdefault(agent, []).append(port)

    def set_log_level(self, agent: str) -> None:
        self.told.append((agent, f"level {self.joined[agent][-1].log_level}"))

    def roots_changed(self, agent: str) -> None:
        self.told.append((agent, "roots"))

    def end_agent(self, agent: str, reason: str, *, may_return: bool = False) -> None:
        self.told.append((agent, "end"))
        super().end_agent(agent, reason, may_return=may_return)


class Scripted(Operations):
    """Operations that do what a test says.

    Attributes:
        work: what is done, by tool or else by method.
        seen: the requests that came, and what was subscribed.
        slow: seconds until it is known what servers can do.
    """

    def __init__(self, supervisor: Supervisor, governance: Governance) -> None:
        super().__init__(supervisor, governance, limit=64)
        self.work: dict[str, Work] = {}
        self.seen: list[tuple[Requester, str, bytes]] = []
        self.callers: list[AgentCaller] = []
        self.slow = 0.0
        self.declared = b'{"tools":{"listChanged":true},"logging":{},"x":[1.50]}'

    def overheard(self, server: str, agent: str) -> None:
        return None

    async def perform(
        self, who: Requester, method: str, params: bytes, caller: AgentCaller
    ) -> Answer:
        self.seen.append((who, method, params))
        self.callers.append(caller)
        name = jsonrpc.decode(params or b"{}").get("name", method)
        if name not in self.work:
            raise AgentError(jsonrpc.METHOD_NOT_FOUND, f"unknown method: {name}")
        caller.server = "box"
        self.in_flight += 1
        try:
            return await self.work[name](caller)
        finally:
            self.in_flight -= 1
            self._idle.set()

    async def subscribe(self, who: Requester, params: bytes) -> bytes | None:
        self.seen.append((who, "subscribe", params))
        return jsonrpc.error_object(-32002, "no such resource") if b"none" in params else None

    def unsubscribe(self, who: Requester, params: bytes) -> None:
        self.seen.append((who, "unsubscribe", params))

    async def capabilities(self, endpoint: str) -> bytes:
        await trio.sleep(self.slow)
        return self.declared

    def instructions(self, endpoint: str) -> str:
        return f"Use {endpoint or 'all'}."


@define
class Agent:
    """One agent session, seen from the agent."""

    kit: Kit
    ident: str

    @property
    def session(self) -> AgentSession:
        """The same, seen from the router."""
        found = self.kit.agents.find(self.ident, "")
        assert found is not None
        return found

    @property
    def port(self) -> HandshakePort:
        port = self.session.port
        assert isinstance(port, HandshakePort)
        return port

    async def post(self, message: Any) -> httpx.Response:
        return await self.kit.post(message, self.ident)

    async def request(self, method: str, params: Any = None, ident: Any = 1) -> Any:
        """The response to a request, as it is decoded from plain JSON."""
        response = await self.post(rpc(method, params, ident))
        assert response.headers["content-type"] == "application/json"
        return response.json()

    async def notify(self, method: str, params: Any = None) -> None:
        message = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        response = await self.post(message)
        assert (response.status_code, response.content) == (202, b"")

    async def answer(self, ident: Any, result: Any = None) -> None:
        """Answers a question; by an error if there is no result."""
        outcome = {"result": result} if result is not None else {"error": {"code": -1}}
        response = await self.post({"jsonrpc": "2.0", "id": ident, **outcome})
        assert (response.status_code, response.content) == (202, b"")

    def call(self, name: str = "work", ident: Any = 1) -> Any:
        """The response to a tools/call, as a stream that is read until the block ends."""
        return self.kit.open(rpc("tools/call", {"name": name}, ident), self.ident)

    def listen(self, after: str = "") -> Any:
        """A GET stream that is read until the block ends."""
        return self.kit.listen(self.ident, after=after)


@define(kw_only=True)
class Kit(Visitor):
    """A router's agent side with scripted operations."""

    operations: Scripted
    upstream: Upstream
    agents: AgentRegistry
    legacy: LegacyServer
    metrics: Metrics

    async def connect(self, revision: str = "2025-11-25", capabilities: Any = None) -> Agent:
        """A new agent, initialized; it declares everything unless told otherwise."""
        message = initialize(revision)
        message["params"]["capabilities"] = ALL if capabilities is None else capabilities
        response = await self.post(message)
        assert response.status_code == 200
        return Agent(self, response.headers["mcp-session-id"])

    def on(self, name: str) -> Callable[[Work], Work]:
        """Says what a tool, or a method, does."""

        def take(work: Work) -> Work:
            self.operations.work[name] = work
            return work

        return take

    def sample(self, name: str) -> float | None:
        return self.metrics.registry.get_sample_value(name)


def no_governance() -> Governance:
    """A governance without governors."""
    metrics = Metrics()
    store = ApprovalStore(None, time.time)
    holder = Holder(store, metrics, limit=1, patience=1.0, clock=time.time)
    return Governance(Plugins(), metrics, holder, state=None, deadline=1.0)


@asynccontextmanager
async def open_kit(*, key: bytes = b"k" * 32, **options: Any) -> AsyncIterator[Kit]:
    """Runs a router's agent side."""
    metrics, records = Metrics(), Records(None, LIFETIME)
    upstream = Upstream(metrics, records)
    governance = no_governance()
    operations = Scripted(upstream, governance)
    agents = AgentRegistry(
        Sealer(key),
        metrics,
        limit=64,
        idle=options.get("idle", 3600.0),
        lifetime=LIFETIME,
        has_ended=records.has_ended,
        on_end=upstream.end_agent,
        clock=lambda: 1000.0,
    )
    legacy = LegacyServer(upstream, agents, metrics, operations=operations, version="1")
    app = AgentApp(legacy, upstream, Guard(), body_limit=1 << 20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(agents.run)
        await nursery.start(legacy.run)
        async with open_client(app, nursery) as client:
            yield Kit(
                client,
                operations=operations,
                upstream=upstream,
                agents=agents,
                legacy=legacy,
                metrics=metrics,
            )
        nursery.cancel_scope.cancel()
    governance.holder.close()


async def ask(caller: AgentCaller, method: str = ELICIT, params: bytes = QUESTION) -> Answer:
    """A tool that asks its agent something, and returns the answer as it came."""
    return told(await caller.ask(method, params))


def told(reply: Reply) -> Answer:
    """A result that holds an agent's answer."""
    value = reply.result if reply.result is not None else reply.error
    return done(b'{"answer":%b}' % (value or b"null"))


async def settle() -> None:
    """Waits until nothing happens any more by itself, without letting time pass."""
    await wait_all_tasks_blocked()


def result_of(listening: Listening) -> Any:
    """The result that ends a stream."""
    return listening.messages[-1]["result"]


def decode(data: bytes) -> Any:
    return msgspec.json.decode(data)
