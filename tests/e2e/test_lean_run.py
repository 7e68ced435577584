"""What a plain `kars run` does not load, and that nothing is out of reach because of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from e2e.router_process import in_thread, open_server, wait_exit
from peers import log_events, start_peer

from kars_router.testing import PlainAgent, text_of

# `kars run` as it is, which says in the end what it has loaded. What is installed beside the router
# in this environment is not its doing.
RUN = """
import atexit, importlib.metadata, json, sys
importlib.metadata.entry_points = lambda **_: ()
from kars_router.cli.main import main
atexit.register(lambda: print(json.dumps({"event": "modules", "names": sorted(sys.modules)})))
sys.exit(main(sys.argv[1:]))
"""

# Measuring coverage loads modules of its own.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}

# Each costs every pod something, and is for what few of them do: packages and modules by name, and
# with everything in them.
UNUSED = (
    "asyncio",  # nothing here runs on it; structlog imports it
    "cel",
    "click.testing",
    "cryptography",  # signatures: of the record, of agents' tokens
    "h2",  # hypercorn imports it
    "hpack",
    "html",  # the web server of prometheus_client
    "httpcore",  # the pool of httpx, in whose place is ours
    "jwt",
    "kars_router.audit",
    "kars_router.config.document",
    "kars_router.config.resource_rules",
    "kars_router.config.resources",
    "kars_router.egress",
    "kars_router.front.tokens",
    "kars_router.guard",
    "kars_router.kube",
    "kars_router.testing",
    "kars_router.transports.legacy_sse",
    "kars_router.transports.oauth.tokens",
    "kars_router.transports.stdio",
    "kars_router.transports.websocket",
    "kars_router.update",
    "kars_router.upgrade",
    "markdown_it",
    "oauthlib",
    "packaging",
    "priority",
    "pygments",
    "requests",
    "rich",
    "ruamel",  # only a file needs it
    "sqlite3",  # only approvals do
    "trio_websocket",
)


def is_in(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


@pytest.mark.parametrize(
    ("listener", "unused"),
    [
        ("hypercorn", UNUSED),
        ("lean", (*UNUSED, "h11", "hypercorn", "multiprocessing", "wsproto")),
    ],
)
async def test_a_plain_run_loads_nothing_that_it_does_not_use(
    tmp_path: Path, listener: str, unused: tuple[str, ...]
) -> None:
    async with open_server() as (_, url), httpx.AsyncClient(timeout=30) as client:
        arguments = ("run", "--upstream", f"box={url}", "--listen", "127.0.0.1:0")
        manager = start_peer(
            [
                *(sys.executable, "-c", RUN, *arguments),
                *("--admin", "127.0.0.1:0", "--listener", listener),
            ],
            log_path=tmp_path / "router.log",
            env={"HOME": str(tmp_path), "KARS_CONFIG": "", **UNMEASURED},
            cwd=tmp_path,
            ready=lambda peer: '"listening"' in peer.log(),
        )
        async with in_thread(manager) as process:
            (line,) = (x for x in log_events(process.log()) if x.get("event") == "listening")
            agent = PlainAgent(client, f"{line['agent']}/mcp")
            await agent.initialize()
            assert text_of(await agent.call("box__increment")) == "counter: 1"
            metrics = await client.get(f"{line['admin']}/metrics")
            assert metrics.status_code == 200
            process.stop()
            await wait_exit(process)
            (end,) = (x for x in log_events(process.log()) if x.get("event") == "modules")
    assert "kars_router.service" in end["names"]
    assert [name for name in end["names"] if is_in(name, unused)] == []


def test_what_was_left_out_comes_when_it_is_used() -> None:
    """Stand-ins are no obstacle to a plugin that has a use for the real thing."""
    program = """
import sys
from kars_router.cli import run
from kars_router.cli.loading import loading
with loading(without=run._WITHOUT, later=run._LATER):
    import hypercorn.protocol.h2
import structlog.stdlib
assert "asyncio" not in sys.modules and "h2" not in sys.modules
assert structlog.stdlib.asyncio.sleep.__module__ == "asyncio.tasks"
assert hypercorn.protocol.h2.h2.connection.H2Connection.__name__ == "H2Connection"
assert hypercorn.protocol.h2.priority.PriorityTree
import importlib
import h2.events, rich.console, pygments, html
loop = importlib.import_module("asyncio")
assert html.escape("<") == "&lt;"
assert loop.sleep is structlog.stdlib.asyncio.sleep
try:
    structlog.stdlib.asyncio.nothing_of_the_kind
except AttributeError as error:
    assert "module 'asyncio'" in str(error)
else:
    raise AssertionError
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
