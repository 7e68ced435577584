"""The router is killed again and again in the middle of calls; the record must explain every one.

`KARS_KILLS` says how often; each time at a random moment, under load, with the same state, record
and server. What is compared: what agents were told, what the record says, what the server got.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import define, field
from e2e.router_process import document, in_thread, open_server
from peers import RunningRouter, run_router

from kars_router.testing import PlainAgent
from kars_router.testing.agent import HttpStatusError, NoAnswerError

KILLS = int(os.environ.get("KARS_KILLS", "200"))
AGENTS = 3
TOKEN = "an admin token of a test"
CALL = "kars.azure.com/call"
POLICY = {
    "default": "allow",
    "rules": [{"name": "ask", "effect": "approve", "tools": ["read"]}],
}


@define
class Ledger:
    """What agents and operators know.

    Attributes:
        told: how each call ended, as its agent was told, by its number; None if it was cut off.
        approved: the numbers of calls that the operator has approved, each once.
    """

    told: dict[int, str | None] = field(factory=dict)
    approved: set[int] = field(factory=set)
    numbers: Iterator[int] = field(factory=lambda: itertools.count(1))


async def load(router: RunningRouter, agent: list[Any], ledger: Ledger) -> None:
    """One agent's calls, until cancelled; its session goes on where the last router was killed."""
    async with httpx.AsyncClient(timeout=30) as client:
        known = PlainAgent(client, f"{router.agent_url}/mcp/box")
        if agent:
            known.session, known.server = agent
        else:
            await known.initialize()
            agent[:] = [known.session, known.server]
        while True:
            number = next(ledger.numbers)
            tool = "read" if number % 4 == 0 else "echo"
            ledger.told[number] = None
            result = await known.call(tool, n=number)
            meta = result.get("_meta", {}).get(CALL)
            ledger.told[number] = meta["fate"] if meta else "executed"


async def operate(router: RunningRouter, ledger: Ledger) -> None:
    """A person who approves each call once, until cancelled."""
    url = f"{router.admin_url}/api/v1/approvals"
    async with httpx.AsyncClient(headers={"authorization": f"Bearer {TOKEN}"}) as client:
        while True:
            for held in (await client.get(url)).json():
                number = json.loads(held["arguments"])["n"]
                if number not in ledger.approved:
                    ledger.approved.add(number)
                    await client.post(f"{url}/{held['id']}", json={"decision": "approve"})
            await trio.sleep(0.005)


async def one_life(
    manager: contextlib.AbstractContextManager[RunningRouter],
    agents: list[list[Any]],
    ledger: Ledger,
    moment: float,
) -> None:
    """A router from its start to its death."""
    gone = (httpx.TransportError, HttpStatusError, NoAnswerError)
    async with in_thread(manager) as router, trio.open_nursery() as nursery:

        async def until_killed(work: Any, *args: Any) -> None:
            with contextlib.suppress(*gone):
                await work(router, *args)

        for agent in agents:
            nursery.start_soon(until_killed, load, agent, ledger)
        nursery.start_soon(until_killed, operate, ledger)
        await trio.sleep(moment)  # the point of the test: any moment
        router.process.kill()
        nursery.cancel_scope.deadline = trio.current_time() + 5


def verify(path: Path) -> None:
    command = [sys.executable, "-m", "kars_router", "audit", "verify", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def recorded(path: Path) -> dict[int, list[dict[str, Any]]]:
    """Every recorded call, by the number in its arguments."""
    calls: dict[str, dict[str, Any]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        match record["event"]:
            case "accepted":
                number = record["arguments"]["content"]["n"]
                calls[record["call"]] = {"n": number, "sent": 0, "fates": []}
            case "sent":
                calls[record["call"]]["sent"] += 1
            case "ended":
                calls[record["call"]]["fates"].append(record["fate"])
            case _:
                pass
    found: dict[int, list[dict[str, Any]]] = {}
    for call in calls.values():
        found.setdefault(call["n"], []).append(call)
    return found


# httpx leaves the body of a request behind when the connection breaks under it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_every_call_is_explained_after_every_kill(tmp_path: Path) -> None:
    ledger, agents = Ledger(), [list[Any]() for _ in range(AGENTS)]
    path = tmp_path / "audit.jsonl"
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {KILLS} kills")
    dice = random.Random(seed)
    env = {"HOME": str(tmp_path), "KARS_ADMIN_TOKEN": TOKEN}
    async with open_server() as (server, url):
        config = document(
            url,
            state=str(tmp_path / "state"),
            audit={"path": str(path), "content": "arguments"},
            policies=[POLICY],
        )
        for number in range(KILLS):
            alike = {**config, "listener": ("hypercorn", "lean")[number % 2]}
            manager = run_router(alike, tmp_path, listen="127.0.0.1:0", env=env)
            await one_life(manager, agents, ledger, dice.uniform(0.0, 0.7))
            verify(path)
        # The last life ends in peace, so that the last open calls have their fates.
        async with in_thread(run_router(config, tmp_path, listen="127.0.0.1:0", env=env)):
            pass
        got = Counter(request.params["arguments"]["n"] for request in server.requests("tools/call"))
    verify(path)
    calls = recorded(path)
    fates = Counter(call["fates"][0] for found in calls.values() for call in found)
    print(f"{len(ledger.told)} calls, {sum(got.values())} reached the server, {dict(fates)}")
    assert len(ledger.told) > KILLS
    for number, found in calls.items():
        (call,) = found  # nobody makes a call twice
        (fate,) = call["fates"]  # and each has one end
        if fate == "executed":
            assert got[number] == 1
        elif fate == "not_executed":
            assert got[number] == 0
        else:
            assert call["sent"] >= 1
    for number, times in got.items():
        assert times == 1
        assert calls[number][0]["sent"] >= 1
        if number % 4 == 0:
            assert number in ledger.approved
    for number, told in ledger.told.items():
        if told is not None:
            (call,) = calls[number]
            assert call["fates"] == [told]
