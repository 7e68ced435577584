"""examples/playwright-mcp, applied and deleted as its README says."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from peers import REPOSITORY

from cluster.cli_kit import run_kars
from cluster.harness import Cluster
from cluster.operator_kit import Api, Node, condition, new_settings, operator
from kars_router.kube import Kube
from kars_router.kube import resources as kinds

EXAMPLE: Final = REPOSITORY / "examples" / "playwright-mcp"
SANDBOXES: Final = kinds.KARS_SANDBOXES


@pytest.mark.usefixtures("each_listener")
async def test_one_line_is_all_there_is_to_do(
    cluster: Cluster, definitions: None, kube: Kube, tmp_path: Path
) -> None:
    agents = Api(kube, "agents")
    files = sorted(EXAMPLE.glob("*.yaml"))

    async def kubectl(command: str, file: Path) -> None:
        arguments = [command, *(["--server-side"] if command == "apply" else []), "-f", str(file)]
        await trio.to_thread.run_sync(cluster.kubectl, *arguments)

    settings = new_settings()
    async with operator(cluster.connection(), settings, "agents"):
        for file in files:
            await kubectl("apply", file)
        async with trio.open_nursery() as node:
            await node.start(Node(agents, tmp_path).run, "browser")
            await agents.condition(SANDBOXES, "browser", "Ready", "True")
            found = await agents.get(SANDBOXES, "browser")
            policy = await agents.get(kinds.NETWORK_POLICIES, "browser")
            await agents.condition(kinds.MCP_SERVERS, "playwright", "Ready", "True")
            node.cancel_scope.cancel()
        # The Service was read: its pods alone, at their port.
        assert condition(found, "EgressDerived")["reason"] == "Derived"
        assert condition(found, "EgressTight")["status"] == "True"
        assert found is not None
        (server,) = found["status"]["servers"]
        assert (server["name"], server["egress"]) == ("playwright", "ServicePods")
        assert to_the_browser() in egress(policy)
        verified = await trio.to_thread.run_sync(verify, cluster, settings.admin_port)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        # Deleted in the other order, but for the namespaces, which other tests use.
        for file in reversed(files[1:]):
            await kubectl("delete", file)
        for kind in (kinds.DEPLOYMENTS, kinds.NETWORK_POLICIES, kinds.SERVICE_ACCOUNTS):
            await agents.until(kind, "browser", lambda found: found is None)


def verify(cluster: Cluster, admin_port: int) -> subprocess.CompletedProcess[str]:
    """Whether the cluster opens what the sandbox declares, and no more."""
    words = ["--namespace", "agents", "--operator-namespace", "agents"]
    return run_kars(cluster, "egress", "verify", "browser", *words, "--admin-port", str(admin_port))


def egress(policy: dict[str, Any] | None) -> list[dict[str, Any]]:
    assert policy is not None
    rules: list[dict[str, Any]] = policy["spec"]["egress"]
    return rules


def to_the_browser() -> dict[str, Any]:
    home = {"matchLabels": {"kubernetes.io/metadata.name": "kars-mcp"}}
    pods = {"matchLabels": {"app": "playwright-mcp"}}
    return {
        "to": [{"namespaceSelector": home, "podSelector": pods}],
        "ports": [{"protocol": "TCP", "port": 8931}],
    }
