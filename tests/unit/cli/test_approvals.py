"""`kars approvals` as a process, against the admin side of a router in this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from agent_kit import configuration, open_bench
from attrs import define, field
from governance_kit import APPROVE, Recording, Scripted, govern, meta

from kars_router.testing import PlainAgent, serve, text_of


@define
class Scene:
    """A router with its admin address on a socket, and one call that is held there."""

    admin: str
    state: Path
    agent: PlainAgent
    results: list[Any] = field(factory=list)

    async def kars(self, *words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "kars_router", "approvals", *words]
        known = {"HOME": "/nonexistent", "KARS_STATE_DIR": str(self.state)}
        return await trio.run_process(
            [*command, "--admin", self.admin],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=self.state,
            env={**os.environ, "KARS_ADMIN_TOKEN": "", "KARS_CONFIG": "", **known, **env},
        )

    async def call(self) -> None:
        self.results.append(await self.agent.call("box__increment", by="\x1b[31m"))


@asynccontextmanager
async def held(tmp_path: Path) -> AsyncIterator[Scene]:
    config = configuration({"box": {}}, state=tmp_path)
    async with open_bench(config) as bench, serve(bench.router.admin_app) as url:
        await govern(bench.router, Scripted(APPROVE))
        bench.router.governance.recorder = recording = Recording()
        scene = Scene(url, tmp_path, await bench.connect())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scene.call)
            await recording.wait_held()
            yield scene
            nursery.cancel_scope.cancel()


async def test_a_call_is_listed_and_approved(tmp_path: Path) -> None:
    async with held(tmp_path) as scene:
        listed = await scene.kars("list")
        head, row = listed.stdout.decode().splitlines()
        assert head.split()[:3] == ["ID", "STATE", "SERVER"]
        assert row.split()[1:4] == ["pending", "box", "increment"]
        assert "\x1b" not in row
        (only,) = json.loads((await scene.kars("list", "-o", "json")).stdout)
        done = await scene.kars("approve", only["id"], "--comment", "fine")
        assert (done.returncode, done.stdout) == (0, b"approved: increment on box\n")
        with trio.fail_after(10):
            while not scene.results:  # noqa: ASYNC110 - the answer is another task's
                await trio.sleep(0.01)
        assert text_of(scene.results[0]) == "counter: 1"
        assert (await scene.kars("list")).stdout == b"no call waits for approval\n"
        (past,) = json.loads((await scene.kars("list", "--all", "-o", "json")).stdout)
        assert past["state"] == "used"
        again = await scene.kars("approve", only["id"])
        assert again.returncode == 1
        assert b"unknown, decided or expired" in again.stderr


async def test_a_call_is_denied(tmp_path: Path) -> None:
    async with held(tmp_path) as scene:
        (only,) = json.loads((await scene.kars("list", "-o", "json")).stdout)
        done = await scene.kars("deny", only["id"], "--comment", "not today")
        assert done.stdout == b"denied: increment on box\n"
        with trio.fail_after(10):
            while not scene.results:  # noqa: ASYNC110 - the answer is another task's
                await trio.sleep(0.01)
        assert meta(scene.results[0])["code"] == "approval_denied"
        assert "not today" in text_of(scene.results[0])


@pytest.mark.parametrize(
    ("words", "env", "status", "said"),
    [
        (["list"], {"KARS_ADMIN_TOKEN": "a token that is wrong"}, 1, "with --token-file, or set"),
        (["list"], {"KARS_STATE_DIR": "elsewhere"}, 1, "name the file with --token-file"),
        (["list", "--token-file", "none"], {}, 1, "none cannot be read"),
        (["approve", "../x"], {}, 2, "is no approval's id"),
        (["approve", "zzz"], {}, 1, "unknown, decided or expired"),
    ],
)
async def test_mistakes_get_one_sentence(
    tmp_path: Path, words: list[str], env: dict[str, str], status: int, said: str
) -> None:
    async with held(tmp_path) as scene:
        done = await scene.kars(*words, **env)
        assert done.returncode == status, done.stderr
        assert said in done.stderr.decode()
        assert "Traceback" not in done.stderr.decode()
