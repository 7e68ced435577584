"""Agents and servers of both eras around one router, so that a test can be made for each cell.

Both servers can do the same things, and both agents have the same methods; how each era does it is
this file's business. There is no socket, so a virtual clock works.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

import httpx
import msgspec
import trio
from agent_kit import BASE, BOTH, events
from attrs import define, evolve, field
from serving_kit import open_client

from kars_router.config.load import build
from kars_router.service import Router, open_router
from kars_router.testing import AsgiBridge, Call, HeartbeatServer, RpcError
from kars_router.testing.stateless_server import PROTOCOL, StatelessCall, StatelessServer

LEVELS = ("debug", "info", "warning", "error")
STATELESS = "2026-07-28"
EVERYTHING: Mapping[str, Any] = {
    "sampling": {},
    "elicitation": {"form": {}, "url": {}},
    "roots": {"listChanged": True},
}
# One thing of each kind that a server can ask, with an answer.
QUESTIONS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "form": (
        "elicitation/create",
        {"mode": "form", "message": "Who?", "requestedSchema": {"type": "object"}},
        {"action": "accept", "content": {"name": "Ada"}},
    ),
    "url": (
        "elicitation/create",
        {"mode": "url", "message": "Go", "url": "https://example.com/a", "elicitationId": "e1"},
        {"action": "accept"},
    ),
    "sampling": (
        "sampling/createMessage",
        {"messages": [], "maxTokens": 5},
        {"role": "assistant", "content": {"type": "text", "text": "hm"}, "model": "m"},
    ),
    "roots": ("roots/list", {}, {"roots": [{"uri": "file:///work", "name": "w"}]}),
}


class Agent(Protocol):
    """An agent of either era.

    Attributes:
        said: the notifications that came on the streams of requests, in order.
        heard: those that came on the stream that belongs to no request.
        asked: the questions that were put to it: method and params.
        answers: what it answers, by method.
        level: the least important log messages that it wants; set before the request.
    """

    said: list[dict[str, Any]]
    heard: list[dict[str, Any]]
    asked: list[tuple[str, Any]]
    answers: dict[str, Any]

    async def request(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Makes a request, answers what is asked meanwhile, and returns the result.

        Raises:
            RpcError: it was answered with an error.
        """
        ...

    async def start(self, capabilities: Mapping[str, Any]) -> Any:
        """Gets to know the endpoint; returns its capabilities."""
        ...

    async def want_logs(self, level: str) -> None:
        """Says which log messages are wanted from now on."""
        ...

    async def watch(self, *uris: str) -> None:
        """Says which resources are of interest, and listens to what belongs to no request."""
        ...

    async def abandon(
        self, params: Mapping[str, Any], after: Callable[[], Awaitable[None]]
    ) -> None:
        """Makes a tools/call and cancels it once `after` has returned."""
        ...


@define(eq=False)
class _Base:
    client: httpx.AsyncClient
    nursery: trio.Nursery
    path: str
    said: list[dict[str, Any]] = field(factory=list)
    heard: list[dict[str, Any]] = field(factory=list)
    asked: list[tuple[str, Any]] = field(factory=list)
    answers: dict[str, Any] = field(
        factory=lambda: {method: answer for method, _, answer in QUESTIONS.values()}
    )
    ids: int = 0

    def _next(self) -> int:
        self.ids += 1
        return self.ids

    async def _read(
        self, response: httpx.Response, take: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any] | None:
        """Gives what comes to `take`, but for the response, which is returned."""
        if response.headers.get("content-type", "").startswith("application/json"):
            whole: dict[str, Any] = msgspec.json.decode(await response.aread())
            return whole
        rest, answer = b"", None
        async for chunk in response.aiter_raw():
            complete, _, rest = (rest + chunk).rpartition(b"\n\n")
            for message in events(complete):
                assert answer is None, "a message after the response"
                if "method" in message:
                    take(message)
                else:
                    answer = message
        return answer


def _outcome(message: dict[str, Any] | None, ident: int) -> Any:
    assert message is not None, "a stream without an answer"
    assert message["id"] == ident
    if "error" in message:
        error = message["error"]
        raise RpcError(error["code"], error["message"], error.get("data"))
    return message["result"]


