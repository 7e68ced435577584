"""MCP server with the tools, prompts and resources that the conformance suite asks for by name.

Runs in an environment of its own with `mcp` 2.x, never in the router's. Nothing here knows of
the router: the suite against this server alone is the control of the tests beside it.

    python fixture_server.py PORT [dual | handshake | stateless]

Low-level API, because the suite looks at schemas field by field and the high-level one derives
them from signatures. The SDK serves both eras at one address; the last argument takes one away.
"""

from __future__ import annotations

import sys
from typing import Any

import mcp_types as types
import uvicorn
from fixture_contents import (
    accept,
    complete,
    get_prompt,
    list_prompts,
    list_resources,
    list_templates,
    read_resource,
)
from fixture_tools import BUS, call_tool, list_tools
from mcp.server.caching import CACHEABLE_METHODS, CacheHint
from mcp.server.lowlevel import NotificationOptions, Server
from mcp.server.models import InitializationOptions
from mcp.server.request_state import RequestStateBoundary, RequestStateSecurity
from mcp.server.streamable_http import EventCallback, EventMessage, EventStore
from mcp.server.subscriptions import ListenHandler
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

NAME = "conformance-fixture"
VERSION_HEADER = b"mcp-protocol-version"


class Events(EventStore):
    """Every event of every stream, kept for good: what lets a dropped stream be resumed."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: object) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send: EventCallback) -> str | None:
        last = int(last_event_id)
        if not 0 < last <= len(self._events):
            return None
        stream = self._events[last - 1][0]
        for number, (owner, message) in enumerate(self._events[last:], last + 1):
            if owner == stream and message is not None:
                await send(EventMessage(message, str(number)))
        return stream


class ChangingServer(Server[Any]):
    """Declares to handshake clients, too, that its lists change."""

    def create_initialization_options(self, *_: Any, **__: Any) -> InitializationOptions:
        changed = NotificationOptions(prompts_changed=True, tools_changed=True)
        return super().create_initialization_options(changed)


def build() -> Server[Any]:
    server = ChangingServer(
        NAME,
        version="1",
        # Neither value is what something that makes its own hints would come upon.
        cache_hints={
            method: CacheHint(ttl_ms=1234, scope="public") for method in CACHEABLE_METHODS
        },
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
        on_subscribe_resource=accept,
        on_unsubscribe_resource=accept,
        on_subscriptions_listen=ListenHandler(BUS),
        on_list_prompts=list_prompts,
        on_get_prompt=get_prompt,
        on_completion=complete,
        on_set_logging_level=accept,
    )
    security = RequestStateSecurity.ephemeral()
    server.middleware.append(RequestStateBoundary(security, default_audience=NAME))
    return server


def version_of(scope: Scope) -> str | None:
    headers = scope["headers"]
    return next((value.decode("latin-1") for key, value in headers if key == VERSION_HEADER), None)


class HandshakeOnly:
    """The server as it was before the stateless era.

    Such a server looks for its session first, and a revision that it does not know is none of its
    concern without one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and version_of(scope) not in HANDSHAKE_PROTOCOL_VERSIONS:
            kept = [(key, value) for key, value in scope["headers"] if key != VERSION_HEADER]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


class StatelessOnly:
    """The server without sessions: a handshake is told which revisions there are instead."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        newer = (None, *HANDSHAKE_PROTOCOL_VERSIONS)
        if scope["type"] != "http" or version_of(scope) not in newer:
            await self._app(scope, receive, send)
            return
        answer = await self._refuse(Request(scope, receive))
        await answer(scope, receive, send)

    async def _refuse(self, request: Request) -> Response:
        if request.method != "POST":
            return Response(status_code=405, headers={"allow": "POST"})
        body = await request.json()
        requested = (body.get("params") or {}).get("protocolVersion") or version_of(request.scope)
        error = {
            "code": types.UNSUPPORTED_PROTOCOL_VERSION,
            "message": "Unsupported protocol version",
            "data": {"supported": list(MODERN_PROTOCOL_VERSIONS), "requested": requested or ""},
        }
        answer = {"jsonrpc": "2.0", "id": body.get("id"), "error": error}
        return JSONResponse(answer, status_code=400)


def main() -> None:
    port, era = int(sys.argv[1]), (sys.argv[2:] or ["dual"])[0]
    # 127.0.0.1 also switches on the SDK's own Host and Origin checks.
    app: ASGIApp = build().streamable_http_app(
        host="127.0.0.1", event_store=Events(), retry_interval=500
    )
    if era != "dual":
        app = {"handshake": HandshakeOnly, "stateless": StatelessOnly}[era](app)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main()
