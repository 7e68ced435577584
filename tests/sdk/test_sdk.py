"""The official SDKs as agents and as servers: first hand in hand, then with the router between.

What an agent reports must be the same on every way to a server, so that each pair's direct
meeting is the control for its meetings through the router.
"""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve, frozen
from peers import (
    Peer,
    RunningRouter,
    free_port,
    node22,
    npm_peer,
    peer_environment,
    run_router,
    start_peer,
    venv_peer,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent

# Longer than Playwright's server, the strictest known, lets a silent client live.
IDLE = 6.0

TYPESCRIPT = [
    "@modelcontextprotocol/sdk@1",
    "@modelcontextprotocol/client@2",
    "@modelcontextprotocol/server@2",
    "@modelcontextprotocol/node@2",
]
# Pinned: its tools, which this file names, change with its releases.
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"

AGENTS = ("python-1", "python-2", "typescript-1", "typescript-2", "typescript-2-auto")
# What each server's tool of state says at the first and at the second call of a session.
STATE = {
    "py1": ("1", "2"),
    "py1json": ("1", "2"),
    "py2": ("1", "2"),
    "ts2": ("no session", "no session"),
    "everything": ("Started", "Stopped"),
}
# Those that ask for the newest revision, and get it from whoever has it.
NEWEST_FIRST = ("python-2", "typescript-2-auto")
# Every agent with one server, and one agent with every server.
PAIRS = [
    *((agent, "py1") for agent in AGENTS),
    *(("python-1", name) for name in STATE if name != "py1"),
]


@frozen
class Sdks:
    """Where the installed SDKs are."""

    python: dict[str, Path]
    node: Path
    typescript: Path
    everything: Path

    def command(self, script: Path, release: str, *arguments: str) -> list[str]:
        """How to run `script` with the SDK of that name, such as `python-1`."""
        language, _, number = release.partition("-")
        if language == "python":
            return [str(self.python[number]), str(script), *arguments]
        return [str(self.node), str(script), *arguments]

    def environment(self) -> dict[str, str]:
        return {"NODE_PATH": str(self.typescript)}


@frozen
class Upstream:
    """A running server and the tools by which it is compared."""

    name: str
    peer: Peer
    port: int
    state: str = "count"
    fail: str = "fail"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"


@frozen
class Seen:
    """What an agent reported, with everything that differs between two equal runs taken out."""

    protocol: str
    tools: list[str]
    first: str
    failed: list[Any]
    second: str


@pytest.fixture(scope="module")
def sdks() -> Sdks:
    return Sdks(
        {
            "1": venv_peer("python-sdk-1", ["mcp>=1,<2"]),
            "2": venv_peer("python-sdk-2", ["mcp>=2,<3"]),
        },
        node22(),
        npm_peer("typescript-sdk", TYPESCRIPT) / "node_modules",
        npm_peer("server-everything", [EVERYTHING]) / "node_modules",
    )


@pytest.fixture(scope="module")
def upstreams(
    sdks: Sdks, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Upstream]]:
    logs = tmp_path_factory.mktemp("upstreams")
    with ExitStack() as stack:

        def start(name: str, argv: list[str], port: int, env: dict[str, str]) -> Upstream:
            log = logs / f"{name}.log"
            peer = stack.enter_context(start_peer(argv, port=port, log_path=log, env=env))
            return Upstream(name, peer, port)

        def own(name: str, release: str, file: str, *arguments: str) -> Upstream:
            port = free_port()
            argv = sdks.command(HERE / "servers" / file, release, str(port), *arguments)
            return start(name, argv, port, sdks.environment())

        found = [
            own("py1", "python-1", "python_1.py", "sse"),
            own("py1json", "python-1", "python_1.py", "json"),
            own("py2", "python-2", "python_2.py"),
            own("ts2", "typescript-2", "typescript_2.cjs"),
        ]
        port = free_port()
        main = sdks.everything / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js"
        # It listens on every address of the machine unless it is kept from it.
        only_here = {"PORT": str(port), "NODE_OPTIONS": f"--require {HERE / 'loopback.cjs'}"}
        everything = start(
            "everything", [str(sdks.node), str(main), "streamableHttp"], port, only_here
        )
        # The tool is a switch for each session; `echo` fails without its argument.
        found.append(evolve(everything, state="toggle-simulated-logging", fail="echo"))
        yield {upstream.name: upstream for upstream in found}


@pytest.fixture(scope="module")
def router(
    upstreams: dict[str, Upstream], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningRouter]:
    servers: dict[str, dict[str, Any]] = {
        name: {"url": upstream.url, "allowedTools": ["*"]} for name, upstream in upstreams.items()
    }
    servers["py2"]["era"] = "mirror"  # it counts for those who have sessions
    with run_router({"servers": servers}, tmp_path_factory.mktemp("router")) as running:
        running.wait_until_ready()
        yield running


