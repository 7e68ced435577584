"""A real router in the pod: the agent's calls get to the servers through it, and no other way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import frozen
from guard.network import (
    POD,
    PROGRAMS,
    READS_ALL,
    WORLD,
    WORLD6,
    Network,
    as_user,
    own_directory,
)
from peers import Peer, listener_option, log_events

from kars_router.guard import ADMIN_PORT, AGENT, ROUTER

SERVER_PORT, ROUTER_PORT = 8931, 8443
DIRECT = [f"http://{WORLD}:{SERVER_PORT}/mcp", f"http://[{WORLD6}]:{SERVER_PORT}/mcp"]
ROUTED = f"http://127.0.0.1:{ROUTER_PORT}/mcp"
COUNTED = ["counter: 1", "counter: 2"]
UNREACHABLE = ["ConnectError"]


@frozen
class Pod:
    """A pod in which a router runs, before servers in the world.

    Attributes:
        network: where both are.
        router: the process.
    """

    network: Network
    router: Peer

    def agent(self, uid: int, *conversations: tuple[str, str]) -> list[list[str]]:
        """What a user's agent was told in each conversation, by URL and tool."""
        words = [word for conversation in conversations for word in conversation]
        argv = [sys.executable, str(PROGRAMS / "mcp_agent.py"), *words]
        done = self.network.pod.run(*as_user(uid, argv, keeps=READS_ALL))
        found: list[list[str]] = json.loads(done.stdout)
        return found


@pytest.fixture
def pod(network: Network, tmp_path: Path, each_listener: str) -> Iterator[Pod]:
    """As the operator makes one: the rules first, then the router as its user, then the agent."""
    program = [sys.executable, str(PROGRAMS / "mcp_server.py"), str(SERVER_PORT), WORLD, WORLD6]
    network.start(network.world.argv(program), "mcp-server", "ready")
    network.guard()
    state = own_directory(tmp_path, "state", ROUTER)
    argv = [
        *(sys.executable, "-P", "-m", "kars_router", "run"),
        *("--upstream", f"four={DIRECT[0]}", "--upstream", f"six={DIRECT[1]}"),
        *("--listen", f"127.0.0.1:{ROUTER_PORT}", "--admin", f"0.0.0.0:{ADMIN_PORT}"),
        *listener_option(),
    ]
    router = network.start(
        network.pod.argv(as_user(ROUTER, argv, keeps=READS_ALL)),
        "router",
        '"listening"',
        env={"HOME": str(state), "KARS_STATE_DIR": str(state)},
        cwd=state,
    )
    yield Pod(network, router)
    errors = [each for each in log_events(router.log()) if each.get("level") == "error"]
    assert errors == []


def status(network: Network, url: str) -> str:
    """The status that a kubelet gets."""
    program = """if True:
        import sys, urllib.error, urllib.request
        try:
            print(urllib.request.urlopen(sys.argv[1], timeout=5).status)
        except urllib.error.HTTPError as error:
            print(error.code)
    """
    return network.world.run(sys.executable, "-c", program, url).stdout.strip()


def test_calls_get_through_the_router_and_not_past_it(pod: Pod) -> None:
    tools = ("four__increment", "six__increment")
    routed = [(ROUTED, tool) for tool in tools]
    direct = [(url, "increment") for url in DIRECT]
    assert pod.agent(AGENT, *routed, *direct) == [COUNTED, COUNTED, UNREACHABLE, UNREACHABLE]
    assert pod.agent(ROUTER, *direct) == [COUNTED, COUNTED]


def test_the_kubelet_probes_the_router(pod: Pod) -> None:
    assert status(pod.network, f"http://{POD}:{ADMIN_PORT}/healthz") == "200"
    # It asks again until the router has heard of its servers.
    deadline = time.monotonic() + 30
    while (said := status(pod.network, f"http://{POD}:{ADMIN_PORT}/readyz")) != "200":
        assert said == "503"
        assert time.monotonic() < deadline


def test_the_agent_does_not_see_the_admin_address(pod: Pod) -> None:
    for host in ("127.0.0.1", POD):
        attempt = {"kind": "tcp", "to": host, "port": ADMIN_PORT}
        assert pod.network.attempt(AGENT, attempt) == ["ECONNREFUSED"]


def test_the_router_has_no_socket_that_the_network_shares(pod: Pod) -> None:
    """Abstract sockets belong to the network namespace, files or no files."""
    shown = pod.network.pod.run("cat", "/proc/net/unix").stdout
    assert [line for line in shown.splitlines() if "@" in line] == []


def test_a_second_run_disturbs_no_session(pod: Pod) -> None:
    program = [
        *(sys.executable, "-c", TWO_HALVES),
        *(ROUTED, "four__increment"),
    ]
    argv = pod.network.pod.argv(as_user(AGENT, program, keeps=READS_ALL))
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "counter: 1\n"
        pod.network.guard()
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "counter: 2\n"


TWO_HALVES = """
import sys, httpx, trio
from kars_router.testing import PlainAgent, text_of

async def main(url, tool):
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        agent = PlainAgent(client, url)
        await agent.initialize()
        print(text_of(await agent.call(tool)), flush=True)
        sys.stdin.readline()
        print(text_of(await agent.call(tool)), flush=True)

trio.run(main, *sys.argv[1:])
"""
