"""What a plain `kars run` does not load, and that nothing is out of reach because of it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2e.router_process import document, in_thread, open_server, wait_exit, wait_true
from peers import Peer, log_events, start_peer

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
    "kars_router.config.resource_rules",
    "kars_router.config.resources",
    "kars_router.config.yaml_document",
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
    "ruamel",  # only a file in YAML needs it, and only to be read
    "sqlite3",  # only approvals do
    "trio_websocket",
)


def is_in(module: str, names: tuple[str, ...]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)


@asynccontextmanager
async def open_run(
    tmp_path: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Peer, dict[str, Any]]]:
    """`kars run`, and the line in which it says where it listens."""
    manager = start_peer(
        [
            *(sys.executable, "-c", RUN, "run", *arguments),
            *("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"),
        ],
        log_path=tmp_path / "router.log",
        env={"HOME": str(tmp_path), "KARS_CONFIG": "", **UNMEASURED, **(env or {})},
        cwd=tmp_path,
        ready=lambda peer: '"listening"' in peer.log(),
    )
    async with in_thread(manager) as process:
        (line,) = events(process, "listening")
        yield process, line


def events(process: Peer, name: str) -> list[dict[str, Any]]:
    return [line for line in log_events(process.log()) if line.get("event") == name]


async def loaded_by(process: Peer) -> list[str]:
    """Ends it; the modules that it had."""
    process.stop()
    await wait_exit(process)
    (end,) = events(process, "modules")
    assert "kars_router.service" in end["names"]
    return list(end["names"])


@pytest.mark.parametrize(
    ("listener", "unused"),
    [
        ("hypercorn", UNUSED),
        ("lean", (*UNUSED, "h11", "hypercorn", "multiprocessing", "wsproto")),
    ],
)
@pytest.mark.parametrize("source", ["flags", "YAML"])
async def test_a_plain_run_loads_nothing_that_it_does_not_use(
    tmp_path: Path, listener: str, unused: tuple[str, ...], source: str
) -> None:
    async with open_server() as (_, url), httpx.AsyncClient(timeout=30) as client:
        given = ["--upstream", f"box={url}"]
        if source == "YAML":
            (tmp_path / "kars.yaml").write_text(as_yaml(url))
            given = ["-c", "kars.yaml"]
        # The parser in C would hold on to that in Python, which is read with and then forgotten.
        (tmp_path / "_ruamel_yaml.py").write_text("print('in C')\nCParser = CEmitter = object\n")
        async with open_run(
            tmp_path, *given, "--listener", listener, env={"PYTHONPATH": str(tmp_path)}
        ) as (process, line):
            agent = PlainAgent(client, f"{line['agent']}/mcp")
            await agent.initialize()
            assert text_of(await agent.call("box__increment")) == "counter: 1"
            metrics = await client.get(f"{line['admin']}/metrics")
            assert metrics.status_code == 200
            names = await loaded_by(process)
            assert "in C" not in process.log()
    assert [name for name in names if is_in(name, unused)] == []


async def test_a_yaml_file_that_changes_is_read_again(tmp_path: Path) -> None:
    """With the parser that was forgotten, or the router would keep to its old file for ever."""
    file = tmp_path / "kars.yaml"
    async with open_server() as (_, url):
        file.write_text(as_yaml(url))
        async with open_run(tmp_path) as (process, _):
            file.write_text(as_yaml(url, "box", "crate"))
            await wait_true(lambda: bool(events(process, "reload_applied")))
            (applied,) = events(process, "reload_applied")
            assert applied["added"] == ["crate"]
            file.write_text(as_yaml(url, "box", "box"))
            await wait_true(lambda: bool(events(process, "reload_refused")))
            (refused,) = events(process, "reload_refused")
            assert "given twice, on line 2 and line 5" in str(refused["problems"])
            assert "ruamel.yaml" in await loaded_by(process)


async def test_a_file_in_json_never_loads_the_yaml_parser(tmp_path: Path) -> None:
    """The parser is forgotten in the end, so here it fails to load at all."""
    (tmp_path / "ruamel").mkdir()
    (tmp_path / "ruamel" / "__init__.py").write_text("raise RuntimeError\n")
    file = tmp_path / "kars.yaml"
    path = {"PYTHONPATH": str(tmp_path)}
    async with open_server() as (_, url):
        file.write_text(json.dumps(document(url), indent=2))
        async with open_run(tmp_path, env=path) as (process, _):
            file.write_text(json.dumps(document(url, limits={"agentSessions": 5})))
            await wait_true(lambda: bool(events(process, "reload_applied")))
            await loaded_by(process)


def as_yaml(url: str, *names: str) -> str:
    lines = [f"  {name}:\n    url: {url}\n    allowedTools: ['*']\n" for name in names or ("box",)]
    return f"servers:\n{''.join(lines)}"


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
