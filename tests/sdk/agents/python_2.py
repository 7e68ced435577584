"""The stock client of the official Python SDK 2.x, doing what an agent does.

    python python_2.py '{"url": ..., "state": tool, "fail": tool, "idle": seconds}'

Prints one JSON object: what it saw. With its defaults, so that it first asks whether the server
speaks the stateless revisions and falls back to the handshake.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anyio
from mcp import Client


async def run(task: dict[str, Any]) -> dict[str, Any]:
    async with Client(task["url"]) as client:
        tools = [tool.name for tool in (await client.list_tools()).tools]
        # Without a session it says who it is, lest it shares one with others like it.
        meta = {"kars.azure.com/agent": task["agent"]}
        first = await client.call_tool(task["state"], {}, meta=meta)
        failed = await client.call_tool(task["fail"], {}, meta=meta)
        if client.protocol_version < "2026":
            await client.send_ping()
        await anyio.sleep(task["idle"])
        second = await client.call_tool(task["state"], {}, meta=meta)
        return {
            "protocol": client.protocol_version,
            "tools": tools,
            "first": first.content[0].text,
            "failed": [failed.is_error, failed.content[0].text],
            "second": second.content[0].text,
        }


if __name__ == "__main__":
    print(json.dumps(anyio.run(run, json.loads(sys.argv[1]))))
