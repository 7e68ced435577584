"""The stock client of the official Python SDK 1.x, doing what an agent does.

    python python_1.py '{"url": ..., "state": tool, "fail": tool, "idle": seconds}'

Prints one JSON object: what it saw. Leaving the transport's block ends the session (DELETE).
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anyio
from mcp import ClientSession
from mcp.client.streamable_http import streamable_http_client


async def run(task: dict[str, Any]) -> dict[str, Any]:
    async with (
        streamable_http_client(task["url"]) as (read, write, _),
        ClientSession(read, write) as session,
    ):
        opened = await session.initialize()
        tools = [tool.name for tool in (await session.list_tools()).tools]
        first = await session.call_tool(task["state"], {})
        failed = await session.call_tool(task["fail"], {})
        await session.send_ping()
        await anyio.sleep(task["idle"])
        second = await session.call_tool(task["state"], {})
    return {
        "protocol": opened.protocolVersion,
        "tools": tools,
        "first": first.content[0].text,
        "failed": [failed.isError, failed.content[0].text],
        "second": second.content[0].text,
    }


if __name__ == "__main__":
    print(json.dumps(anyio.run(run, json.loads(sys.argv[1]))))
