"""The agent side of the stateless era between scripted operations and agents, without servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import httpx
import msgspec
import trio
import trio.testing
from agent_kit import BASE, BOTH, Listening
from attrs import define, field
from serving_kit import open_client

from kars_router.errors import AgentError
from kars_router.front.asgi import AgentApp
from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.exchange import Exchange, Receive, Scope, Send
from kars_router.front.guard import Guard
from kars_router.front.identity import Identities
from kars_router.front.operations import Answer, Operations
from kars_router.front.parking import ParkingLot
from kars_router.front.stateless import StatelessServer
from kars_router.model import Tool
from kars_router.session.caller import AgentPort
from kars_router.telemetry import Metrics
from kars_router.wire import jsonrpc
from kars_router.wire.params import HeaderPlan

REVISION = "2026-07-28"
PREFIX = "io.modelcontextprotocol/"
KEY = bytes(range(32))
CAPABILITIES: Mapping[str, Any] = {
    "tools": {"listChanged": True},
    "prompts": {"listChanged": True},
    "resources": {"listChanged": True, "subscribe": True},
    "logging": {},
}
ELSEWHERE = 418

AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[[Requester, dict[str, Any], AgentCaller], Awaitable[Answer]]


class ScriptedOperations(Operations):
    """Operations whose ends are a test's business.

    Attributes:
        handlers: what is done, by method.
        offered: the capabilities of every endpoint.
        tools: tools by name.
        performed: who asked for what with which params, in order.
        watched: what was subscribed and unsubscribed, in order.
        refused: why a subscription is refused, by URI: an error's text.
        hanging: URIs whose subscription never gets an answer.
    """

    def __init__(self) -> None:
        self.in_flight = self.unsent = 0
        self.accepting = True
        self.handlers: dict[str, Handler] = {}
        self.offered: Mapping[str, Any] = CAPABILITIES
        self.tools: dict[str, Tool] = {}
        self.performed: list[tuple[Requester, str, bytes]] = []
        self.watched: list[tuple[str, str, str]] = []
        self.refused: dict[str, str] = {}
        self.hanging: set[str] = set()

    def overheard(self, server: str, agent: str) -> None:
        return None

    async def perform(
        self, who: Requester, method: str, params: bytes, caller: AgentCaller
    ) -> Answer:
        self.performed.append((who, method, params))
        await trio.lowlevel.checkpoint()
        handler = self.handlers.get(method)
        if handler is None:
            raise AgentError(jsonrpc.METHOD_NOT_FOUND, f"unknown method: {method}")
        caller.begin()
        self.in_flight += 1
        try:
            return await handler(who, jsonrpc.decode(params or b"{}"), caller)
        finally:
            self.in_flight -= 1

    async def subscribe(self, who: Requester, params: bytes) -> bytes | None:
        uri = jsonrpc.decode(params)["uri"]
        self.watched.append(("subscribe", who.agent, uri))
        await trio.lowlevel.checkpoint()
        if uri in self.hanging:
            await trio.sleep_forever()
        if uri.startswith("unknown"):
            raise AgentError(jsonrpc.INVALID_PARAMS, "unknown resource")
        wrong = self.refused.get(uri)
        return None if wrong is None else jsonrpc.error_object(-1, wrong)

    def unsubscribe(self, who: Requester, params: bytes) -> None:
        self.watched.append(("unsubscribe", who.agent, jsonrpc.decode(params)["uri"]))

    async def capabilities(self, endpoint: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return jsonrpc.encode(self.offered)

    def instructions(self, endpoint: str) -> str:
        return f"how to use {endpoint or 'all'}"

    def tool(self, endpoint: str, name: str) -> Tool | None:
        return self.tools.get(name)


def fixed(result: Any = None, **more: Any) -> Handler:
    """Ends each request with this result, or with these attributes of an answer."""

    async def handle(_: Requester, __: dict[str, Any], ___: AgentCaller) -> Answer:
        await trio.lowlevel.checkpoint()
        written = result if isinstance(result, bytes) else jsonrpc.encode(result)
        return Answer(**(more or {"result": written}))

    return handle


def meta(capabilities: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """An envelope; further keys as they are."""
    return {
        f"{PREFIX}protocolVersion": REVISION,
        f"{PREFIX}clientCapabilities": dict(capabilities or {}),
        f"{PREFIX}clientInfo": {"name": "test", "version": "1"},
        **more,
    }


def headers(method: str, params: Mapping[str, Any]) -> dict[str, str]:
    """The headers that go with a request."""
    found = {"mcp-protocol-version": REVISION, "mcp-method": method}
    name = params.get("uri") if method == "resources/read" else params.get("name")
    if method in ("tools/call", "prompts/get", "resources/read") and isinstance(name, str):
        found["mcp-name"] = name
    return found


@define(eq=False)
class Rig:
    """A server of the stateless era and an HTTP client of it.

    Attributes:
        app: what the client talks to.
        scope: what a middleware adds to each request's scope.
        joined: the agents that the upstream side was told of, by identifier.
        ended: what it was told of those that are gone, in order.
        plans: the headers that the tools of the server `box` want, by tool.
    """

    operations: ScriptedOperations
    identities: Identities
    lot: ParkingLot
    server: StatelessServer
    metrics: Metrics
    client: httpx.AsyncClient
    app: AsgiApp
    nursery: trio.Nursery
    scope: dict[str, Any]
    joined: dict[str, AgentPort]
    ended: list[tuple[str, str]]
    plans: dict[str, HeaderPlan]
    ids: int = field(default=100)

    def build(
        self, method: str, params: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """A well-formed request, as arguments for the HTTP client.

        Args:
            more: `capabilities`, `extra` (of `_meta`), `headers` (None takes one away), `ident`.
        """
        self.ids += 1
        whole = {**(params or {}), "_meta": meta(more.get("capabilities"), **more.get("extra", {}))}
        message = {
            "jsonrpc": "2.0",
            "id": more.get("ident", self.ids),
            "method": method,
            "params": whole,
        }
        usual: dict[str, str | None] = {
            "accept": BOTH,
            "content-type": "application/json",
            **headers(method, whole),
            **more.get("headers", {}),
        }
        return {
            "content": msgspec.json.encode(message),
            "headers": {name: value for name, value in usual.items() if value is not None},
        }

    async def post(
        self, method: str, params: Mapping[str, Any] | None = None, path: str = "/mcp", **more: Any
    ) -> httpx.Response:
        """POST a well-formed request; `more` as for `build`."""
        return await self.client.post(BASE + path, **self.build(method, params, **more))

    async def call(
        self, name: str = "tool", params: Mapping[str, Any] | None = None, **more: Any
    ) -> dict[str, Any]:
        """The result of a tools/call."""
        response = await self.post("tools/call", {"name": name, **(params or {})}, **more)
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()["result"]
        return result

    async def raw(
        self, body: Any, sent: Sequence[tuple[str, str]] | Mapping[str, str] = (), **more: Any
    ) -> httpx.Response:
        """POST a body with no other headers than the usual ones and these."""
        pairs = list(sent.items()) if isinstance(sent, Mapping) else list(sent)
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        usual = [("accept", BOTH), ("content-type", "application/json")]
        return await self.client.post(BASE + "/mcp", content=content, headers=usual + pairs, **more)

    @asynccontextmanager
    async def stream(
        self, method: str, params: Mapping[str, Any] | None = None, path: str = "/mcp", **more: Any
    ) -> AsyncIterator[Listening]:
        """A response that is read as it comes; leaving the block is leaving the router."""
        async with (
            self.client.stream("POST", BASE + path, **self.build(method, params, **more)) as reply,
            trio.open_nursery() as nursery,
        ):
            listening = Listening(reply)
            nursery.start_soon(listening.read)
            yield listening
            nursery.cancel_scope.cancel()

    async def stream_to_end(
        self, method: str, params: Mapping[str, Any] | None = None, **more: Any
    ) -> list[dict[str, Any]]:
        """The messages of a response that is an event stream."""
        async with self.stream(method, params, **more) as listening:
            await listening.ended.wait()
            return listening.messages

    async def settled(self) -> None:
        """Return once nothing runs any more that need not wait for the clock."""
        await trio.testing.wait_all_tasks_blocked()


class _OtherEra:
    """Says that a request came to the other strategy."""

    async def post(self, exchange: Exchange, *_: object) -> None:
        await exchange.respond(ELSEWHERE)

    get = delete = post

    def session_of(self, _: Exchange, __: str) -> None:
        raise AgentError(jsonrpc.INVALID_REQUEST, "unknown session", status=404)


@asynccontextmanager
async def open_rig(**options: Any) -> AsyncIterator[Rig]:
    """Runs a server for a `with` block.

    Args:
        options: `limit`, `idle`, `lifetime`, `others` of identities; `parked`, `seconds` and
            `clock` of the parking lot.
    """
    operations, metrics = ScriptedOperations(), Metrics()
    joined: dict[str, AgentPort] = {}
    ended: list[tuple[str, str]] = []
    added: dict[str, Any] = {}
    identities = Identities(
        joined.__setitem__,
        lambda agent, reason: ended.append((agent, reason)),
        limit=options.get("limit", 100),
        idle=options.get("idle", 3600.0),
        lifetime=options.get("lifetime", 7 * 86_400.0),
        others=lambda: options.get("others", 0),
    )
    lot = ParkingLot(
        KEY,
        limit=options.get("parked", 64),
        seconds=options.get("seconds", 600.0),
        clock=options.get("clock", trio.current_time),
    )
    plans: dict[str, HeaderPlan] = {}
    catalogue = SimpleNamespace(plans=plans)
    supervisor: Any = SimpleNamespace(servers={"box": SimpleNamespace(catalogue=catalogue)})
    server = StatelessServer(
        supervisor, operations, metrics, identities=identities, lot=lot, version="1.2.3"
    )
    app = AgentApp(
        cast("Any", _OtherEra()),
        supervisor,
        Guard(),
        body_limit=1 << 20,
        stateless=server,
    )

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app({**scope, **added}, receive, send)

    async with trio.open_nursery() as nursery:
        await nursery.start(lot.run)
        nursery.start_soon(identities.run)
        async with open_client(middleware, nursery) as client:
            yield Rig(
                operations=operations,
                identities=identities,
                lot=lot,
                server=server,
                metrics=metrics,
                client=client,
                app=middleware,
                nursery=nursery,
                scope=added,
                joined=joined,
                ended=ended,
                plans=plans,
            )
        nursery.cancel_scope.cancel()
