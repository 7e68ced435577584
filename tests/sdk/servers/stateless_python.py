"""A dual-era server on the official Python SDK 2.x whose tools ask, report and change things.

python stateless_python.py PORT
"""

from __future__ import annotations

import sys

import mcp_types as types
from mcp.server.mcpserver import Context, MCPServer

server = MCPServer("stateless-python", instructions="Ask first.")

FORM = types.ElicitRequestFormParams(
    message="What is your name?",
    requested_schema={"type": "object", "properties": {"name": {"type": "string"}}},
)


@server.tool()
async def echo(text: str) -> str:
    """Says it again."""
    return text


@server.tool()
async def ask(context: Context) -> str | types.InputRequiredResult:
    """Asks for a name."""
    answers = context.input_responses
    if not answers:
        question = types.ElicitRequest(params=FORM)
        return types.InputRequiredResult(input_requests={"name": question}, request_state="\u00e9")
    answer = answers["name"]
    return f"{answer.action} {answer.content} {context.request_state}"


@server.tool()
async def progress(context: Context) -> str:
    """Reports three steps."""
    for step in (1, 2, 3):
        await context.report_progress(step, 3)
    return "done"


@server.tool()
async def change(context: Context) -> str:
    """Says that the tools have changed."""
    await context.notify_tools_changed()
    return "changed"


@server.tool()
async def touch(uri: str, context: Context) -> str:
    """Says that a resource has changed."""
    await context.notify_resource_updated(uri)
    return "touched"


@server.tool()
async def log(context: Context) -> str:
    """Says something in the log."""
    await context.info("hello")
    return "logged"


@server.resource("test://one")
def one() -> str:
    """One."""
    return "1"


@server.prompt()
def greet(name: str) -> str:
    """Greets."""
    return f"Hello {name}"


server.run(transport="streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
