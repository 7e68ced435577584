"""The agent's token ends at the listener: no server, no log and no status page ever has it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
import trio_websocket
from agent_kit import BASE, configuration, initialize, open_bench, rpc
from attrs import define, evolve, field
from structlog.testing import capture_logs
from unit.front.auth_kit import Signer, bearer, by_file, stateless

from kars_router.config.auth import AgentAuth
from kars_router.config.load import build
from kars_router.errors import ConfigError
from kars_router.front.exchange import Receive, Scope, Send, accept_lifespan
from kars_router.service import open_router
from kars_router.testing import AsgiBridge, serve

CHILD = Path(__file__).with_name("recording_child.py")
SECONDS = 30
SIGNER = Signer()


def _answer() -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    spec = importlib.util.spec_from_file_location("recording_child", CHILD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[[dict[str, Any]], dict[str, Any] | None] = module.answer
    return found


answer = _answer()


@define
class Recorder:
    """Servers of both HTTP transports, and over WebSocket, that keep all that they are given."""

    received: dict[str, bytearray] = field(factory=dict)
    streams: dict[str, trio.MemorySendChannel[bytes]] = field(factory=dict)

    def keep(self, name: str, *parts: object) -> None:
        self.received.setdefault(name, bytearray()).extend(repr(parts).encode())

    async def streamable(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        body = (await receive()).get("body", b"")
        self.keep("streamable", scope["path"], scope["query_string"], scope["headers"], body)
        response = answer(json.loads(body)) if scope["method"] == "POST" else None
        status = 200 if response else (202 if scope["method"] == "POST" else 405)
        kind = (b"content-type", b"application/json")
        await send({"type": "http.response.start", "status": status, "headers": [kind]})
        await send(
            {"type": "http.response.body", "body": json.dumps(response).encode() * bool(response)}
        )

    async def sse(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await accept_lifespan(receive, send)
            return
        body = (await receive()).get("body", b"")
        self.keep("sse", scope["path"], scope["query_string"], scope["headers"], body)
        if scope["method"] == "GET":
            sender, events = trio.open_memory_channel[bytes](100)
            path = f"/{len(self.streams)}"
            self.streams[path] = sender
            kind = (b"content-type", b"text/event-stream")
            await send({"type": "http.response.start", "status": 200, "headers": [kind]})
            data = f"event: endpoint\ndata: {path}\n\n".encode()
            await send({"type": "http.response.body", "body": data, "more_body": True})
            async for event in events:
                data = b"event: message\ndata: %b\n\n" % event
                await send({"type": "http.response.body", "body": data, "more_body": True})
            return
        status, message = (202, json.loads(body)) if scope["method"] == "POST" else (405, {})
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        if response := answer(message):
            await self.streams[scope["path"]].send(json.dumps(response).encode())

    async def websocket(self, request: trio_websocket.WebSocketRequest) -> None:
        self.keep("websocket", request.path, request.headers)
        connection = await request.accept(subprotocol="mcp")
        try:
            while True:
                text = await connection.get_message()
                self.keep("websocket", text)
                response = answer(json.loads(text))
                if response:
                    await connection.send_message(json.dumps(response))
        except trio_websocket.ConnectionClosed:
            pass


@asynccontextmanager
async def open_all(
    auth: AgentAuth, record: Path
) -> AsyncIterator[tuple[Recorder, httpx.AsyncClient]]:
    """A router in front of one server for each transport."""
    recorder = Recorder()
    async with (
        serve(recorder.streamable) as streamable,
        serve(recorder.sse) as sse,
        trio.open_nursery() as nursery,
    ):
        socket = await nursery.start(
            trio_websocket.serve_websocket, recorder.websocket, "127.0.0.1", 0, None
        )
        servers: dict[str, dict[str, Any]] = {
            "streamable": {"url": f"{streamable}/mcp", "era": "handshake"},
            "sse": {"url": f"{sse}/sse", "transport": "sse"},
            "websocket": {"url": f"ws://127.0.0.1:{socket.port}/mcp"},
            "stdio": {"command": [sys.executable], "args": ["-I", str(CHILD), str(record)]},
        }
        allowed = {name: {**each, "allowedTools": ["*"]} for name, each in servers.items()}
        config = evolve(build({"servers": allowed}), admin=None, state=None, agent_auth=auth)
        async with open_router(config, serve=False) as router:
            bridge = AsgiBridge(router.app, nursery)
            async with httpx.AsyncClient(transport=bridge, timeout=None) as client:
                yield recorder, client
        nursery.cancel_scope.cancel()


async def test_no_server_on_any_transport_and_no_log_has_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    token = SIGNER.token(scope="mcp:call")
    record = tmp_path / "child"
    with trio.fail_after(SECONDS), capture_logs() as logs:
        async with open_all(by_file(tmp_path / "keys", SIGNER), record) as (recorder, client):
            usual = {
                "accept": "application/json, text/event-stream",
                "content-type": "application/json",
                **bearer(token),
            }
            opened = await client.post(f"{BASE}/mcp", json=initialize(), headers=usual)
            session = {"mcp-session-id": opened.headers["mcp-session-id"], **usual}
            names = ["sse", "stdio", "streamable", "websocket"]
            for name in names:
                call = rpc("tools/call", {"name": f"{name}__echo", "arguments": {}})
                reply = await client.post(f"{BASE}/mcp", json=call, headers=session)
                assert '"here"' in reply.text, (name, reply.text)
                request = stateless({"name": f"{name}__echo", "arguments": {}})
                request["headers"] |= bearer(token)
                reply = await client.post(f"{BASE}/mcp", **request)
                assert '"here"' in reply.text, (name, reply.text)
            await client.delete(f"{BASE}/mcp", headers=session)
        received = {**recorder.received, "stdio": record.read_bytes()}
    assert sorted(received) == names
    written = repr(logs) + "".join(capfd.readouterr())
    assert "agent_session_opened" in written
    for part in (token, *token.split(".")):
        assert all(part.encode() not in each for each in received.values())
        assert part not in written
    assert all(b"tools/call" in each for each in received.values()), "else nothing was proved"


async def test_the_router_asks_for_what_its_configuration_says(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    config = evolve(configuration({"box": {}}), agent_auth=AgentAuth(token_from_file=file))
    async with open_bench(config) as bench:
        assert (await bench.post(initialize())).status_code == 401
        assert (await bench.post(initialize(), headers=bearer("one"))).status_code == 200
        pages = [await bench.admin.get(f"{BASE}{path}") for path in ("/", "/metrics", "/healthz")]
        assert [page.status_code for page in pages][1:] == [200, 200]
        assert 'kars_agent_refusals_total{reason="no_token"} 1.0' in pages[1].text
        await bench.router.apply(evolve(config, agent_auth=AgentAuth()))
        assert (await bench.post(initialize())).status_code == 200


async def test_a_reload_whose_token_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    config = configuration({"box": {}})
    lost = AgentAuth(token_from_file=tmp_path / "none")
    async with open_bench(config) as bench:
        with pytest.raises(ConfigError, match=r"agentAuth\.tokenFromFile"):
            await bench.router.apply(evolve(config, agent_auth=lost))
        assert bench.router.config == config
        assert (await bench.post(initialize())).status_code == 200
