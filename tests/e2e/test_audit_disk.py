"""The record of a running router when its disk, or somebody else, gets in the way."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e.router_process import Scene, document, in_thread, open_scene, open_server
from governance_kit import meta
from peers import run_router

from kars_router.audit.verify import Report, verify_journal

pytestmark = pytest.mark.usefixtures("each_listener")

FULL = "File too large"


def limit(scene: Scene, size: int) -> None:
    """Has the router's writes fail beyond a file size, as on a full disk."""
    resource.prlimit(scene.process.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def audited(tmp_path: Path, **more: Any) -> dict[str, Any]:
    path = tmp_path / "audit.jsonl"
    return {"audit": {"path": str(path), **more}, "state": str(tmp_path / "state")}


def whole(tmp_path: Path) -> Report:
    report = verify_journal(tmp_path / "audit.jsonl")
    assert report.fault is None
    assert report.unended == []
    return report


async def asked(scene: Scene, path: str) -> httpx.Response:
    return await scene.client.get(scene.router.admin_url + path)


async def flood(scene: Scene, told: dict[int, Any], numbers: range) -> None:
    """Calls one after the other, and what each was told."""
    agent = await scene.connect("/mcp/box")
    for number in numbers:
        told[number] = await agent.call("echo", n=number)


@pytest.mark.parametrize("on_failure", ["deny", "allow"])
async def test_a_disk_that_gets_full_under_load(tmp_path: Path, on_failure: str) -> None:
    path = tmp_path / "audit.jsonl"
    told: dict[int, Any] = {}
    async with open_scene(tmp_path, **audited(tmp_path, onFailure=on_failure)) as scene:
        # In the middle of a record.
        limit(scene, path.stat().st_size + 20_000 + 117)
        async with trio.open_nursery() as nursery:
            for begin in (0, 100, 200):
                nursery.start_soon(flood, scene, told, range(begin, begin + 40))
        metrics = (await asked(scene, "/metrics")).text
        assert "kars_audit_healthy 0.0" in metrics
        ready = await asked(scene, "/readyz")
        assert (ready.status_code, FULL in ready.text) == (503, True)
        health = await asked(scene, "/healthz")
        assert (health.status_code, FULL in health.text) == (200, True)
        assert len(scene.events("audit_unwritable")) == 1
        # The log is the only trace of a call that the record does not have.
        line = scene.events("audit_failed")[0]
        assert (line["server"], line["tool"], bool(line["call"])) == ("box", "echo", True)
        assert line["calls"] == ("no" if on_failure == "deny" else "go on")
        limit(scene, resource.RLIM_INFINITY)
        with trio.fail_after(5):
            # It recovers by itself, without a call; another process sets no event here.
            while (await asked(scene, "/readyz")).status_code != 200:  # noqa: ASYNC110
                await trio.sleep(0.05)
        assert "kars_audit_healthy 1.0" in (await asked(scene, "/metrics")).text
        await flood(scene, told, range(300, 310))
        got = {each.params["arguments"]["n"] for each in scene.server.requests("tools/call")}
    denied = {n for n, result in told.items() if result.get("isError")}
    if on_failure == "allow":
        assert denied == set()
        assert got == set(told)
    else:
        assert 0 < len(denied) < len(told)
        for number in denied:
            assert meta(told[number])["fate"] == "not_executed"
            assert meta(told[number])["code"] == "audit_unavailable"
        assert got == set(told) - denied
    whole(tmp_path)


async def test_a_file_that_is_rotated_removed_and_shortened_by_somebody_else(
    tmp_path: Path,
) -> None:
    path = tmp_path / "audit.jsonl"
    async with open_scene(tmp_path, **audited(tmp_path)) as scene:
        agent = await scene.connect("/mcp/box")
        await agent.call("echo", n=1)
        path.rename(tmp_path / "audit.jsonl.1")  # as logrotate does it
        path.touch()
        assert "isError" not in await agent.call("echo", n=2)
        path.unlink()
        assert "isError" not in await agent.call("echo", n=3)
        path.write_bytes(b"")  # as `copytruncate` does it
        assert "isError" not in await agent.call("echo", n=4)
        assert [line["how"] for line in scene.events("audit_file_touched")] == [
            "replaced",
            "missing",
            "altered",
        ]
        assert (await asked(scene, "/readyz")).status_code == 200
        metrics = (await asked(scene, "/metrics")).text
        assert 'kars_audit_file_touched_total{how="altered"} 1.0' in metrics
    assert whole(tmp_path).begins == "altered"


def refused(tmp_path: Path, config: Path) -> tuple[int, str]:
    """Exit status and words of a router that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "kars_router", "run", "-c", str(config)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"HOME": str(tmp_path)},
    )
    return done.returncode, done.stderr


async def test_a_second_router_does_not_write_to_the_same_file(tmp_path: Path) -> None:
    async with open_scene(tmp_path, **audited(tmp_path)) as scene:
        other = tmp_path / "other.yaml"
        config = document("http://127.0.0.1:1/mcp", **audited(tmp_path), listen="127.0.0.1:0")
        other.write_text(json.dumps({**config, "state": str(tmp_path / "state2")}))
        status, said = await trio.to_thread.run_sync(refused, tmp_path, other)
        assert status == 1
        assert "another process is writing to" in said
        assert "Traceback" not in said
        agent = await scene.connect("/mcp/box")
        await agent.call("echo", n=1)
    whole(tmp_path)


async def test_a_missing_directory_is_made(tmp_path: Path) -> None:
    where = tmp_path / "not" / "there"
    async with open_server() as (_, url):
        config = document(url, audit={"path": str(where / "a.jsonl")}, state=str(tmp_path / "s"))
        manager = run_router(config, tmp_path, listen="127.0.0.1:0", env={"HOME": str(tmp_path)})
        async with in_thread(manager):
            pass
    assert (where / "a.jsonl").stat().st_mode & 0o777 == 0o600
    assert where.stat().st_mode & 0o777 == 0o700
