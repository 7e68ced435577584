"""The stock client of the official Python SDK 2.x, doing what a client scenario of the suite wants.

    python driver.py URL

Which scenario, and in which era, stands in the variables that the suite sets; `KARS_DRIVER_ERA`
(`handshake` or `stateless`) overrides the era. Exit status 1 when a request failed. Nothing here
knows whether a router is between.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import mcp_types as types
from mcp import Client
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

# What went wrong, where one failure does not end it all.
Steps = Callable[[Client], Awaitable[list[str] | None]]


async def accept(_: Any, params: Any) -> types.ElicitResult:
    """A user who confirms and leaves every default as it is."""
    fields = params.requested_schema.get("properties", {})
    content = {name: field["default"] for name, field in fields.items() if "default" in field}
    return types.ElicitResult(action="accept", content=content or {"confirmed": True})


async def lists(client: Client) -> None:
    await client.list_tools()


async def calls_add_numbers(client: Client) -> None:
    await client.list_tools()
    await client.call_tool("add_numbers", {"a": 5, "b": 3})


async def calls_what_is_listed(client: Client) -> None:
    for tool in (await client.list_tools()).tools:
        required = tool.input_schema.get("required", [])
        await client.call_tool(tool.name, dict.fromkeys(required, "x"))


async def answers_in_rounds(client: Client) -> list[str]:
    """Goes on after a failure: each of the tools is a check of its own."""
    await client.list_tools()
    failures = []
    for name in ("echo_state", "unrelated", "no_state", "no_result_type"):
        try:
            await client.call_tool(f"test_mrtr_{name}", {})
        except (MCPError, RuntimeError, ValueError) as error:
            failures.append(name)
            print(repr(error), file=sys.stderr)
    return failures


async def uses_every_kind(client: Client) -> None:
    await calls_what_is_listed(client)
    for resource in (await client.list_resources()).resources:
        await client.read_resource(resource.uri)
    for prompt in (await client.list_prompts()).prompts:
        await client.get_prompt(prompt.name)


async def calls_what_the_suite_says(client: Client) -> None:
    await client.list_tools()
    for call in json.loads(os.environ["MCP_CONFORMANCE_CONTEXT"])["toolCalls"]:
        await client.call_tool(call["name"], call["arguments"])


async def echoes_the_schema(client: Client) -> None:
    tools = (await client.list_tools()).tools
    schema = next(tool.input_schema for tool in tools if tool.name != "json_schema_echo")
    await client.call_tool("json_schema_echo", {"schema": schema})


SCENARIOS: dict[str, Steps] = {
    "initialize": lists,
    "tools_call": calls_add_numbers,
    "elicitation-sep1034-client-defaults": calls_what_is_listed,
    "sse-retry": calls_what_is_listed,
    "request-metadata": lists,
    "sep-2322-client-request-state": answers_in_rounds,
    "http-standard-headers": uses_every_kind,
    "http-custom-headers": calls_what_the_suite_says,
    "http-invalid-tool-headers": calls_what_is_listed,
    "json-schema-ref-no-deref": lists,
    "json-schema-2020-12-preservation": echoes_the_schema,
}


async def main(url: str) -> None:
    modern = os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"] in MODERN_PROTOCOL_VERSIONS
    era = os.environ.get("KARS_DRIVER_ERA") or ("stateless" if modern else "handshake")
    # What the SDK does by itself asks for the stateless era first, and falls back.
    mode = "auto" if era == "stateless" else "legacy"
    steps = SCENARIOS[os.environ["MCP_CONFORMANCE_SCENARIO"]]
    with anyio.fail_after(40):
        async with Client(url, mode=mode, elicitation_callback=accept) as client:
            spoken = client.protocol_version
            failures = await steps(client) or []
    if (spoken in MODERN_PROTOCOL_VERSIONS) is not (era == "stateless"):
        failures.append(f"it was to speak the {era} era and spoke {spoken}")
    for failure in failures:
        print(f"failed: {failure}")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
