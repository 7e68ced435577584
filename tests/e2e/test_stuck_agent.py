"""Agents that stop reading, and agents that leave: the router as a real process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e.router_process import Scene, open_scene, wait_true

from kars_router.testing import Call, PlainAgent, text_of

pytestmark = pytest.mark.usefixtures("each_listener")

# As /proc/net writes it.
_UNIX_LISTENS = "01"
_TCP_LISTENS = "0A"

PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
HUGE_CALL = {
    "jsonrpc": "2.0",
    "id": 2,
    "method": "tools/call",
    "params": {"name": "box__huge", "arguments": {}},
}


async def huge(_: Call) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return {"content": [{"type": "text", "text": "z" * 30_000_000}]}


@asynccontextmanager
async def scene_with_agent(
    tmp_path: Path, kind: str, **config: Any
) -> AsyncIterator[tuple[Scene, PlainAgent, str]]:
    """A router with a server that has a tool with a huge result, an agent, and the address."""
    path = str(tmp_path / "agent.sock")
    address = f"unix:{path}" if kind == "unix" else "127.0.0.1:0"
    async with open_scene(tmp_path, listen=address, **config) as scene:
        scene.server.add_tool("huge", huge)
        transport = httpx.AsyncHTTPTransport(uds=path if kind == "unix" else None)
        async with httpx.AsyncClient(transport=transport, timeout=30) as client:
            url = "http://localhost" if kind == "unix" else scene.router.agent_url
            agent = PlainAgent(client, f"{url}/mcp")
            await agent.initialize()
            assert text_of(await agent.call("box__increment")) == "counter: 1"
            yield scene, agent, path if kind == "unix" else scene.router.agent_url


async def post(agent: PlainAgent, where: str, message: dict[str, Any]) -> trio.SocketStream:
    """A message on a connection of its own, of which nothing is read yet."""
    if where.startswith("/"):
        stream = await trio.open_unix_socket(where)
    else:
        host, _, port = where.removeprefix("http://").rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
    body = json.dumps(message).encode()
    head = (
        "POST /mcp HTTP/1.1",
        "host: localhost",
        "content-type: application/json",
        "accept: application/json, text/event-stream",
        f"mcp-session-id: {agent.session}",
        f"content-length: {len(body)}",
    )
    await stream.send_all("\r\n".join([*head, "", ""]).encode() + body)
    return stream


def connections(pid: int, where: str) -> int:
    """How many sockets a process has that were accepted at an address, whoever has left them."""
    unix = where.startswith("/")
    table = Path("/proc/net/unix" if unix else "/proc/net/tcp").read_text()
    rows = [line.split() for line in table.splitlines()]
    if unix:
        accepted = {row[6] for row in rows if row[-1] == where and row[5] != _UNIX_LISTENS}
    else:
        place = f":{int(where.rpartition(':')[2]):04X}"
        accepted = {row[9] for row in rows if row[1].endswith(place) and row[3] != _TCP_LISTENS}
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += entry.readlink().name.removeprefix("socket:[").rstrip("]") in accepted
    return found


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_an_agent_that_does_not_read_does_not_hold_up_the_exit(
    tmp_path: Path, kind: str
) -> None:
    async with scene_with_agent(tmp_path, kind, shutdownGrace="5s") as (scene, agent, where):
        stream = await post(agent, where, HUGE_CALL)
        with trio.fail_after(20):
            await stream.receive_some(100)  # the answer is on its way, and gets stuck
        start = time.monotonic()
        scene.process.signal(signal.SIGTERM)
        assert await scene.exited(30) == 0
        assert time.monotonic() - start < 5
        assert scene.server.sessions == {}
        assert scene.server.happenings("reaped") == []
        assert "Traceback" not in scene.process.log()
        await stream.aclose()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_connections_that_agents_have_closed_are_let_go(tmp_path: Path, kind: str) -> None:
    async with scene_with_agent(tmp_path, kind) as (scene, agent, where):
        before = connections(scene.process.pid, where)
        assert before > 0
        for _ in range(20):
            stream = await post(agent, where, PING)
            with trio.fail_after(10):
                assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200 ")
            await stream.aclose()
        # The connection of the agent itself may have been closed meanwhile.
        await wait_true(lambda: connections(scene.process.pid, where) <= before, 7)
