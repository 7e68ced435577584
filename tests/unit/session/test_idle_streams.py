"""What servers say by themselves, through a whole router: shared wake-ups, and nothing late.

On real sockets, as the streams of others are not waited for together.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from unit.session.upstream_kit import make_config, with_settings

from kars_router.model import ToolCall
from kars_router.service import Router, open_router
from kars_router.testing import Call, HeartbeatServer, serve
from kars_router.transports import lookout

NEVER = 3600.0


@asynccontextmanager
async def on_sockets(**options: Any) -> AsyncIterator[tuple[HeartbeatServer, Router]]:
    """A server, and a router of it; bounded in time, as the clock is real."""
    with trio.fail_after(20):
        async with HeartbeatServer.open(**options) as server, serve(server.app) as url:
            config = make_config(with_settings(url=f"{url}/mcp"))
            async with open_router(config, serve=False) as router:
                await router.supervisor.wait_tried(5)
                yield server, router


async def call(router: Router, agent: str, tool: str = "increment") -> None:
    params = b'{"name":"%b"}' % tool.encode()
    outcome = await router.supervisor.call(
        ToolCall(agent=agent, server="s", tool=tool, params=params)
    )
    assert outcome.result is not None


def upstream_id(router: Router, agent: str) -> str:
    session = router.supervisor.servers["s"].slots[agent].session
    assert session is not None
    assert session.session_id is not None
    return session.session_id


async def test_pings_share_wake_ups_and_are_answered() -> None:
    agents = [f"agent {number}" for number in range(10)]
    async with on_sockets(ping_interval=0.02) as (server, router):
        for agent in agents:
            await call(router, agent)
        sessions = [upstream_id(router, agent) for agent in agents]
        watched = router.supervisor.lookout
        looks = watched.looks
        before = len(server.happenings("pong"))
        await server.wait_until(lambda: len(server.happenings("pong")) >= before + 100)
        assert 0 < (watched.looks - looks) * 3 < 100
        assert all(server.happenings("pong", ident) for ident in sessions)
        assert server.happenings("reaped") == []


async def test_what_a_server_says_during_a_call_is_not_late(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    monkeypatch.setattr(lookout, "_INTERVAL", NEVER)
    began, hold, ended, answered = (trio.Event() for _ in range(4))

    async def wait(_: Call) -> dict[str, object]:
        began.set()
        await hold.wait()
        return {"content": []}

    async def call_to_its_end() -> None:
        await call(router, "a", "hold")
        ended.set()

    async def ask() -> None:
        assert await server.ask("ping", None, session) is not None
        answered.set()

    async with on_sockets(ping_interval=None, ping_deadline=NEVER) as (server, router):
        server.add_tool("hold", wait)
        await call(router, "b")
        session = upstream_id(router, "b")
        nursery.start_soon(call_to_its_end)
        await began.wait()
        for _ in range(5):  # whichever agent it is for
            assert await server.ask("ping", None, session) is not None
            assert await server.ask("ping", None, upstream_id(router, "a")) is not None
        hold.set()
        await ended.wait()
        assert await server.ask("ping", None, session) is not None  # it was being waited for
        # The next waits for its time, which does not come, until there is a call again.
        nursery.start_soon(ask)
        with trio.move_on_after(0.1) as patience:
            await answered.wait()
        assert patience.cancelled_caught
        await call(router, "a")
        await answered.wait()


async def test_sessions_end_well_while_their_streams_are_waited_for() -> None:
    async with on_sockets(ping_interval=0.02) as (server, router):
        for agent in ("a", "b", "c"):
            await call(router, agent)
        await server.wait_until(lambda: len(server.happenings("pong")) >= 20)
        watched = router.supervisor.lookout
        router.supervisor.end_agent("a", "it left")
        await server.wait_until(lambda: len(server.happenings("deleted")) == 1)
        assert watched.waiting > 0
    assert watched.waiting == 0
    assert server.happenings("reaped") == []
    assert server.sessions == {}
