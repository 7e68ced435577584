"""The plainest MCP client there is: it POSTs, holds no stream and answers nothing.

That is what many agents do, and what a heartbeating server reaps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from kars_router.testing._tools import RpcError
from kars_router.testing.replies import Json


class HttpStatusError(Exception):
    """An HTTP status that is not the protocol's answer.

    Args:
        status: the status.
        body: the first characters of the body.
    """

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        self.body = body
        super().__init__(f"status {status}: {body}" if body else f"status {status}")


class SessionGoneError(HttpStatusError):
    """404 to a request with a session id: the server does not know the session any more."""


class NoAnswerError(Exception):
    """A 200 that is no answer: it ended too early, or it is not JSON-RPC."""


class PlainAgent:
    """A client of one MCP endpoint that does nothing but what it is told.

    Args:
        client: carries the requests; stays the caller's to close.
        url: the endpoint.
        version: the revision it asks for.

    Attributes:
        session: the session id, None before `initialize` and if the server gave none.
        server: the result of `initialize`.
    """

    def __init__(self, client: httpx.AsyncClient, url: str, *, version: str = "2025-11-25") -> None:
        self._client = client
        self._url = url
        self._version = version
        self._next_id = 0
        self.session: str | None = None
        self.server: Mapping[str, Any] = {}

    async def initialize(self) -> Mapping[str, Any]:
        """Begin a session, forgetting an earlier one; return the server's result.

        Raises: as `request`.
        """
        self.session, self.server = None, {}
        params = {
            "protocolVersion": self._version,
            "capabilities": {},
            "clientInfo": {"name": "plain-agent", "version": "1"},
        }
        self.server = await self.request("initialize", params)
        await self.notify("notifications/initialized")
        return self.server

    async def call(self, tool: str, **arguments: Any) -> Mapping[str, Any]:
        """Call a tool; return its result, tool errors included. Raises: as `request`."""
        return await self.request("tools/call", {"name": tool, "arguments": arguments})

    async def list_tools(self) -> list[Json]:
        """All tools, over all pages. Raises: as `request`."""
        tools: list[Json] = []
        params: Json = {}
        while True:
            page = await self.request("tools/list", params)
            tools.extend(page["tools"])
            if page.get("nextCursor") is None:
                return tools
            params = {"cursor": page["nextCursor"]}

    async def request(
        self, method: str, params: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        """Send a request and return its result. What else is on its stream is ignored.

        Raises:
            SessionGoneError: the server does not know the session.
            HttpStatusError: another status than 200.
            NoAnswerError: the response ended without the answer.
            RpcError: the answer is a JSON-RPC error.
            httpx.TransportError: the connection failed.
        """
        rpc_id = self._next_id
        self._next_id += 1
        message: Json = {"jsonrpc": "2.0", "id": rpc_id, "method": method}
        if params is not None:
            message["params"] = params
        response = await self._send("POST", message)
        if response.status_code != 200:
            self._raise_status(response)
        self.session = response.headers.get("mcp-session-id", self.session)
        for answer in _messages(response):
            if answer.get("id") != rpc_id or "method" in answer:
                continue
            error, result = answer.get("error"), answer.get("result")
            if isinstance(error, dict):
                raise RpcError(error.get("code", 0), error.get("message", ""), error.get("data"))
            if isinstance(result, dict):
                return result
        raise NoAnswerError(f"the response to {method} ended without an answer")

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification. Raises: `HttpStatusError`, `httpx.TransportError`."""
        message: Json = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        response = await self._send("POST", message)
        if response.status_code != 202:
            self._raise_status(response)

    async def delete(self) -> int:
        """End the session; return the HTTP status."""
        response = await self._send("DELETE", None)
        self.session = None
        return response.status_code

    async def _send(self, http_method: str, message: Json | None) -> httpx.Response:
        headers = {"accept": "application/json, text/event-stream"}
        if message is not None:
            headers["content-type"] = "application/json"
        if self.session is not None:
            headers["mcp-session-id"] = self.session
            headers["mcp-protocol-version"] = self.server.get("protocolVersion", self._version)
        content = msgspec.json.encode(message) if message is not None else None
        return await self._client.request(http_method, self._url, content=content, headers=headers)

    def _raise_status(self, response: httpx.Response) -> None:
        gone = response.status_code == 404 and self.session is not None
        kind = SessionGoneError if gone else HttpStatusError
        raise kind(response.status_code, response.text[:200])


def text_of(result: Mapping[str, Any]) -> str:
    """The texts of a tool result, one per line."""
    return "\n".join(
        block["text"] for block in result.get("content", ()) if block.get("type") == "text"
    )


def _messages(response: httpx.Response) -> list[Json]:
    """The JSON messages of a whole response; only as much of SSE as a test's own peers send."""
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        lines = response.content.replace(b"\r\n", b"\n").split(b"\n")
        data = [line[5:].strip() for line in lines if line.startswith(b"data:")]
    else:
        data = [response.content]
    try:
        return [msgspec.json.decode(part, type=dict[str, Any]) for part in data if part]
    except msgspec.MsgspecError as error:
        raise NoAnswerError(f"the response is not made of JSON objects: {error}") from error
