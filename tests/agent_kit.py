"""A router between scripted servers and agents, all in one process, for tests of its agent side.

There is no socket, so a virtual clock works. Knows how to speak HTTP to the router; what is right
to say is each test's business.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio
from attrs import define, evolve, field
from serving_kit import open_client

from kars_router.config.load import build
from kars_router.config.schema import Config
from kars_router.service import Router, open_router
from kars_router.testing import AsgiBridge, HeartbeatServer, PlainAgent

BASE = "http://127.0.0.1:8443"
BOTH = "application/json, text/event-stream"
REVISIONS = ("2025-11-25", "2025-06-18", "2025-03-26")
CALL = "kars.azure.com/call"
SESSION = "kars.azure.com/session"


def configuration(
    servers: Mapping[str, Mapping[str, Any]], *, state: Path | None = None, **more: Any
) -> Config:
    """A configuration as from a file, without an admin listener; all tools allowed by default."""
    whole = {
        name: {"url": f"http://{name}.test/mcp", "allowedTools": ["*"], **settings}
        for name, settings in servers.items()
    }
    return evolve(build({"servers": whole, **more}), admin=None, state=state)


@define
class Listening:
    """What came over an event stream so far.

    Attributes:
        chunks: the time and the bytes of each.
        ended: set at a clean end.
    """

    response: httpx.Response
    chunks: list[tuple[float, bytes]] = field(factory=list)
    ended: trio.Event = field(factory=trio.Event)
    _changed: trio.Event = field(factory=trio.Event)

    @property
    def content(self) -> bytes:
        """Everything in one piece."""
        return b"".join(chunk for _, chunk in self.chunks)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The messages, decoded."""
        return list(events(self.content))

    @property
    def ids(self) -> list[str]:
        """The ids of the events, that of the one without data included."""
        lines = self.content.splitlines()
        return [line[3:].strip().decode() for line in lines if line.startswith(b"id:")]

    @property
    def comments(self) -> list[float]:
        """When each comment came."""
        return [when for when, chunk in self.chunks if chunk.startswith(b":")]

    async def wait_for(self, condition: Callable[[Listening], bool], seconds: float = 60) -> None:
        """Return once `condition` holds."""
        with trio.fail_after(seconds):
            while not condition(self):
                await self._changed.wait()

    async def end(self, seconds: float = 3600) -> None:
        """Return once it has ended cleanly."""
        with trio.fail_after(seconds):
            await self.ended.wait()

    async def read(self) -> None:
        """Take everything until the end."""
        async for chunk in self.response.aiter_raw():
            self.chunks.append((trio.current_time(), chunk))
            self._wake()
        self.ended.set()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def events(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON messages of an event stream, each in one data line."""
    for line in body.splitlines():
        if line.startswith(b"data:") and line[5:].strip():
            yield msgspec.json.decode(line[5:], type=dict[str, Any])


@define
class Visitor:
    """Speaks HTTP to a router's agent side."""

    client: httpx.AsyncClient

    async def post(
        self,
        message: Any,
        session: str | None = None,
        *,
        path: str = "/mcp",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """POST a message, or bytes as they are."""
        content = message if isinstance(message, bytes) else msgspec.json.encode(message)
        ids = {"mcp-session-id": session} if session is not None else {}
        usual = {"accept": BOTH, "content-type": "application/json"}
        return await self.client.post(
            BASE + path, content=content, headers={**usual, **ids, **(headers or {})}
        )

    async def get(
        self,
        session: str | None = None,
        *,
        path: str = "/mcp",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """A GET that is expected to be refused, so that it ends."""
        ids = {"mcp-session-id": session} if session is not None else {}
        usual = {"accept": "text/event-stream"}
        return await self.client.get(BASE + path, headers={**usual, **ids, **(headers or {})})

    @asynccontextmanager
    async def listen(
        self, session: str | None, path: str = "/mcp", *, after: str = ""
    ) -> AsyncIterator[Listening]:
        """A GET stream, read until the block ends; goes on after an event if one is named."""
        headers = {"accept": "text/event-stream", "mcp-session-id": session or ""}
        if after:
            headers["last-event-id"] = after
        async with self.stream("GET", path, headers=headers) as listening:
            yield listening

    @asynccontextmanager
    async def open(
        self, message: Any, session: str | None, path: str = "/mcp"
    ) -> AsyncIterator[Listening]:
        """The response to a POST, read as it comes until the block ends."""
        headers = {
            "accept": BOTH,
            "content-type": "application/json",
            "mcp-session-id": session or "",
        }
        async with self.stream("POST", path, json=message, headers=headers) as listening:
            yield listening

    @asynccontextmanager
    async def stream(
        self, method: str, path: str = "/mcp", **request: Any
    ) -> AsyncIterator[Listening]:
        """A response that is read as it comes until the block ends."""
        async with (
            self.client.stream(method, BASE + path, **request) as response,
            trio.open_nursery() as nursery,
        ):
            listening = Listening(response)
            nursery.start_soon(listening.read)
            yield listening
            nursery.cancel_scope.cancel()


@define
class Bench(Visitor):
    """A running router, its servers, and HTTP clients of its two applications."""

    router: Router
    servers: Mapping[str, HeartbeatServer]
    admin: httpx.AsyncClient
    nursery: trio.Nursery

    @property
    def server(self) -> HeartbeatServer:
        """The only server."""
        (server,) = self.servers.values()
        return server

    def agent(self, path: str = "/mcp", **options: Any) -> PlainAgent:
        return PlainAgent(self.client, BASE + path, **options)

    async def connect(self, path: str = "/mcp", **options: Any) -> PlainAgent:
        """A new agent, initialized."""
        agent = self.agent(path, **options)
        await agent.initialize()
        return agent


@asynccontextmanager
async def open_bench(
    config: Config | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    servers: Mapping[str, HeartbeatServer] | None = None,
    **more: Any,
) -> AsyncIterator[Bench]:
    """Runs a router and, unless given, one scripted server for each configured one.

    Args:
        config: what the router runs; one server named `box` by default.
        options: of scripted servers, by name.
        servers: servers that run already.
        more: for `configuration`, if no `config` is given.
    """
    config = config or configuration(more.pop("configured", {"box": {}}), **more)
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        running = dict(servers or {})
        for name in config.servers:
            if name not in running:
                server = HeartbeatServer.open(**(options or {}).get(name, {}))
                running[name] = await stack.enter_async_context(server)
        router = await stack.enter_async_context(
            open_router(
                config,
                serve=False,
                transports=lambda name, _: AsgiBridge(running[name].app, nursery),
            )
        )
        client, admin = [
            await stack.enter_async_context(open_client(app, nursery))
            for app in (router.app, router.admin_app)
        ]
        yield Bench(client, router, running, admin, nursery)
        await stack.aclose()
        nursery.cancel_scope.cancel()


def rpc(method: str, params: Any = None, ident: Any = 1) -> dict[str, Any]:
    """A request; without params if they are None."""
    message = {"jsonrpc": "2.0", "id": ident, "method": method}
    return message if params is None else {**message, "params": params}


def initialize(revision: str | None = "2025-11-25", ident: Any = 1) -> dict[str, Any]:
    """An initialize request; without a revision if it is None."""
    params: dict[str, Any] = {"capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    if revision is not None:
        params["protocolVersion"] = revision
    return rpc("initialize", params, ident)
