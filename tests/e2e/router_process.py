"""The router as a real process between a scripted server in this one and real HTTP clients."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
import trio
from attrs import frozen
from peers import Peer, RunningRouter, free_port, log_events, run_router, start_peer

from kars_router.testing import HeartbeatServer, PlainAgent, serve

ROUTER_CONFIG = "kars.yaml"
_T = TypeVar("_T")
QUICK = {"ping_interval": 0.2, "ping_deadline": 0.5}


@frozen
class Scene:
    """A server, a router process in front of it, and an HTTP client."""

    server: HeartbeatServer
    router: RunningRouter
    client: httpx.AsyncClient

    @property
    def process(self) -> Peer:
        return self.router.process

    async def connect(self, path: str = "/mcp") -> PlainAgent:
        agent = PlainAgent(self.client, self.router.agent_url + path)
        await agent.initialize()
        return agent

    async def exited(self, seconds: float = 10) -> int:
        """The exit status, once there is one."""
        return await wait_exit(self.process, seconds)

    def events(self, name: str) -> list[dict[str, Any]]:
        """The log lines of an event."""
        return [line for line in log_events(self.process.log()) if line.get("event") == name]


async def wait_exit(process: Peer, seconds: float = 10) -> int:
    """The exit status of a process, once there is one."""
    with trio.fail_after(seconds + 1):
        return await trio.to_thread.run_sync(process.wait, seconds, abandon_on_cancel=True)


async def wait_true(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Return once something that another process does has happened."""
    with trio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110 - another process sets no event here
            await trio.sleep(0.01)


@asynccontextmanager
async def open_server(**options: Any) -> AsyncIterator[tuple[HeartbeatServer, str]]:
    """A scripted server on a real socket, and its URL."""
    async with (
        HeartbeatServer.open(**{**QUICK, **options}) as server,
        serve(server.app, grace=0.1) as url,
    ):
        yield server, f"{url}/mcp"


def document(url: str, **more: Any) -> dict[str, Any]:
    """The content of a kars.yaml with one server named `box`."""
    return {"servers": {"box": {"url": url, "allowedTools": ["*"]}}, **more}


@asynccontextmanager
async def open_scene(
    tmp_path: Path, *, listen: str = "127.0.0.1:0", **config: Any
) -> AsyncIterator[Scene]:
    """A server, `kars run` in front of it, and a client."""
    async with open_server() as (server, url), httpx.AsyncClient(timeout=30) as client:
        # Starting waits for log lines, in a thread so that the server can answer meanwhile.
        manager = run_router(
            document(url, **config), tmp_path, listen=listen, env={"HOME": str(tmp_path)}
        )
        async with in_thread(manager) as router:
            yield Scene(server, router, client)


@asynccontextmanager
async def in_thread(manager: contextlib.AbstractContextManager[_T]) -> AsyncIterator[_T]:
    """A blocking context manager, entered and left in a thread."""
    value = await trio.to_thread.run_sync(manager.__enter__)
    try:
        yield value
    finally:
        with trio.CancelScope(shield=True):  # bounded: the process is killed after its grace
            await trio.to_thread.run_sync(manager.__exit__, None, None, None)


@contextlib.contextmanager
def hypercorn(
    tmp_path: Path,
    config: Mapping[str, Any] | None,
    *,
    arguments: tuple[str, ...] = (),
    log: str = "hypercorn.log",
    wait: bool = True,
) -> Iterator[RunningRouter]:
    """`hypercorn -k trio kars_router.asgi:app` with `KARS_CONFIG`, until the block ends."""
    port = free_port()
    env = {"HOME": str(tmp_path), "KARS_CONFIG": ""}
    if config is not None:
        file = tmp_path / ROUTER_CONFIG
        file.write_bytes(msgspec.json.encode({"admin": "127.0.0.1:0", **config}))
        env["KARS_CONFIG"] = str(file)
    for name in ("PYTHONPATH", "PYTHONWARNINGS"):
        if name in os.environ:
            env[name] = os.environ[name]
    with start_peer(
        [
            *(sys.executable, "-m", "hypercorn", "-k", "trio", "-b", f"127.0.0.1:{port}"),
            *arguments,
            "kars_router.asgi:app",
        ],
        log_path=tmp_path / log,
        env=env,
        cwd=tmp_path,
        port=port if wait else None,
    ) as peer:
        yield RunningRouter(f"http://127.0.0.1:{port}", "", peer)
