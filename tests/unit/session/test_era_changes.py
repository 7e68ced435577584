"""A server that is replaced by one of the other era while agents use it, and odd answers of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from attrs import define, evolve
from cells.cell_kit import HandshakeAgent
from trio.testing import MockClock

from kars_router.config.load import build
from kars_router.service import Router, open_router
from kars_router.testing import (
    AsgiBridge,
    HeartbeatServer,
    Received,
    Reply,
    StatelessServer,
    text_of,
)

CAPABILITIES = {"resources": {"subscribe": True}}


@define(eq=False)
class Turncoat:
    """A router in front of one address, where either server may answer."""

    router: Router
    hand: HeartbeatServer
    free: StatelessServer
    nursery: trio.Nursery
    app: Any = None

    def become(self, server: HeartbeatServer | StatelessServer) -> None:
        """The other one is gone, and this one is there."""
        self.app = server.app
        self.hand.restart()
        self.free.drop_listens(cut=True)

    async def agent(self) -> HandshakeAgent:
        client = httpx.AsyncClient(
            transport=AsgiBridge(self.router.app, self.nursery), timeout=None
        )
        agent = HandshakeAgent(client, self.nursery, "/mcp/s")
        await agent.start({})
        return agent


@asynccontextmanager
async def open_turncoat(first: str) -> AsyncIterator[Turncoat]:
    async with (
        trio.open_nursery() as nursery,
        HeartbeatServer.open(ping_interval=None, capabilities=CAPABILITIES) as hand,
        StatelessServer.open() as free,
    ):
        hand.add_method("resources/subscribe", _nothing)
        there: list[Turncoat] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await there[0].app(scope, receive, send)

        settings = {"url": "http://s.test/mcp", "allowedTools": ["*"]}
        config = evolve(build({"servers": {"s": settings}}), admin=None, state=None)
        turncoat = Turncoat(None, hand, free, nursery)  # type: ignore[arg-type]
        turncoat.app = (hand if first == "hand" else free).app
        there.append(turncoat)
        async with open_router(
            config, serve=False, transports=lambda *_: AsgiBridge(app, nursery)
        ) as router:
            turncoat.router = router
            yield turncoat
            nursery.cancel_scope.cancel()


async def _nothing(_: Any) -> dict[str, Any]:
    await trio.lowlevel.checkpoint()
    return {}


async def call(agent: HandshakeAgent, tool: str = "echo") -> Any:
    return await agent.request("tools/call", {"name": tool, "arguments": {}})


async def test_a_server_that_gets_sessions_gives_each_agent_its_own(
    autojump_clock: MockClock,
) -> None:
    async with open_turncoat("free") as world:
        one, two = await world.agent(), await world.agent()
        await call(one)
        await call(two)
        world.become(world.hand)
        await call(one)
        await call(two)
        await trio.sleep(60)
        assert text_of(await call(one, "increment")) == "counter: 1"
        assert text_of(await call(two, "increment")) == "counter: 1"
        used = {received.session for received in world.hand.requests("tools/call")}
        assert len(used - {None}) == 2


@pytest.mark.parametrize("code", [-32602, -32022])
async def test_a_server_that_loses_its_sessions_is_noticed(
    autojump_clock: MockClock, code: int
) -> None:
    async with open_turncoat("hand") as world:
        agent = await world.agent()
        await call(agent)
        world.become(world.free)
        error = {"code": code, "message": "no", "data": {"supported": ["2026-07-28"]}}

        def script(received: Received) -> Reply | None:
            if received.headers.get("mcp-protocol-version") == "2026-07-28":
                return None
            return Reply.json({"jsonrpc": "2.0", "id": None, "error": error}, status=400)

        world.free.script = script
        for _ in range(2):
            await trio.sleep(60)
            await call(agent)
        assert "isError" not in await call(agent)
        assert world.router.supervisor.servers["s"].error == ""


async def test_what_is_watched_is_watched_in_the_other_era(autojump_clock: MockClock) -> None:
    async with open_turncoat("hand") as world:
        agent = await world.agent()
        await agent.watch("test://static")
        world.become(world.free)
        await trio.sleep(60)
        world.free.change_resource("test://static", "new")
        await trio.sleep(5)
        world.become(world.hand)
        await trio.sleep(60)
        watched = world.hand.requests("resources/subscribe")
        assert len(watched) == 2
        agent.heard.clear()
        world.hand.notify("notifications/resources/updated", {"uri": "test://static"})
        await trio.sleep(5)
        assert [m["params"] for m in agent.heard] == [{"uri": "test://static"}]


@pytest.mark.parametrize("ttl", ["1" + "0" * 400, "1e400", "-1", "null", '"x"', "[[]]"])
async def test_no_ttl_stops_the_router(autojump_clock: MockClock, ttl: str) -> None:
    body = b'{"jsonrpc":"2.0","id":%d,"result":{"resultType":"complete","tools":[],"ttlMs":%b}}'

    def script(received: Received) -> Reply | None:
        if received.method != "tools/list":
            return None
        kind = {"content-type": "application/json"}
        return Reply(headers=kind, body=body % (received.id, ttl.encode()))

    async with open_turncoat("free") as world:
        world.free.script = script
        await trio.sleep(3600)
        assert world.router.supervisor.servers["s"].state == "ready"


async def test_tools_are_asked_for_once_the_server_stops_telling(
    autojump_clock: MockClock,
) -> None:
    async with open_turncoat("free") as world:
        agent = await world.agent()
        await call(agent)
        world.free.listen = False
        world.free.drop_listens()
        await trio.sleep(600)
        world.free.add_tool("fresh", world.free.tools["echo"][2])
        await trio.sleep(600)
        listed = await agent.request("tools/list")
        assert "fresh" in [tool["name"] for tool in listed["tools"]]
