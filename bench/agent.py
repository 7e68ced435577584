"""An agent for measurements: opens sessions, and asks for single things, over plain HTTP."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any, Final

from bench.processes import BenchError

REVISION: Final = "2025-11-25"
_ACCEPT: Final = "application/json, text/event-stream"
_SECONDS: Final = 60.0


class Agent:
    """One connection to what is measured, and the sessions that were opened over it.

    Args:
        port: on loopback.
        path: what is posted to.
    """

    def __init__(self, port: int, path: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
        self._path = path
        self._ident = 0

    def close(self) -> None:
        """Leaves; sessions stay."""
        self._connection.close()

    def open(self) -> str:
        """Opens a session.

        Returns:
            its id; "" if the server has no sessions.

        Raises:
            BenchError: it was refused.
        """
        params = {
            "protocolVersion": REVISION,
            "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        }
        answer, headers = self._post("initialize", params, "")
        if "result" not in answer:
            raise BenchError(f"initialize was refused: {answer}")
        session = headers.get("mcp-session-id", "")
        self._post("notifications/initialized", None, session, notify=True)
        return session

    def call(self, session: str, tool: str) -> dict[str, Any]:
        """Calls a tool and returns the result.

        Raises:
            BenchError: it failed.
        """
        return self._result("tools/call", {"name": tool, "arguments": {}}, session)

    def tools(self, session: str) -> tuple[list[dict[str, Any]], int]:
        """All tools, over as many pages as there are, and how many bytes they took.

        Raises:
            BenchError: they cannot be listed.
        """
        tools: list[dict[str, Any]] = []
        size = 0
        params: dict[str, Any] = {}
        while True:
            result = self._result("tools/list", params, session)
            tools += result["tools"]
            size += len(json.dumps(result, separators=(",", ":")))
            if not (cursor := result.get("nextCursor")):
                return tools, size
            params = {"cursor": cursor}

    def get(self, path: str) -> Any:
        """What a GET of JSON says.

        Raises:
            BenchError: it was refused.
        """
        self._connection.request("GET", path)
        response = self._connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise BenchError(f"GET {path} was answered with {response.status}")
        return json.loads(body)

    def _result(self, method: str, params: dict[str, Any], session: str) -> dict[str, Any]:
        answer, _ = self._post(method, params, session)
        result = answer.get("result")
        if not isinstance(result, dict) or result.get("isError"):
            raise BenchError(f"{method} failed: {answer!s:.300}")
        return result

    def _post(
        self, method: str, params: dict[str, Any] | None, session: str, *, notify: bool = False
    ) -> tuple[dict[str, Any], Mapping[str, str]]:
        self._ident += 1
        message: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
        if params is not None:
            message["params"] = params
        if not notify:
            message["id"] = self._ident
        headers = {"content-type": "application/json", "accept": _ACCEPT}
        if session:
            headers |= {"mcp-session-id": session, "mcp-protocol-version": REVISION}
        try:
            self._connection.request("POST", self._path, json.dumps(message), headers)
            response = self._connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise BenchError(f"{method}: {type(error).__name__} {error}") from error
        found = {name.lower(): value for name, value in response.getheaders()}
        if response.status >= 300:
            raise BenchError(f"{method} was answered with {response.status}: {body[:200]!r}")
        if notify:
            return {}, found
        return _answer(body, found.get("content-type", ""), self._ident), found


def _answer(body: bytes, kind: str, ident: int) -> dict[str, Any]:
    """The response to a request, in whichever form it came."""
    texts = [body]
    if kind.startswith("text/event-stream"):
        lines = body.replace(b"\r\n", b"\n").split(b"\n")
        texts = [line[5:] for line in lines if line.startswith(b"data:") and line[5:].strip()]
    for text in texts:
        message: dict[str, Any] = json.loads(text)
        if message.get("id") == ident and "method" not in message:
            return message
    raise BenchError(f"no answer: {body[:200]!r}")