@frozen
class Way:
    """How an agent gets to a server: directly, or through the endpoint of one or of all."""

    router: RunningRouter | None = None
    aggregated: bool = False

    def url(self, upstream: Upstream) -> str:
        if self.router is None:
            return upstream.url
        return self.router.mcp(None if self.aggregated else upstream.name)

    def prefix(self, upstream: Upstream) -> str:
        return f"{upstream.name}__" if self.aggregated else ""


def converse(sdks: Sdks, agent: str, way: Way, upstream: Upstream, idle: float = IDLE) -> Seen:
    """Let `agent` do its work; what it reports, seen as if it had met `upstream` directly."""
    prefix = way.prefix(upstream)
    task = {
        "url": way.url(upstream),
        "state": prefix + upstream.state,
        "fail": prefix + upstream.fail,
        "idle": idle,
        "agent": f"{agent} at {way.url(upstream)}",
    }
    language, _, release = agent.partition("-")
    if language == "python":
        argv = sdks.command(HERE / "agents" / f"python_{release}.py", agent, json.dumps(task))
    else:
        argv = sdks.command(HERE / "agents" / "typescript.cjs", agent, release, json.dumps(task))
    done = subprocess.run(
        argv,
        env={**peer_environment(), **sdks.environment()},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{agent} at {task['url']}\n{done.stderr}"
    report = json.loads(done.stdout)
    names = [name.removeprefix(prefix) for name in report["tools"] if name.startswith(prefix)]
    is_error, text = report["failed"]
    return Seen(
        report["protocol"],
        sorted(names),
        without_ids(report["first"]),
        [is_error, without_ids(text)],
        without_ids(report["second"]),
    )


def without_ids(text: str) -> str:
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "<id>", text)


Meetings = dict[tuple[str, str], "Future[Seen]"]


@contextmanager
def all_at_once(sdks: Sdks, upstreams: dict[str, Upstream], way: Way) -> Iterator[Meetings]:
    """Start every pair at the same time, which is how sessions show that they are kept apart."""
    with ThreadPoolExecutor(len(PAIRS)) as pool:
        yield {
            (agent, name): pool.submit(converse, sdks, agent, way, upstreams[name])
            for agent, name in PAIRS
        }


@pytest.fixture(scope="module")
def direct(sdks: Sdks, upstreams: dict[str, Upstream]) -> Iterator[Meetings]:
    with all_at_once(sdks, upstreams, Way()) as meetings:
        yield meetings


@pytest.fixture(scope="module", params=["one server", "aggregated"])
def routed(
    request: pytest.FixtureRequest,
    sdks: Sdks,
    upstreams: dict[str, Upstream],
    router: RunningRouter,
    direct: Meetings,
) -> Iterator[Meetings]:
    # Not before the controls are over: they would share the machine, and its faults.
    wait(direct.values())
    way = Way(router, aggregated=request.param == "aggregated")
    with all_at_once(sdks, upstreams, way) as meetings:
        yield meetings


@pytest.mark.parametrize(("agent", "server"), PAIRS)
def test_control_they_understand_each_other(direct: Meetings, agent: str, server: str) -> None:
    seen = direct[agent, server].result()

    first, second = STATE[server]
    assert seen.protocol == "2025-11-25"
    assert seen.first.startswith(first)
    assert seen.second.startswith(second)
    assert seen.failed[0] is True


@pytest.mark.parametrize(("agent", "server"), PAIRS)
def test_the_router_makes_no_difference(
    routed: Meetings, direct: Meetings, agent: str, server: str
) -> None:
    expected = direct[agent, server].result()
    if agent in NEWEST_FIRST:
        # The router has what it asks for, whatever the server speaks.
        expected = evolve(expected, protocol="2026-07-28")
    assert routed[agent, server].result() == expected


def test_sessions_at_the_server_end_with_the_agent_and_with_the_router(
    sdks: Sdks, upstreams: dict[str, Upstream], tmp_path: Path
) -> None:
    upstream = upstreams["py1"]
    earlier = len(upstream.peer.log())

    def sessions(pattern: str) -> set[str]:
        return set(re.findall(pattern, upstream.peer.log()[earlier:]))

    def opened() -> set[str]:
        return sessions(r"Created new transport with session ID: (\S+)")

    def ended() -> set[str]:
        return sessions(r"Terminating session: (\S+)")

    config = {"servers": {"py1": {"url": upstream.url, "allowedTools": ["*"]}}}
    with run_router(config, tmp_path) as router:
        router.wait_until_ready()
        before = opened()
        for agent in ("python-1", "typescript-1"):
            converse(sdks, agent, Way(router), upstream, idle=0)
        router.process.wait_for(
            lambda: len(ended() - before) == 2, "both agents' sessions end at the server", 10
        )
        assert router.process.stop(grace=20) == 0
    assert opened() == ended()
