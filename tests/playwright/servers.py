"""Playwright MCP servers as processes, and the pages that their browsers visit.

Owns installation, start, and what the servers' own log tells of sessions. Knows no router.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import frozen
from peers import LOOPBACK, Peer, free_port, missing, npm_peer, require, start_peer

# Pinned: they stand for the two ways in which these servers treat a client. The old one begins to
# ping at the first tools/call whether anybody listens or not, the new one (since 0.0.80) only once
# a GET stream was asked for.
OLD = "0.0.70"
NEW = "0.0.83"
VERSIONS = (OLD, NEW)

# How long both versions wait for the answer to a ping, in seconds; then the session is gone.
REAP_TIME = 5.0

_PAGE = """<!doctype html><html><head><title>{title}</title></head><body><h1>{title}</h1>
<button onclick="clicks.textContent = +clicks.textContent + 1">Add</button>
<p>Clicks: <b id="clicks">0</b></p></body></html>"""
_TITLES = {"/apples": "Apples", "/pears": "Pears"}


@frozen
class BrowserServer:
    """A running server. `name` is fit for a configuration file."""

    version: str
    port: int
    process: Peer

    @property
    def name(self) -> str:
        return "old" if self.version == OLD else "new"

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}/mcp"

    def created(self) -> int:
        """How many sessions it has begun."""
        return self.process.log().count("create http session")

    def deleted(self) -> int:
        """How many sessions it has ended, for whatever reason."""
        return self.process.log().count("delete http session")

    def is_deserted(self) -> bool:
        """Whether every session has ended."""
        return self.deleted() == self.created()

    def browsers_closed(self) -> int:
        """How many browsers it has closed."""
        return self.process.log().count("close browser")

    def calls(self, tool: str) -> int:
        """How many calls of `tool` have arrived."""
        return len(re.findall(rf"\bname: '{tool}'", self.process.log()))


@contextmanager
def browser_server(
    version: str, directory: Path, *options: str, port: int | None = None
) -> Iterator[BrowserServer]:
    """Run `@playwright/mcp` until the block ends; its files and its log go to `directory`."""
    port = port or free_port()
    argv = [require("node", "Playwright MCP runs on it; apt-get install nodejs npm")]
    argv += [str(installed(version) / "node_modules/@playwright/mcp/cli.js")]
    argv += ["--host", LOOPBACK, "--port", str(port), "--allowed-hosts", f"{LOOPBACK}:{port}"]
    argv += ["--headless", "--isolated", "--no-sandbox", "--executable-path", chromium()]
    argv += ["--output-dir", str(directory / "output"), *options]
    directory.mkdir(parents=True, exist_ok=True)
    with start_peer(
        argv,
        log_path=directory / "server.log",
        env={"DEBUG": "pw:mcp:test,pw:mcp:server", "DEBUG_COLORS": "no"},
        cwd=directory,
        port=port,
    ) as process:
        yield BrowserServer(version, port, process)


def chromium() -> str:
    """The browser: `KARS_CHROMIUM`, or the `chromium` on the path, as Debian has it."""
    named = os.environ.get("KARS_CHROMIUM")
    found = shutil.which(named or "chromium")
    if found is None:
        how = f"{named} (KARS_CHROMIUM) is no program" if named else "chromium is not installed"
        missing(f"{how}: apt-get install --no-install-recommends chromium, or set KARS_CHROMIUM")
    return found


@functools.cache
def installed(version: str) -> Path:
    """Directory of the installed package; without a browser of its own."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1")
        return npm_peer("playwright", [f"@playwright/mcp@{version}"])


async def until(description: str, condition: Callable[[], bool], *, within: float) -> None:
    """Return once `condition()` is true; fail the test after `within` seconds."""
    with trio.move_on_after(within):
        while not condition():  # noqa: ASYNC110
            # Another process gives no event to wait for.
            await trio.sleep(0.02)
        return
    pytest.fail(f"not within {within:g} s: {description}")


class _Pages(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        title = _TITLES.get(self.path)
        body = _PAGE.format(title=title).encode() if title else b""
        self.send_response(HTTPStatus.OK if title else HTTPStatus.NOT_FOUND)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep quiet."""


@contextmanager
def pages() -> Iterator[str]:
    """Serve `/apples` and `/pears`, each with a counter of clicks; the URL without a slash."""
    with ThreadingHTTPServer((LOOPBACK, 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{LOOPBACK}:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
