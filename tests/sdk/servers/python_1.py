"""A server on the official Python SDK 1.x with a counter for each session.

python python_1.py PORT sse|json
"""

from __future__ import annotations

import sys
from collections import Counter

from mcp.server.fastmcp import Context, FastMCP

port, answers = sys.argv[1:]
server = FastMCP("python-1", host="127.0.0.1", port=int(port), json_response=answers == "json")
counts: Counter[str] = Counter()


@server.tool()
def count(context: Context) -> str:
    """How often this session has called."""
    session = context.request_context.request.headers["mcp-session-id"]
    counts[session] += 1
    return str(counts[session])


@server.tool()
def fail() -> str:
    """Fails."""
    raise ValueError("it always does")


server.run(transport="streamable-http")
