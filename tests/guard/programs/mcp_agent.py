"""An agent: calls a tool twice in a session, `mcp_agent.py [URL TOOL]...`; prints the answers.

What cannot be reached is answered with the name of the error.
"""

from __future__ import annotations

import json
import sys

import httpx
import trio

from kars_router.testing import PlainAgent, text_of


async def converse(url: str, tool: str) -> list[str]:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        agent = PlainAgent(client, url)
        try:
            await agent.initialize()
            return [text_of(await agent.call(tool)) for _ in range(2)]
        except httpx.TransportError as error:
            return [type(error).__name__]


async def main() -> None:
    words = iter(sys.argv[1:])
    print(json.dumps([await converse(url, tool) for url, tool in zip(words, words, strict=True)]))


trio.run(main)
