"""A server on the official Python SDK 2.x with a counter for each session.

python python_2.py PORT
"""

from __future__ import annotations

import sys
from collections import Counter

from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("python-2")
counts: Counter[str] = Counter()


@server.tool()
def count(context: Context) -> str:
    """How often this session has called."""
    session = context.headers["mcp-session-id"]
    counts[session] += 1
    return str(counts[session])


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("it always does")


server.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
