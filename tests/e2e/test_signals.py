from __future__ import annotations

import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from e2e.router_process import Scene, open_scene, wait_exit, wait_true
from peers import log_events, start_peer

from kars_router.testing import PlainAgent, Reply, text_of

pytestmark = pytest.mark.usefixtures("each_listener")

CALL = "kars.azure.com/call"


async def call_slowly(scene: Scene, seconds: float, results: list[Any]) -> None:
    """One call of so many seconds; how it ends goes into `results`."""
    agent = await scene.connect()
    try:
        results.append(await agent.call("box__slow", seconds=seconds))
    except httpx.TransportError as error:
        results.append(error)


async def under_way(scene: Scene, calls: int = 1) -> None:
    """Returns once so many calls have come to the server."""
    await wait_true(lambda: len(scene.server.requests("tools/call")) >= calls)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_everything_in_order(tmp_path: Path, number: signal.Signals) -> None:
    async with open_scene(tmp_path) as scene, trio.open_nursery() as nursery:
        agent = await scene.connect()
        assert text_of(await agent.call("box__increment")) == "counter: 1"
        assert len(scene.server.sessions) == 2  # the router's own, for the list of tools
        results: list[Any] = []
        body = b""
        headers = {"accept": "text/event-stream", "mcp-session-id": agent.session or ""}
        url = f"{scene.router.agent_url}/mcp"
        async with scene.client.stream("GET", url, headers=headers) as stream:
            assert stream.headers["transfer-encoding"] == "chunked"
            nursery.start_soon(call_slowly, scene, 1.0, results)
            await under_way(scene, 2)
            scene.process.signal(number)
            start = time.monotonic()
            # A body that breaks off would raise: the last chunk came.
            with trio.fail_after(5):
                async for chunk in stream.aiter_raw():
                    body += chunk
            assert time.monotonic() - start < 0.8  # it does not wait for the call
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient() as late:
                    await late.get(url)
        assert await scene.exited() == 0
        assert time.monotonic() - start < 4
        await wait_true(lambda: bool(results))
        assert text_of(results[0]) == "slept 1 s"
        assert scene.server.sessions == {}
        assert len(scene.server.happenings("deleted")) == 3
        assert scene.server.happenings("reaped") == []
        assert "Traceback" not in scene.process.log()
        assert scene.events("stopped")


async def test_an_idle_router_stops_at_once(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene:
        agent = await scene.connect()  # and its connection stays open
        await agent.call("box__increment")
        start = time.monotonic()
        scene.process.signal(signal.SIGTERM)
        assert await scene.exited() == 0
        assert time.monotonic() - start < 2
        assert scene.server.sessions == {}


async def test_a_call_longer_than_the_grace_ends_with_its_fate(tmp_path: Path) -> None:
    async with open_scene(tmp_path, shutdownGrace="4s") as scene, trio.open_nursery() as nursery:
        results: list[Any] = []
        nursery.start_soon(call_slowly, scene, 60.0, results)
        await under_way(scene)
        start = time.monotonic()
        scene.process.signal(signal.SIGTERM)
        assert await scene.exited() == 0
        assert 0.8 < time.monotonic() - start < 4.0
        await wait_true(lambda: bool(results))
        assert isinstance(results[0], dict), results
        assert results[0]["isError"] is True
        assert results[0]["_meta"][CALL]["fate"] == "unknown"
        assert scene.server.sessions == {}


async def test_a_second_signal_does_not_wait_for_calls(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene, trio.open_nursery() as nursery:
        results: list[Any] = []
        nursery.start_soon(call_slowly, scene, 60.0, results)
        await under_way(scene)
        scene.process.signal(signal.SIGTERM)
        await wait_true(lambda: bool(scene.events("draining")))
        start = time.monotonic()
        scene.process.signal(signal.SIGTERM)
        assert await scene.exited() == 0
        assert time.monotonic() - start < 3
        await wait_true(lambda: bool(results))
        assert isinstance(results[0], dict), results
        assert results[0]["_meta"][CALL]["fate"] == "unknown"
        assert scene.server.sessions == {}


async def test_a_server_that_hangs_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    async with open_scene(tmp_path, shutdownGrace="5s") as scene:
        agent = await scene.connect()
        await agent.call("box__increment")
        scene.server.reply_next(Reply.hang(), http_method="DELETE", times=9)
        start = time.monotonic()
        scene.process.signal(signal.SIGTERM)
        assert await scene.exited() == 0
        assert time.monotonic() - start < 5


async def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        argv = [sys.executable, "-m", "kars_router", "run", "--upstream", "box=http://127.0.0.1:9"]
        for where in ("--listen", "--admin"):
            other = "--admin" if where == "--listen" else "--listen"
            arguments = [where, f"127.0.0.1:{port}", other, "127.0.0.1:0"]
            with start_peer(
                [*argv, *arguments], log_path=tmp_path / "log", env={"HOME": str(tmp_path)}
            ) as peer:
                assert await wait_exit(peer) == 1
                (line,) = peer.log().splitlines()
                assert line.startswith(f"kars: cannot listen on 127.0.0.1:{port}: ")
                assert "choose another address" in line


async def test_a_killed_router_goes_on_where_it_was(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_scene(tmp_path, state=str(state)) as scene:
        agent = await scene.connect()
        gone = await scene.connect()
        await agent.call("box__increment")
        ended = gone.session
        assert await gone.delete() == 200
        address = scene.router.agent_url.removeprefix("http://")
        scene.process.kill()
        config = (tmp_path / "kars.yaml").read_bytes()
        (tmp_path / "again.yaml").write_bytes(config)
        argv = [sys.executable, "-m", "kars_router", "run", "-c", str(tmp_path / "again.yaml")]
        with start_peer(
            [*argv, "--listen", address, "--admin", "127.0.0.1:0"],
            log_path=tmp_path / "again.log",
            env={"HOME": str(tmp_path)},
        ) as again:
            await wait_true(
                lambda: any(line["event"] == "listening" for line in log_events(again.log()))
            )
            result = await agent.call("box__increment")
            assert result["_meta"]["kars.azure.com/session"]["reset"] is True
            assert result["_meta"]["kars.azure.com/session"]["generation"] == 2
            assert text_of(result).endswith("counter: 1")
            assert text_of(await agent.call("box__increment")) == "counter: 2"
            dead = await scene.client.delete(
                f"http://{address}/mcp", headers={"mcp-session-id": ended or ""}
            )
            assert dead.status_code == 404
            again.signal(signal.SIGTERM)
            assert await wait_exit(again) == 0
    key = state / "session.key"
    assert key.stat().st_mode & 0o777 == 0o600


async def test_a_socket_in_the_file_system_is_listened_on(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    async with open_scene(tmp_path, listen=f"unix:{path}") as scene:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport) as client:
            agent = PlainAgent(client, "http://localhost/mcp")
            await agent.initialize()
            assert text_of(await agent.call("box__increment")) == "counter: 1"
        scene.process.signal(signal.SIGTERM)
        assert await scene.exited() == 0


async def test_an_idle_agent_without_a_stream_keeps_its_counter_for_real(tmp_path: Path) -> None:
    async with open_scene(tmp_path) as scene:
        agent = await scene.connect()
        assert text_of(await agent.call("box__increment")) == "counter: 1"
        # Reaped 0.5 s after an unanswered ping, one every 0.2 s: this is well over three times.
        start = len(scene.server.happenings("pong"))
        await wait_true(lambda: len(scene.server.happenings("pong")) >= start + 11)
        assert text_of(await agent.call("box__increment")) == "counter: 2"
        assert scene.server.happenings("reaped") == []
