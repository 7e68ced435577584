"""A `HeartbeatServer` with a client and an agent, for its own tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import trio
from attrs import define, field

from kars_router.testing import (
    AsgiBridge,
    HeartbeatServer,
    PlainAgent,
)

URL = "http://upstream.test/mcp"
ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@define
class Peer:
    """A server, a client of it, and an agent on that client."""

    server: HeartbeatServer
    client: httpx.AsyncClient
    agent: PlainAgent
    nursery: trio.Nursery

    def new_agent(self) -> PlainAgent:
        return PlainAgent(self.client, URL)

    async def post(self, message: Any, session: str | None = None, **headers: str) -> Any:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        ids = {"mcp-session-id": session} if session else {}
        content = message if isinstance(message, bytes) else msgspec.json.encode(message)
        return await self.client.post(URL, content=content, headers={**ACCEPT, **ids, **names})

    async def get(self, session: str | None = None, **headers: str) -> httpx.Response:
        """A GET that is expected to be refused, so that it ends."""
        ids = {"mcp-session-id": session} if session else {}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.get(URL, headers={"accept": "text/event-stream", **ids, **names})


@asynccontextmanager
async def open_peer(**options: Any) -> AsyncIterator[Peer]:
    async with trio.open_nursery() as nursery, HeartbeatServer.open(**options) as server:
        bridge = AsgiBridge(server.app, nursery)
        nursery.start_soon(give_up)
        async with httpx.AsyncClient(transport=bridge, timeout=None) as client:
            yield Peer(server, client, PlainAgent(client, URL), nursery)
            nursery.cancel_scope.cancel()


async def give_up() -> None:
    """On a virtual clock a test that waits for nothing would never fail."""
    await trio.sleep(10_000)
    raise TimeoutError


@define
class Stream:
    """What came over an event stream."""

    raw: bytes = b""
    status: int = 0
    headers: Mapping[str, str] = field(factory=dict)
    error: str = ""
    ended: trio.Event = field(factory=trio.Event)
    ended_at: float = 0.0

    @property
    def messages(self) -> list[Any]:
        lines = self.raw.split(b"\n")
        return [msgspec.json.decode(line[6:]) for line in lines if line.startswith(b"data: {")]


async def follow(
    peer: Peer,
    stream: Stream,
    *,
    answer: Any = None,
    message: Any = None,
    session: str | None = None,
    last: str | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read a GET stream (or with `message` a POST's); answer each request on it by `answer`."""
    session = session or peer.agent.session
    headers = {**ACCEPT, "mcp-session-id": session or ""}
    if last is not None:
        headers["last-event-id"] = last
    content = msgspec.json.encode(message) if message else None
    method = "POST" if message else "GET"
    async with (
        trio.open_nursery() as nursery,
        peer.client.stream(method, URL, headers=headers, content=content) as response,
    ):
        stream.status = response.status_code
        stream.headers = response.headers
        task_status.started()
        try:
            async for chunk in response.aiter_raw():
                seen = len(stream.messages)
                stream.raw += chunk
                for request in stream.messages[seen:]:
                    if answer is not None and "id" in request and "method" in request:
                        reply = {"jsonrpc": "2.0", "id": request["id"], **answer}
                        nursery.start_soon(peer.post, reply, session)
        except httpx.RemoteProtocolError:
            stream.error = "cut"
    stream.ended_at = trio.current_time()
    stream.ended.set()


PONG: dict[str, Any] = {"result": {}}
