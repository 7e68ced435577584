"""The whole path on a real API server: what is declared is there, follows, and goes again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from kars_operator.settings import Settings

from cluster.harness import Cluster
from cluster.operator_kit import (
    Api,
    Node,
    condition,
    new_settings,
    operator,
    sandbox,
    server,
)
from kars_router.kube import resources as kinds

SANDBOXES = kinds.KARS_SANDBOXES


@pytest.fixture
def settings() -> Settings:
    return new_settings()


@pytest.mark.usefixtures("each_listener")
async def test_the_whole_path(
    cluster: Cluster, api: Api, settings: Settings, nursery: trio.Nursery, tmp_path: Path
) -> None:
    async with operator(cluster.connection(), settings, api.namespace):
        await api.apply(
            server("tools", "http://tools.mcp.svc:8931/mcp"), sandbox("browser", "tools")
        )
        # A pod, an account without token, a configuration and a policy.
        deployment = await api.until(kinds.DEPLOYMENTS, "browser", bool)
        assert deployment["spec"]["template"]["spec"]["automountServiceAccountToken"] is False
        await api.until(kinds.SERVICE_ACCOUNTS, "browser", bool)
        policy = await api.until(kinds.NETWORK_POLICIES, "browser", bool)
        (rule,) = [each for each in policy["spec"]["egress"] if each["ports"][0]["port"] == 8931]
        assert rule["to"] == [
            {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "mcp"}}}
        ]
        waiting = await api.condition(SANDBOXES, "browser", "RouterEnforcing", "False")
        assert waiting["reason"] == "AwaitingRouter"
        # The router runs, and says that it enforces what was declared.
        await nursery.start(Node(api, tmp_path).run, "browser")
        await api.condition(SANDBOXES, "browser", "Ready", "True")
        ready = await api.condition(kinds.MCP_SERVERS, "tools", "Ready", "True")
        assert ready["reason"] == "RouterEnforcing"
        before = await api.get(kinds.DEPLOYMENTS, "browser")
        # Another URL: policy and router follow, and the pod stays.
        await api.apply(server("tools", "http://tools.mcp.svc:9000/mcp"))
        await api.until(kinds.NETWORK_POLICIES, "browser", lambda found: "9000" in str(found))
        await api.until(
            SANDBOXES,
            "browser",
            lambda found: (
                condition(found, "Ready").get("status") == "True"
                and "9000" in str(found and found["status"]["servers"])
            ),
        )
        after = await api.get(kinds.DEPLOYMENTS, "browser")
        assert before is not None
        assert after is not None
        assert after["metadata"]["generation"] == before["metadata"]["generation"]
        # Nothing is left.
        await api.kube.delete(SANDBOXES, "browser", api.namespace)
        for kind in (kinds.DEPLOYMENTS, kinds.NETWORK_POLICIES, kinds.SERVICE_ACCOUNTS):
            await api.until(kind, "browser", lambda found: found is None)
        await api.until(kinds.CONFIG_MAPS, "browser-router", lambda found: found is None)
    nursery.cancel_scope.cancel()


async def test_nobody_moves_a_pod_out_of_its_bounds(
    cluster: Cluster, api: Api, settings: Settings
) -> None:
    async with operator(cluster.connection(), settings, api.namespace):
        await api.apply(sandbox("browser"))
        await api.until(kinds.DEPLOYMENTS, "browser", bool)
        outside = {"hostNetwork": True, "hostPID": True}
        change = {"spec": {"template": {"spec": outside}}}
        await api.kube.patch(kinds.DEPLOYMENTS, "browser", api.namespace, change)
        await api.until(
            kinds.DEPLOYMENTS,
            "browser",
            lambda found: (
                found is not None and not outside.keys() & found["spec"]["template"]["spec"].keys()
            ),
        )
