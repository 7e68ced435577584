"""A small MCP client over httpx, naive on purpose: it sends requests and reads answers.

Owns one session with one server. It answers nothing: a server that pings it gets no pong. That
makes it both the control that is reaped when it talks to a browser server directly, and the
agent that must not be reaped when a router stands between. Knows nothing of routers or browsers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
import trio
from attrs import define, field

PROTOCOL_VERSION = "2025-11-25"
_BOTH = "application/json, text/event-stream"


class Refused(Exception):
    """The server answered a message with an HTTP error.

    Args:
        status: the HTTP status.
        body: the whole body as text.
    """

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        self.body = body
        super().__init__(f"{status} {body!r}")


class NoAnswer(Exception):
    """The response to a request ended without an answer in it."""


class RpcError(Exception):
    """The answer is a JSON-RPC error."""

    def __init__(self, error: dict[str, Any]) -> None:
        self.error = error
        super().__init__(str(error))


@define(eq=False)
class McpClient:
    """One session. Made by `connect`.

    Attributes:
        session: its id.
        pings: how many came on the GET stream.
        stream_ended: set when the server has ended the GET stream.
    """

    url: str
    http: httpx.AsyncClient
    session: str | None = None
    pings: int = 0
    stream_ended: trio.Event = field(factory=trio.Event)
    _ids: itertools.count[int] = field(factory=lambda: itertools.count(1))

    @classmethod
    @asynccontextmanager
    async def connect(cls, url: str, *, timeout: float = 60.0) -> AsyncIterator[Self]:
        """Initialize a session with `url`; leaving the block closes connections, not the session.

        `timeout` (seconds) holds for each wait on the network.
        """
        async with httpx.AsyncClient(timeout=timeout, trust_env=False) as http:
            client = cls(url, http)
            await client.initialize()
            yield client

    async def initialize(self) -> dict[str, Any]:
        """Open a new session, forgetting the id of an older one."""
        self.session = None
        params = {
            "protocolVersion": PROTOCOL_VERSION,
            "capabilities": {},
            "clientInfo": {"name": "naive", "version": "1"},
        }
        result = await self.request("initialize", params)
        await self._post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return result

    async def request(self, method: str, params: dict[str, Any] | None = None) -> dict[str, Any]:
        """The result of `method`. Raises `Refused`, `NoAnswer` or `RpcError`."""
        number = next(self._ids)
        message = {"jsonrpc": "2.0", "id": number, "method": method, "params": params or {}}
        for answer in await self._post(message):
            if answer.get("id") == number and "method" not in answer:
                if "error" in answer:
                    raise RpcError(answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
        raise NoAnswer(method)

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The result of the tool, `isError` ones included. Raises as `request` does."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments})

    async def delete(self) -> int:
        """End the session; the HTTP status."""
        return (await self.http.delete(self.url, headers=self._headers())).status_code

    async def listen(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Hold a GET stream until the server ends it, counting `pings` and answering none.

        Started once the server has answered 200. Raises `Refused` on any other status.
        """
        timeout = httpx.Timeout(self.http.timeout.connect, read=None)
        headers = self._headers(accept="text/event-stream")
        async with self.http.stream("GET", self.url, headers=headers, timeout=timeout) as response:
            if response.status_code != 200:
                await response.aread()
                raise Refused(response.status_code, response.text)
            task_status.started()
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    self.pings += json.loads(line[5:]).get("method") == "ping"
        self.stream_ended.set()

    async def _post(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        response = await self.http.post(self.url, json=message, headers=self._headers())
        if response.status_code >= 400:
            raise Refused(response.status_code, response.text)
        self.session = response.headers.get("mcp-session-id", self.session)
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            lines = response.text.split("\n")
            return [json.loads(line[5:]) for line in lines if line.startswith("data:")]
        return [response.json()] if response.content else []

    def _headers(self, accept: str = _BOTH) -> dict[str, str]:
        headers = {"accept": accept}
        if self.session is not None:
            headers |= {"mcp-session-id": self.session, "mcp-protocol-version": PROTOCOL_VERSION}
        return headers


def text(result: dict[str, Any]) -> str:
    """All text blocks of a tool result, one after the other."""
    return "\n".join(block["text"] for block in result["content"] if block["type"] == "text")
