"""Without a plugin that has its own, an agent's trace context reaches the server as it is.

Source: MCP SEP-414; W3C "Trace Context" and "Baggage".
"""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from cells.cell_kit import open_cell
from trio.testing import MockClock

CELLS = [(agent, server) for agent in ("handshake", "stateless") for server in ("hand", "free")]
META = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "tracestate": "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
    "baggage": "user=Am%C3%A9lie;p=1, n=DF%2028",
}
ITEM = {"type": "ref/prompt", "name": "greet"}
REQUESTS: dict[str, dict[str, Any]] = {
    "tools/call": {"name": "echo", "arguments": {}},
    "prompts/get": {"name": "greet"},
    "resources/read": {"uri": "test://static"},
    "completion/complete": {"ref": ITEM, "argument": {"name": "name", "value": "A"}},
}


@pytest.mark.parametrize("method", REQUESTS)
@pytest.mark.parametrize(("agent", "server"), CELLS, ids=lambda value: value)
async def test_an_agents_trace_context_reaches_the_server(
    autojump_clock: MockClock, agent: str, server: str, method: str
) -> None:
    async with open_cell(agent, server, plugins={"blocked": ["otel"]}) as cell:
        await cell.agent.request(method, {**REQUESTS[method], "_meta": META})
        received = cell.received(method)[-1]
        meta = msgspec.json.decode(received.body)["params"]["_meta"]
        assert {name: meta.get(name) for name in META} == META


@pytest.mark.parametrize(("agent", "server"), CELLS, ids=lambda value: value)
async def test_none_is_made_up(autojump_clock: MockClock, agent: str, server: str) -> None:
    async with open_cell(agent, server, plugins={"blocked": ["otel"]}) as cell:
        await cell.call("echo")
        received = cell.received("tools/call")[-1]
        assert META.keys().isdisjoint(received.params.get("_meta", {}))
