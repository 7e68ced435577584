"""A stateful MCP server on two addresses: `mcp_server.py PORT ADDRESS ADDRESS`."""

from __future__ import annotations

import sys

import trio

from kars_router.testing import HeartbeatServer, serve


async def main(port: int, first: str, second: str) -> None:
    async with (
        HeartbeatServer.open(ping_interval=0.2) as server,
        serve(server.app, first, port),
        serve(server.app, second, port),
    ):
        print("ready", flush=True)
        await trio.sleep_forever()


port, *addresses = sys.argv[1:]
trio.run(main, int(port), addresses[0], addresses[1])
