"""`kars run` with policies and a record: what a kill leaves of a held call, and where copies go."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import frozen
from e2e.router_process import document, in_thread, open_server
from peers import RunningRouter, log_events, run_router

from kars_router.testing import PlainAgent, text_of

pytestmark = pytest.mark.usefixtures("each_listener")

TOKEN = "an admin token of a test"
POLICY = {
    "default": "allow",
    "rules": [{"name": "ask", "effect": "approve", "tools": ["increment"]}],
}


@frozen
class Life:
    """A router from its start to its death, and who talks to it."""

    router: RunningRouter
    client: httpx.AsyncClient

    def agent(self, before: PlainAgent | None = None) -> PlainAgent:
        """An agent; the one that another router knew, if one is given."""
        agent = PlainAgent(self.client, self.router.mcp("box"))
        if before is not None:
            agent.session, agent.server = before.session, before.server
        return agent

    async def approvals(self, query: str = "") -> list[dict[str, Any]]:
        """What the API lists."""
        url = f"{self.router.admin_url}/api/v1/approvals{query}"
        response = await self.client.get(url, headers={"authorization": f"Bearer {TOKEN}"})
        return list(response.raise_for_status().json())

    async def held(self) -> dict[str, Any]:
        """The only call that waits, once there is one."""
        with trio.fail_after(10):
            while not (listed := await self.approvals()):  # noqa: ASYNC110 - another process
                await trio.sleep(0.01)
        (only,) = listed
        return only

    async def approve(self, ident: str) -> None:
        url = f"{self.router.admin_url}/api/v1/approvals/{ident}"
        headers = {"authorization": f"Bearer {TOKEN}"}
        response = await self.client.post(url, json={"decision": "approve"}, headers=headers)
        assert response.status_code == 200, response.text


@asynccontextmanager
async def life(config: dict[str, Any], tmp_path: Path) -> AsyncIterator[Life]:
    env = {"HOME": str(tmp_path), "KARS_ADMIN_TOKEN": TOKEN}
    async with (
        in_thread(run_router(config, tmp_path, env=env)) as router,
        httpx.AsyncClient(timeout=30) as client,
    ):
        yield Life(router, client)


async def call_until_killed(agent: PlainAgent) -> None:
    with contextlib.suppress(httpx.TransportError):
        await agent.call("increment")


def fates(path: Path) -> dict[str, list[str]]:
    """The ends of each recorded call, in the order in which the calls came."""
    found: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        if record["event"] == "accepted":
            found[record["call"]] = []
        elif record["event"] == "ended":
            found[record["call"]].append(record["fate"])
    return found


async def test_a_held_call_outlives_two_kills_and_is_made_once(tmp_path: Path) -> None:
    pytest.importorskip("kars_plugin_toolpolicy")
    path = tmp_path / "audit.jsonl"
    async with open_server() as (server, url):
        config = document(
            url, state=str(tmp_path / "state"), audit={"path": str(path)}, policies=[POLICY]
        )
        async with life(config, tmp_path) as first, trio.open_nursery() as nursery:
            agent = first.agent()
            await agent.initialize()
            nursery.start_soon(call_until_killed, agent)
            held = await first.held()
            assert held["waiting"]
            first.router.process.kill()
        async with life(config, tmp_path) as second:
            # It is still there, its agent is not, and approving it makes nothing by itself.
            again = await second.held()
            assert (again["id"], again["name"]) == (held["id"], "increment")
            assert not again["waiting"]
            await second.approve(held["id"])
            second.router.process.kill()
        assert server.requests("tools/call") == []
        assert list(fates(path).values()) == [["not_executed"]]
        async with life(config, tmp_path) as third, trio.open_nursery() as nursery:
            agent = third.agent(agent)
            assert text_of(await agent.call("increment")).endswith("counter: 1")
            assert [each["state"] for each in await third.approvals("?all=true")] == ["used"]
            # What was approved is used up: the same call once more is held anew.
            nursery.start_soon(call_until_killed, agent)
            assert (await third.held())["id"] != held["id"]
            third.router.process.kill()
        assert len(server.requests("tools/call")) == 1
    assert list(fates(path).values()) == [["not_executed"], ["executed"], []]


async def test_the_stdout_sink_copies_every_record_to_standard_output(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    async with open_server() as (_, url):
        config = document(
            url,
            audit={"path": str(path)},
            plugins={"options": {"stdout-sink": {"enabled": True}}},
        )
        async with life(config, tmp_path) as only:
            agent = only.agent()
            await agent.initialize()
            await agent.call("increment")
            assert await trio.to_thread.run_sync(only.router.process.stop) == 0
            shown = log_events(only.router.process.log())
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert {"accepted", "sent", "ended"} <= {record["event"] for record in records}
    copies = [line for line in shown if "seq" in line and "prev" in line]
    assert copies == records[: len(copies)]
    # Sinks are closed before the journal.
    assert [record["event"] for record in records[len(copies) :]] == ["closed", "checkpoint"]
