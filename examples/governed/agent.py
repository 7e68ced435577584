"""An agent without a model: `python agent.py TOOL NAME=VALUE ...` makes one call.

Any other MCP client will do as well; this one needs nothing that is not there already.
"""

from __future__ import annotations

import json
import os
import sys

import httpx
import trio

from kars_router.testing import PlainAgent, RpcError

URL = os.environ.get("MCP_URL", "http://127.0.0.1:8443/mcp/notes")


async def main(tool: str, *pairs: str) -> None:
    """Makes one call, and waits for its answer as long as a person may take."""
    arguments = dict(pair.split("=", 1) for pair in pairs)
    async with httpx.AsyncClient(timeout=3600, trust_env=False) as client:
        agent = PlainAgent(client, URL)
        await agent.initialize()
        try:
            result = await agent.call(tool, **arguments)
        except RpcError as error:
            print(f"error: {error.message}")
        else:
            for block in result["content"]:
                print(block["text"])
            if "kars.azure.com/call" in result.get("_meta", {}):
                print(json.dumps(result["_meta"]["kars.azure.com/call"]))
        await agent.delete()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
