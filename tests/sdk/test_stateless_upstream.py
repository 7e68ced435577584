"""Real servers of both eras behind the upstream side of the stateless era."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from attrs import define, field
from peers import free_port, node22, npm_peer, start_peer, venv_peer
from unit.session.stateless_kit import Agent, judge

from kars_router.config.schema import Era
from kars_router.session.base import Session
from kars_router.session.eras import Verdict, open_by_era
from kars_router.session.listener import ListenState
from kars_router.session.options import SessionOptions
from kars_router.session.pending import Pending
from kars_router.session.stateless import open_stateless
from kars_router.session.upstream import open_session
from kars_router.telemetry import Metrics
from kars_router.transports.base import Connection, Deliver
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport
from kars_router.transports.streamable_http import StreamableHttp

SERVERS = Path(__file__).parent / "servers"
# As in test_sdk.py, so that both share one installation.
TYPESCRIPT = [
    "@modelcontextprotocol/sdk@1",
    "@modelcontextprotocol/client@2",
    "@modelcontextprotocol/server@2",
    "@modelcontextprotocol/node@2",
]
NAME: dict[str, Any] = {"action": "accept", "content": {"name": "Ada"}}
LISTENING = ("python", "typescript")


def command(name: str, port: str) -> tuple[list[str], dict[str, str]]:
    """How to run one of the servers."""
    if name == "typescript":
        modules = npm_peer("typescript-sdk", TYPESCRIPT) / "node_modules"
        script = str(SERVERS / "stateless_typescript.cjs")
        return [str(node22()), script, port], {"NODE_PATH": str(modules)}
    requirements = {
        "python": ["mcp>=2,<3"],
        "fastmcp": ["fastmcp>=4,<5"],
        "python_1": ["mcp>=1,<2"],
    }[name]
    cache = {"python": "python-sdk-2", "python_1": "python-sdk-1"}.get(name, name)
    file = "python_1.py" if name == "python_1" else f"stateless_{name}.py"
    more = ["sse"] if name == "python_1" else []
    return [str(venv_peer(cache, requirements)), str(SERVERS / file), port, *more], {}


@pytest.fixture(scope="module")
def urls(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    logs = tmp_path_factory.mktemp("upstreams")
    found: dict[str, str] = {}
    with ExitStack() as stack:
        for name in (*LISTENING, "fastmcp", "python_1"):
            port = free_port()
            argv, env = command(name, str(port))
            log = logs / f"{name}.log"
            stack.enter_context(start_peer(argv, port=port, log_path=log, env=env))
            found[name] = f"http://127.0.0.1:{port}/mcp"
        yield found


@define
class Notices:
    """What a server has said on its own, and an event for what it says next."""

    said: list[tuple[str, Any]] = field(factory=list)
    more: trio.Event = field(factory=trio.Event)

    def take(self, method: str, params: bytes) -> None:
        self.said.append((method, msgspec.json.decode(params or b"{}")))
        self.more.set()

    async def hear(self, method: str, params: Any) -> None:
        """Return once the server has said it."""
        with trio.fail_after(5):
            while (method, params) not in self.said:
                self.more = trio.Event()
                await self.more.wait()


@define(eq=False)
class Rig:
    session: Session
    era: Era | None
    agent: Agent
    notices: Notices

    async def call(self, tool: str) -> str:
        """The text of a call that has to succeed."""
        params = {"name": tool, "arguments": {}, "_meta": {"progressToken": "t"}}
        pending = await self.submit("tools/call", params)
        assert pending.reply is not None, pending.failure
        assert pending.reply.result is not None, pending.reply
        result = msgspec.json.decode(pending.reply.result)
        assert "resultType" not in result
        text: str = result["content"][0]["text"]
        return text

    async def submit(self, method: str, params: Any) -> Pending:
        encoded = msgspec.json.encode(params)
        pending = self.session.submit(method, encoded, time_limit=10, caller=self.agent)
        await pending.wait()
        return pending


@asynccontextmanager
async def open_rig(url: str) -> AsyncIterator[Rig]:
    transport = TrioTransport(url)
    notices = Notices()
    options = SessionOptions(server="s")

    def connect(deliver: Deliver) -> Connection:
        return StreamableHttp(new_client(transport), url, server="s", deliver=deliver)

    common: dict[str, Any] = {
        "classify": judge,
        "metrics": Metrics(),
        "notify": notices.take,
        "on_listen": lambda *_: None,
    }

    def stateless() -> AbstractAsyncContextManager[Session]:
        return open_stateless(options, connect, plans=lambda _: None, **common)

    def handshake() -> AbstractAsyncContextManager[Session]:
        return open_session(options, connect, **common)

    verdict = Verdict(None)
    agent = Agent(answers={"elicitation/create": NAME}, log_level="debug")
    with trio.fail_after(60):
        async with (
            open_by_era(verdict, handshake=handshake, stateless=stateless) as session,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(session.hold, lambda: None, 0.0)
            with trio.fail_after(5):
                await session.settled.wait()
            yield Rig(session, verdict.current, agent, notices)
            nursery.cancel_scope.cancel()
    await transport.aclose()


async def test_the_probe_tells_the_eras_apart(urls: dict[str, str]) -> None:
    for name, url in urls.items():
        async with open_rig(url) as rig:
            assert rig.era is (Era.HANDSHAKE if name == "python_1" else Era.STATELESS), name
            assert rig.session.stateful is (name == "python_1")


@pytest.mark.parametrize("name", [*LISTENING, "fastmcp"])
async def test_what_belongs_to_a_call_reaches_its_caller(urls: dict[str, str], name: str) -> None:
    async with open_rig(urls[name]) as rig:
        assert rig.session.instructions == "Ask first."
        assert await rig.call("progress") == "done"
        steps = [{"progressToken": "t", "progress": n, "total": 3} for n in (1, 2, 3)]
        assert rig.agent.told == [("notifications/progress", step) for step in steps]
        rig.agent.told.clear()
        assert await rig.call("log") == "logged"
        ((method, said),) = rig.agent.told
        assert (method, said["level"]) == ("notifications/message", "info")


@pytest.mark.parametrize("name", LISTENING)
async def test_a_question_is_asked_and_answered(urls: dict[str, str], name: str) -> None:
    async with open_rig(urls[name]) as rig:
        assert "Ada" in await rig.call("ask")
        ((_, method, params),) = rig.agent.asked
        assert method == "elicitation/create"
        assert params["message"] == "What is your name?"
        rig.agent.answers.clear()
        assert "cancel" in await rig.call("ask")


@pytest.mark.parametrize("name", [*LISTENING, "fastmcp"])
async def test_errors_stay_what_they_are(urls: dict[str, str], name: str) -> None:
    async with open_rig(urls[name]) as rig:
        for method, params, code in (
            ("resources/read", {"uri": "test://none"}, -32602),
            ("nonsense/do", {}, -32601),
        ):
            pending = await rig.submit(method, params)
            assert pending.reply is not None, pending.failure
            assert pending.reply.error is not None
            assert msgspec.json.decode(pending.reply.error)["code"] == code
        assert rig.session.alive


@pytest.mark.parametrize("name", LISTENING)
async def test_changes_are_heard(urls: dict[str, str], name: str) -> None:
    async with open_rig(urls[name]) as rig:
        assert rig.session.listen_state is ListenState.OPEN
        await rig.call("change")
        await rig.notices.hear("notifications/tools/list_changed", {})
        assert rig.session.poll_seconds == float("inf")


async def test_a_resource_is_watched_where_the_server_agrees(urls: dict[str, str]) -> None:
    uri = "test://one"
    async with open_rig(urls["python"]) as rig:
        assert await rig.session.subscribe(uri, time_limit=5) is None
        pending = await rig.submit("tools/call", {"name": "touch", "arguments": {"uri": uri}})
        assert pending.reply is not None
        await rig.notices.hear("notifications/resources/updated", {"uri": uri})
    async with open_rig(urls["typescript"]) as rig:
        assert await rig.session.subscribe(uri, time_limit=5) is not None
        assert rig.session.listen_state is ListenState.OPEN


async def test_a_server_without_a_standing_stream_is_polled(urls: dict[str, str]) -> None:
    async with open_rig(urls["fastmcp"]) as rig:
        if rig.session.listen_state is ListenState.NONE:
            await rig.session.request("tools/list", time_limit=5)
            assert 50 < rig.session.poll_seconds < 100_000
            assert await rig.session.subscribe("test://one", time_limit=5) is not None
