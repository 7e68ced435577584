"""A server on the official Python SDK 1.x over what is not Streamable HTTP.

    python python_1_channels.py stdio|sse|websocket [PORT]

It has a counter for each session, a tool that fails, and one that asks the client in the middle
of the call. The WebSocket one pings its client every second and hangs up if no pong comes within
another.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Any

import uvicorn
from mcp.server.fastmcp import Context, FastMCP
from mcp.server.websocket import websocket_server

transport, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 0
server = FastMCP("python-1-channels", host="127.0.0.1", port=port)
counts: Counter[int] = Counter()


@server.tool()
def count(context: Context) -> str:
    """How often this session has called."""
    counts[id(context.session)] += 1
    return str(counts[id(context.session)])


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("it always does")


@server.tool()
async def ping(context: Context) -> str:
    """Pings the client before it answers."""
    await context.session.send_ping()
    return "pong"


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Serves each WebSocket as a session."""
    if scope["type"] == "websocket":
        lowlevel = server._mcp_server
        async with websocket_server(scope, receive, send) as (read, write):
            await lowlevel.run(read, write, lowlevel.create_initialization_options())


if transport == "websocket":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        lifespan="off",
        ws_ping_interval=1,
        ws_ping_timeout=1,
    )
else:
    server.run(transport=transport)
