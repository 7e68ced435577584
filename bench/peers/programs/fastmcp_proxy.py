"""FastMCP's proxy, in each of its modes. Runs in an environment that has FastMCP.

python fastmcp_proxy.py --url URL --port PORT [--backend fresh|connected|stateful]
                        [--json] [--stateless]
"""

import argparse
import asyncio

from fastmcp import Client
from fastmcp.server import create_proxy
from fastmcp.server.providers.proxy import FastMCPProxy, StatefulProxyClient


async def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True, help="of the upstream")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument(
        "--backend",
        choices=("fresh", "connected", "stateful"),
        default="fresh",
        help="an upstream session for each request, one for all, or one for each agent session",
    )
    parser.add_argument("--json", action="store_true", help="answer with JSON, not with events")
    parser.add_argument("--stateless", action="store_true", help="no sessions for agents")
    asked = parser.parse_args()

    async def serve(proxy: FastMCPProxy) -> None:
        await proxy.run_http_async(
            transport="http",
            host="127.0.0.1",
            port=asked.port,
            path="/mcp",
            json_response=asked.json,
            stateless_http=asked.stateless,
            show_banner=False,
            log_level="error",
            uvicorn_config={"access_log": False},
        )

    if asked.backend == "fresh":
        await serve(create_proxy(asked.url, name="bench"))
    elif asked.backend == "connected":
        async with Client(asked.url) as client:
            await serve(create_proxy(client, name="bench"))
    else:
        client = StatefulProxyClient(asked.url)
        await serve(FastMCPProxy(client_factory=client.new_stateful, name="bench"))


if __name__ == "__main__":
    asyncio.run(main())
