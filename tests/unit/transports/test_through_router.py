"""Sessions over a channel, seen from above: a router, and a server that is a child process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import define
from msgspec import json
from structlog.testing import capture_logs
from structlog.typing import EventDict

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.schema import Config, Era, Server
from kars_router.model import CallOutcome, Fate, ToolCall
from kars_router.service import Router, open_router
from kars_router.testing import text_of

COUNTER = Path(__file__).with_name("stdio_counter.py")
SECONDS = 20


@define
class Rig:
    """A router, and what it logs of the processes behind it."""

    router: Router
    logs: list[EventDict]

    async def call(self, tool: str, agent: str = "a") -> CallOutcome:
        return await self.router.supervisor.call(
            ToolCall(agent=agent, server="s", tool=tool, params=json.encode({"name": tool}))
        )

    async def text(self, tool: str, agent: str = "a") -> str:
        outcome = await self.call(tool, agent)
        assert outcome.result is not None, outcome
        return text_of(json.decode(outcome.result))


@asynccontextmanager
async def routed(era: Era = Era.HANDSHAKE) -> AsyncIterator[Rig]:
    """A router in front of the counter; checks that no process outlives it."""
    server = Server(
        command=(sys.executable, "-I", "-S", str(COUNTER)), allowed_tools=("*",), era=era
    )
    config = Config(admin=None, servers=FrozenMap({"s": server}))
    with trio.fail_after(SECONDS), capture_logs() as logs:
        try:
            async with open_router(config, serve=False) as router:
                await router.supervisor.wait_tried(10)
                yield Rig(router, logs)
        finally:
            started, ended = (
                sorted(line["pid"] for line in logs if line["event"] == event)
                for event in ("process_started", "process_ended")
            )
            assert started
            assert started == ended


@pytest.mark.parametrize("era", [Era.HANDSHAKE, Era.AUTO])
async def test_each_agent_has_a_process_of_its_own(era: Era) -> None:
    async with routed(era) as rig:
        assert [await rig.text("count") for _ in range(3)] == ["1", "2", "3"]
        assert await rig.text("count", "b") == "1"
        pids = {await rig.text("pid", agent) for agent in ("a", "b")}
        assert len(pids) == 2
        rig.router.supervisor.end_agent("b", "it left")
        assert await rig.text("count") == "4"


async def test_the_server_is_answered_in_the_middle_of_a_call() -> None:
    async with routed() as rig:
        assert json.decode(await rig.text("ask")) == {"jsonrpc": "2.0", "id": 0, "result": {}}


async def test_a_process_that_dies_in_a_call_is_a_loss_and_the_call_in_doubt() -> None:
    async with routed() as rig:
        assert await rig.text("count") == "1"
        outcome = await rig.call("crash")
        assert (outcome.fate, outcome.code) == (Fate.UNKNOWN, "session_lost")
        again = await rig.call("count")
        assert again.reset is not None
        assert again.reset.generation == 2
        assert await rig.text("count") == "2"
    failed = next(line for line in rig.logs if line["event"] == "call_failed")
    assert "exited with status 1; its last line: crashed as told" in failed["failure"]


async def test_a_process_that_dies_between_calls_costs_no_call() -> None:
    async with routed() as rig:
        await rig.text("count")
        session = rig.router.supervisor.servers["s"].slots["a"].session
        assert session is not None
        os.kill(int(await rig.text("pid")), signal.SIGKILL)
        await session.ended.wait()
        outcome = await rig.call("count")
        assert outcome.fate is Fate.EXECUTED
        assert outcome.reset is not None
        assert text_of(json.decode(outcome.result or b"")) == "1"


async def test_nothing_is_left_of_a_router_that_is_cancelled() -> None:
    with trio.CancelScope() as scope:
        async with routed() as rig:
            await rig.text("count")
            scope.cancel()
            await trio.sleep_forever()