@define(eq=False)
class HandshakeAgent(_Base):
    """An agent that initializes, answers on the stream of its request, and listens by GET."""

    session: str = ""

    async def start(self, capabilities: Mapping[str, Any]) -> Any:
        params = {
            "protocolVersion": "2025-11-25",
            "capabilities": capabilities,
            "clientInfo": {"name": "cells", "version": "1"},
        }
        async with self._post(self._message("initialize", params)) as response:
            self.session = response.headers["mcp-session-id"]
            message = await self._read(response, self.said.append)
        await self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return _outcome(message, self.ids)["capabilities"]

    async def request(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        message = self._message(method, params)
        async with self._post(message) as response:
            return _outcome(await self._read(response, self._take), message["id"])

    async def want_logs(self, level: str) -> None:
        await self.request("logging/setLevel", {"level": level})

    async def watch(self, *uris: str) -> None:
        await self.nursery.start(self._listen)
        for uri in uris:
            await self.request("resources/subscribe", {"uri": uri})

    async def abandon(
        self, params: Mapping[str, Any], after: Callable[[], Awaitable[None]]
    ) -> None:
        message = self._message("tools/call", params)
        async with trio.open_nursery() as nursery:

            async def call() -> None:
                async with self._post(message) as response:
                    assert await self._read(response, self._take) is None

            nursery.start_soon(call)
            await after()
            params = {"requestId": message["id"], "reason": "enough"}
            await self._send(
                {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params}
            )

    async def _listen(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        headers = {"accept": "text/event-stream", "mcp-session-id": self.session}
        async with self.client.stream("GET", BASE + self.path, headers=headers) as response:
            assert response.status_code == 200
            task_status.started()
            await self._read(response, self._hear)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self.nursery.start_soon(self._answer, message)
        else:
            self.said.append(message)

    def _hear(self, message: dict[str, Any]) -> None:
        if "id" in message:
            self.nursery.start_soon(self._answer, message)
        else:
            self.heard.append(message)

    async def _answer(self, question: dict[str, Any]) -> None:
        self.asked.append((question["method"], question.get("params")))
        answer = self.answers[question["method"]]
        await self._send({"jsonrpc": "2.0", "id": question["id"], "result": answer})

    def _message(self, method: str, params: Mapping[str, Any] | None) -> dict[str, Any]:
        message = {"jsonrpc": "2.0", "id": self._next(), "method": method}
        return message if params is None else {**message, "params": params}

    async def _send(self, message: Mapping[str, Any]) -> None:
        async with self._post(message) as response:
            assert response.status_code == 202

    @asynccontextmanager
    async def _post(self, message: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        headers = {"accept": BOTH, "content-type": "application/json"}
        if self.session:
            headers |= {"mcp-session-id": self.session, "mcp-protocol-version": "2025-11-25"}
        content = msgspec.json.encode(message)
        url = BASE + self.path
        async with self.client.stream("POST", url, content=content, headers=headers) as response:
            yield response


@define(eq=False)
class StatelessAgent(_Base):
    """An agent that says everything with each request, and calls again when it is asked."""

    capabilities: Mapping[str, Any] = field(factory=dict)
    level: str = ""
    rounds: int = 0

    async def start(self, capabilities: Mapping[str, Any]) -> Any:
        self.capabilities = capabilities
        return (await self.request("server/discover"))["capabilities"]

    async def request(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        params = dict(params or {})
        while True:
            result = await self._once(method, params)
            if result["resultType"] == "complete":
                return result
            assert result["resultType"] == "input_required"
            self.rounds += 1
            given = {}
            for key, question in result.get("inputRequests", {}).items():
                self.asked.append((question["method"], question.get("params")))
                given[key] = self.answers[question["method"]]
            params = {**params, "inputResponses": given}
            params.pop("requestState", None)
            if "requestState" in result:
                params["requestState"] = result["requestState"]

    async def want_logs(self, level: str) -> None:
        self.level = level
        await trio.lowlevel.checkpoint()

    async def watch(self, *uris: str) -> None:
        await self.nursery.start(self._listen, uris)

    async def abandon(
        self, params: Mapping[str, Any], after: Callable[[], Awaitable[None]]
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._once, "tools/call", params)
            await after()
            nursery.cancel_scope.cancel()

    async def _once(self, method: str, params: Mapping[str, Any]) -> Any:
        async with self._post(method, params) as response:
            return _outcome(await self._read(response, self._take), self.ids)

    def _take(self, message: dict[str, Any]) -> None:
        assert "id" not in message, "a request to the client"
        self.said.append(message)

    async def _listen(
        self, uris: tuple[str, ...], task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        wanted: dict[str, Any] = {
            f"{what}ListChanged": True for what in ("tools", "prompts", "resources")
        }
        wanted["resourceSubscriptions"] = list(uris)
        async with self._post("subscriptions/listen", {"notifications": wanted}) as response:

            def take(message: dict[str, Any]) -> None:
                if message["method"] == "notifications/subscriptions/acknowledged":
                    task_status.started()
                else:
                    self.heard.append(message)

            await self._read(response, take)

    @asynccontextmanager
    async def _post(self, method: str, params: Mapping[str, Any]) -> AsyncIterator[httpx.Response]:
        meta: dict[str, Any] = {
            **params.get("_meta", {}),
            f"{PROTOCOL}protocolVersion": STATELESS,
            f"{PROTOCOL}clientCapabilities": self.capabilities,
            f"{PROTOCOL}clientInfo": {"name": "cells", "version": "1"},
        }
        if self.level:
            meta[f"{PROTOCOL}logLevel"] = self.level
        message = {
            "jsonrpc": "2.0",
            "id": self._next(),
            "method": method,
            "params": {**params, "_meta": meta},
        }
        headers = {
            "accept": BOTH,
            "content-type": "application/json",
            "mcp-protocol-version": STATELESS,
            "mcp-method": method,
        }
        if method in ("tools/call", "prompts/get", "resources/read"):
            headers["mcp-name"] = str(params["uri" if method == "resources/read" else "name"])
        content = msgspec.json.encode(message)
        url = BASE + self.path
        async with self.client.stream("POST", url, content=content, headers=headers) as response:
            yield response


@define(eq=False)
class Cell:
    """One agent, one server, and the router between them.

    Attributes:
        agent: the agent, started.
        capabilities: what it was told that the endpoint can do.
        server: the server's configured name.
        hand: the server of the handshake era.
        free: the server of the stateless era.
    """

    router: Router
    agent: Agent
    capabilities: Any
    server: str
    hand: HeartbeatServer
    free: StatelessServer
    prefixed: bool
    connect: Callable[[str], Any] = field(repr=False)

    def name(self, own: str) -> str:
        """What a tool or prompt is called at the agent's endpoint."""
        return f"{self.server}__{own}" if self.prefixed else own

    def uri(self, own: str) -> str:
        """What a resource is called there."""
        return f"{self.server}+{own}" if self.prefixed else own

    async def call(self, tool: str, **arguments: Any) -> Any:
        """A tools/call by the agent."""
        params = {"name": self.name(tool), "arguments": arguments}
        return await self.agent.request("tools/call", params)

    async def wait_for(self, method: str) -> None:
        """Returns once the server got a request or notification."""
        target = self.hand if self.server == "hand" else self.free
        await target.wait_until(lambda: bool(self.received(method)))

    def received(self, method: str) -> list[Any]:
        """What the server got."""
        return self.hand.requests(method) if self.server == "hand" else self.free.requests(method)


@asynccontextmanager
async def open_cell(
    agent: str,
    server: str,
    *,
    prefixed: bool = False,
    capabilities: Mapping[str, Any] = EVERYTHING,
    **config: Any,
) -> AsyncIterator[Cell]:
    """A router between two servers, and an agent that speaks to one of them.

    Args:
        agent: `handshake` or `stateless`.
        server: `hand`, `free`, or `both` at one address.
        prefixed: whether the agent speaks to the endpoint of all servers.
        capabilities: what it declares.
        config: further keys of the configuration.
    """
    rich = {
        "prompts": {"listChanged": True},
        "resources": {"listChanged": True, "subscribe": True},
        "completions": {},
        "logging": {},
    }
    async with (
        trio.open_nursery() as nursery,
        HeartbeatServer.open(capabilities=rich) as hand,
        StatelessServer.open() as free,
    ):
        _prepare_hand(hand)
        _prepare_free(free)
        free.add_tool("increment", free.tools["fail"][2])  # it knows no one to count for

        async def both(scope: Any, receive: Any, send: Any) -> None:
            version = dict(scope["headers"]).get(b"mcp-protocol-version")
            await (free if version == STATELESS.encode() else hand).app(scope, receive, send)

        apps = {"hand": hand.app, "free": free.app, "both": both}
        servers: dict[str, dict[str, Any]] = {
            name: {"url": f"http://{name}.test/mcp", "allowedTools": ["*"]} for name in apps
        }
        servers["both"]["era"] = "mirror"
        whole = evolve(build({"servers": servers, **config}), admin=None, state=None)
        async with open_router(
            whole, serve=False, transports=lambda name, _: AsgiBridge(apps[name], nursery)
        ) as router:
            path = "/mcp" if prefixed else f"/mcp/{server}"
            kinds: dict[str, Any] = {"handshake": HandshakeAgent, "stateless": StatelessAgent}

            async with open_client(router.app, nursery) as client, trio.open_nursery() as streams:

                def connect(kind: str) -> Any:
                    return kinds[kind](client, streams, path)

                made = connect(agent)
                offered = await made.start(capabilities)
                yield Cell(router, made, offered, server, hand, free, prefixed, connect)
                streams.cancel_scope.cancel()
        nursery.cancel_scope.cancel()


def _prepare_hand(server: HeartbeatServer) -> None:
    watched: set[tuple[str, str]] = set()

    async def question(call: Call) -> Any:
        answer = await call.ask(call.arguments["method"], call.arguments.get("params"))
        return _text(answer)

    async def log(call: Call) -> Any:
        for level in LEVELS:
            call.notify("notifications/message", {"level": level, "data": f"said at {level}"})
            await trio.lowlevel.checkpoint()
        return {"content": []}

    async def subscribe(call: Call) -> Any:
        watched.add((call.session.id, call.params["uri"]))
        return {}

    async def unsubscribe(call: Call) -> Any:
        watched.discard((call.session.id, call.params["uri"]))
        return {}

    async def change(call: Call) -> Any:
        for session, uri in watched:
            server.notify("notifications/resources/updated", {"uri": uri}, session)
        return {"content": []}

    async def trigger(call: Call) -> Any:
        server.notify(f"notifications/{call.arguments['list']}/list_changed")
        return {"content": []}

    server.add_tool("question", question)
    server.add_tool("log", log)
    server.add_tool("change", change)
    server.add_tool("trigger", trigger)
    server.add_method("resources/subscribe", subscribe)
    server.add_method("resources/unsubscribe", unsubscribe)
    server.add_method("logging/setLevel", _always({}))
    server.add_method("prompts/list", _always({"prompts": [{"name": "greet"}]}))
    greeting = {"role": "user", "content": {"type": "text", "text": "Say hello"}}
    server.add_method("prompts/get", _always({"messages": [greeting]}))
    static = {"uri": "test://static", "name": "test://static"}
    server.add_method("resources/list", _always({"resources": [static]}))
    template = {"uriTemplate": "test://item/{id}", "name": "item"}
    server.add_method("resources/templates/list", _always({"resourceTemplates": [template]}))
    contents = [{"uri": "test://static", "text": "static"}]
    server.add_method("resources/read", _always({"contents": contents}))
    server.add_method("completion/complete", _always({"completion": {"values": ["a", "b"]}}))


def _prepare_free(server: StatelessServer) -> None:
    async def question(call: StatelessCall) -> Any:
        await trio.lowlevel.checkpoint()
        if call.answers is not None:
            assert call.state() == "it's \u00e9"
            return _text({"result": call.answers["q"]})
        asked = {"method": call.arguments["method"], "params": call.arguments.get("params", {})}
        return call.ask({"q": asked}, "it's \u00e9")

    async def log(call: StatelessCall) -> Any:
        await trio.lowlevel.checkpoint()
        for level in LEVELS:
            call.log(level, f"said at {level}")
        return {"content": []}

    async def change(call: StatelessCall) -> Any:
        await trio.lowlevel.checkpoint()
        server.change_resource("test://static", "changed")
        return {"content": []}

    server.add_tool("question", question)
    server.add_tool("log", log)
    server.add_tool("change", change)


def _always(result: Mapping[str, Any]) -> Callable[[Call], Any]:
    async def handle(_: Call) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        return result

    return handle


def _text(value: Any) -> dict[str, Any]:
    kept = {name: value[name] for name in ("result", "error") if name in value}
    return {"content": [{"type": "text", "text": msgspec.json.encode(kept).decode()}]}
