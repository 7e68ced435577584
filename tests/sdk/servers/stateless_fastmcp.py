"""A dual-era server on FastMCP 4.x, which has no `subscriptions/listen`.

python stateless_fastmcp.py PORT
"""

from __future__ import annotations

import sys

from fastmcp import Context, FastMCP

server = FastMCP("stateless-fastmcp", instructions="Ask first.")


@server.tool
async def progress(context: Context) -> str:
    """Reports three steps."""
    for step in (1, 2, 3):
        await context.report_progress(step, 3)
    return "done"


@server.tool
async def log(context: Context) -> str:
    """Says something in the log."""
    await context.info("hello")
    return "logged"


@server.resource("test://one")
def one() -> str:
    """One."""
    return "1"


port = int(sys.argv[1])
server.run(transport="http", host="127.0.0.1", port=port, path="/mcp", show_banner=False)
