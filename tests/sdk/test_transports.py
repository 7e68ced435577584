"""Real servers of every transport behind the router, and a stock agent in front of it.

The agent is the official SDK's client over Streamable HTTP, whatever the server speaks.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from attrs import field, frozen
from peers import (
    LOOPBACK,
    RunningRouter,
    free_port,
    log_events,
    node22,
    npm_peer,
    peer_environment,
    run_router,
    start_peer,
    venv_peer,
)

HERE = Path(__file__).parent

# The WebSocket server hangs up after two seconds without a pong; Playwright's after five.
IDLE = 6.0

# Pinned: its tools, which this file names, change with its releases.
EVERYTHING = "@modelcontextprotocol/server-everything@2026.8.31"
PLAYWRIGHT = "@playwright/mcp@0.0.83"


@frozen
class Expected:
    """A server behind the router.

    Attributes:
        settings: its entry in the configuration.
        state: a tool that answers differently at its second call in a session.
        said: how these two answers begin.
        fail: a tool that fails.
        others: further tools that it has to have.
    """

    settings: Mapping[str, Any]
    state: str = "count"
    said: tuple[str, str] = ("1", "2")
    fail: str = "fail"
    others: frozenset[str] = field(factory=frozenset)


EVERYTHING_TOOLS: dict[str, Any] = {
    "state": "toggle-simulated-logging",
    "said": ("Started", "Stopped"),
    "fail": "echo",
    "others": frozenset({"get-sum", "get-env"}),
}
NAMES = (
    "py-ws",
    "py-sse",
    "py-sse-auto",
    "py-stdio",
    "everything-stdio",
    "everything-sse",
    "everything-http",
    "playwright-sse",
)


@pytest.fixture(scope="module")
def python() -> Path:
    return venv_peer("python-sdk-1-ws", ["mcp[ws]>=1,<2"])


@pytest.fixture(scope="module")
def expected(
    python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Expected]]:
    logs = tmp_path_factory.mktemp("servers")
    own = [str(python), str(HERE / "servers" / "python_1_channels.py")]
    node = str(node22())
    everything = npm_peer("server-everything", [EVERYTHING]) / "node_modules"
    main = str(everything / "@modelcontextprotocol" / "server-everything" / "dist" / "index.js")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
        playwright = npm_peer("playwright", [PLAYWRIGHT]) / "node_modules" / "@playwright" / "mcp"
    with ExitStack() as stack:

        def start(name: str, argv: list[str], port: int, **env: str) -> str:
            log = logs / f"{name}.log"
            stack.enter_context(start_peer(argv, port=port, log_path=log, env=env))
            return f"{LOOPBACK}:{port}"

        def serve(transport: str) -> str:
            port = free_port()
            return start(f"py-{transport}", [*own, transport, str(port)], port)

        def serve_everything(mode: str) -> str:
            port = free_port()
            # It listens on every address of the machine unless it is kept from it.
            only_here = f"--require {HERE / 'loopback.cjs'}"
            return start(
                f"everything-{mode}",
                [node, main, mode],
                port,
                PORT=str(port),
                NODE_OPTIONS=only_here,
            )

        sse = serve("sse")
        port = free_port()
        browser = [node, str(playwright / "cli.js"), "--host", LOOPBACK, "--port", str(port)]
        browser += ["--allowed-hosts", f"{LOOPBACK}:{port}", "--headless", "--isolated"]
        yield {
            "py-ws": Expected({"url": f"ws://{serve('websocket')}/"}),
            "py-sse": Expected({"url": f"http://{sse}/sse", "transport": "sse"}),
            "py-sse-auto": Expected({"url": f"http://{sse}/sse"}),
            "py-stdio": Expected({"command": own, "args": ["stdio"]}),
            "everything-stdio": Expected(
                {"command": node, "args": [main, "stdio"]}, **EVERYTHING_TOOLS
            ),
            "everything-sse": Expected(
                {"url": f"http://{serve_everything('sse')}/sse"}, **EVERYTHING_TOOLS
            ),
            "everything-http": Expected(
                {"url": f"http://{serve_everything('streamableHttp')}/mcp"}, **EVERYTHING_TOOLS
            ),
            # Without a browser: what it says of its missing tabs is the same both times.
            "playwright-sse": Expected(
                {"url": f"http://{start('playwright', browser, port)}/sse"},
                state="browser_close",
                said=("### ", "### "),
                fail="browser_click",
                others=frozenset({"browser_navigate", "browser_snapshot"}),
            ),
        }


@pytest.fixture(scope="module")
def router(
    expected: dict[str, Expected], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningRouter]:
    servers = {
        # Programs that run on Node or import an SDK take their time on a busy machine.
        name: {"allowedTools": ["*"], "timeouts": {"connect": "20s"}, **each.settings}
        for name, each in expected.items()
    }
    with run_router({"servers": servers}, tmp_path_factory.mktemp("router")) as running:
        running.wait_until_ready(60)
        yield running


def converse(python: Path, url: str, server: Expected, idle: float = IDLE) -> dict[str, Any]:
    """Lets the stock client of the SDK do its work; what it saw."""
    task = {"url": url, "state": server.state, "fail": server.fail, "idle": idle}
    done = subprocess.run(
        [str(python), str(HERE / "agents" / "python_1.py"), json.dumps(task)],
        env=peer_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, f"{url}\n{done.stderr}"
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module")
def meetings(
    python: Path, router: RunningRouter, expected: dict[str, Expected]
) -> Iterator[dict[str, Future[dict[str, Any]]]]:
    with ThreadPoolExecutor(len(NAMES)) as pool:
        yield {
            name: pool.submit(converse, python, router.mcp(name), expected[name]) for name in NAMES
        }


@pytest.mark.parametrize("name", NAMES)
def test_an_agent_and_a_server_of_any_transport_understand_each_other(
    meetings: dict[str, Future[dict[str, Any]]], expected: dict[str, Expected], name: str
) -> None:
    server = expected[name]
    seen = meetings[name].result()
    first, second = server.said
    assert seen["first"].startswith(first)
    assert seen["second"].startswith(second)
    assert seen["failed"][0] is True
    assert {server.state, server.fail, *server.others} <= {*seen["tools"]}


def test_what_was_found_out_is_logged_once_for_each_server(
    router: RunningRouter, meetings: dict[str, Future[dict[str, Any]]]
) -> None:
    for meeting in meetings.values():
        meeting.result()
    found = [
        line for line in log_events(router.process.log()) if line["event"] == "transport_found"
    ]
    assert sorted(line["server"] for line in found) == [
        "everything-sse",
        "playwright-sse",
        "py-sse-auto",
    ]


@pytest.mark.parametrize("name", ["py-stdio", "everything-stdio"])
def test_a_process_ends_with_its_agent_and_all_with_the_router(
    python: Path, expected: dict[str, Expected], tmp_path: Path, name: str
) -> None:
    def pids(event: str) -> set[int]:
        lines = log_events(running.process.log())
        return {line["pid"] for line in lines if line["event"] == event}

    settings = {
        "allowedTools": ["*"],
        "timeouts": {"connect": "20s"},
        "era": "handshake",
        **expected[name].settings,
    }
    with run_router({"servers": {name: settings}}, tmp_path) as running:
        running.wait_until_ready(60)
        before = pids("process_started")
        converse(python, running.mcp(name), expected[name], idle=0)
        agents = pids("process_started") - before
        assert len(agents) == 1
        running.process.wait_for(
            lambda: agents <= pids("process_ended"), "the agent's process ends", 10
        )
        assert running.process.stop(grace=20) == 0
        assert pids("process_started") == pids("process_ended")
