"""An agent without a model: opens a page, thinks for a while, and looks whether it is still there.

`browse.py [URL [SECONDS]]`, in the agent's container, where the variable KARS_MCP_URL says where
the router is. Any other MCP client will do as well; this one is in the router's image.
"""

from __future__ import annotations

import os
import re
import sys

import httpx
import trio

from kars_router.testing import PlainAgent, RpcError

URL = os.environ.get("KARS_MCP_URL", "http://127.0.0.1:8443/mcp")


async def main(page: str = "https://example.org/", seconds: str = "20") -> None:
    """Opens the page, and says what the browser shows before and after the pause."""
    async with httpx.AsyncClient(timeout=300, trust_env=False) as client:
        agent = PlainAgent(client, URL)
        await agent.initialize()
        try:
            await show(agent, "browser_navigate", url=page)
            print(f"thinking for {seconds} s, in which the server asks for signs of life")
            await trio.sleep(float(seconds))
            await show(agent, "browser_snapshot")
        except RpcError as error:
            print(f"error: {error.message}")
        await agent.delete()


async def show(agent: PlainAgent, tool: str, **arguments: str) -> None:
    """Calls a tool of the browser and prints which page it is at."""
    result = await agent.call(f"playwright__{tool}", **arguments)
    text = "\n".join(block.get("text", "") for block in result["content"])
    found = re.search(r"Page URL: (\S+)", text)
    print(f"{tool}: {found[1] if found else text[:300]}")


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
