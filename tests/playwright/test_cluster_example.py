"""examples/playwright-mcp without a cluster: the arguments of its server, its router and its agent.

What a real API server makes of its manifests is in tests/cluster.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from attrs import frozen
from peers import LOOPBACK, REPOSITORY, free_port, peer_environment, require, run_router, start_peer
from ruamel.yaml import YAML

from kars_router.config.resources import McpServerResource, structure_resource
from playwright.servers import NEW, REAP_TIME, chromium, installed

EXAMPLE: Final = REPOSITORY / "examples" / "playwright-mcp"
PORT: Final = 8931


def manifests(name: str) -> dict[str, Any]:
    """The objects in a file of the example, by kind."""
    found = YAML(typ="safe", pure=True).load_all((EXAMPLE / name).read_text(encoding="utf-8"))
    return {each["kind"]: each for each in found}


def container() -> dict[str, Any]:
    """The container of the browser server."""
    spec = manifests("10-playwright.yaml")["Deployment"]["spec"]["template"]["spec"]
    (found,) = spec["containers"]
    assert isinstance(found, dict)
    return found


def allowed_hosts() -> list[str]:
    """What the example has the server answer to."""
    prefix = "--allowed-hosts="
    (found,) = (each for each in container()["args"] if each.startswith(prefix))
    return str(found.removeprefix(prefix)).split(",")


@frozen
class Running:
    """The example's server on this machine."""

    port: int

    def status(self, host: str) -> int:
        """What a request for this host is answered with."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=30)
        try:
            connection.request("GET", "/mcp", headers={"Host": host, "Accept": "text/event-stream"})
            return connection.getresponse().status
        finally:
            connection.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The published package with the example's arguments, but where it listens and its browser."""
    directory, port = tmp_path_factory.mktemp("example"), free_port()
    here = {
        "--host=0.0.0.0": f"--host={LOOPBACK}",
        f"--port={PORT}": f"--port={port}",
        f"--allowed-hosts={','.join(allowed_hosts())}": (
            f"--allowed-hosts={','.join([*allowed_hosts(), f'{LOOPBACK}:{port}'])}"
        ),
    }
    arguments = [here.pop(each, each) for each in container()["args"]]
    assert here == {}
    node = require("node", "Playwright MCP runs on it; apt-get install nodejs npm")
    program = str(installed(NEW) / "node_modules/@playwright/mcp/cli.js")
    argv = [node, program, *arguments, "--executable-path", chromium()]
    log = directory / "server.log"
    with start_peer(argv, log_path=log, cwd=directory, port=port):
        yield Running(port)


def test_the_image_is_the_version_that_is_tested() -> None:
    assert container()["image"].endswith(f":v{NEW}")


def test_the_server_answers_to_the_names_of_its_service_and_to_no_others(server: Running) -> None:
    service = manifests("10-playwright.yaml")["Service"]
    name = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert allowed_hosts() == [f"{name}.cluster.local:{PORT}", f"{name}:{PORT}"]
    for host in allowed_hosts():
        assert server.status(host) == 400  # a stream without a session
    for host in (f"{name}.example.com:{PORT}", f"{LOOPBACK}:{PORT}", name):
        assert server.status(host) == 403


def test_the_url_is_one_of_those_names() -> None:
    url = manifests("20-mcpserver.yaml")["McpServer"]["spec"]["url"]
    assert url.removeprefix("http://").removesuffix("/mcp") in allowed_hosts()


def test_the_agent_keeps_its_page(server: Running, pages: str, tmp_path: Path) -> None:
    resource = structure_resource(manifests("20-mcpserver.yaml")["McpServer"])
    assert isinstance(resource, McpServerResource)
    entry = {**resource.spec.entry(), "url": f"http://{LOOPBACK}:{server.port}/mcp"}
    config = {"servers": {resource.meta.name: entry}, "state": "state"}
    with run_router(config, tmp_path) as router:
        done = subprocess.run(
            [sys.executable, str(EXAMPLE / "browse.py"), f"{pages}/apples", str(2 * REAP_TIME)],
            env={**peer_environment(), "KARS_MCP_URL": router.mcp()},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    first, _, last = done.stdout.splitlines()
    assert first == f"browser_navigate: {pages}/apples"
    assert last == f"browser_snapshot: {pages}/apples"
