"""What is said and done while what is known lags behind, and when objects change hands."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from kars_operator.controller import Controller
from kars_operator.settings import Placement, Settings
from operator_kit import (
    TEAM,
    Bench,
    FakeRouters,
    condition,
    new_cluster,
    operator,
    sandbox_manifest,
    server_manifest,
)
from trio.testing import MockClock

from kars_router.kube import resources as kinds
from kars_router.plugins import Plugins


async def ask(bench: Bench) -> None:
    bench.controller.asks.add(TEAM)
    await trio.sleep(0.2)
    await bench.settle()


async def test_what_was_written_last_is_what_a_status_is_compared_with(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    routers.start()
    routers.refused["box"] = ["no"]
    async with operator(cluster, routers=routers) as bench:
        await ask(bench)
        assert bench.condition("Ready") == ("False", "ConfigRefused")
        # From here on nobody hears of what is written into sandboxes and servers.
        for kind in (kinds.KARS_SANDBOXES, kinds.MCP_SERVERS):
            cluster.trouble(times=3, verb="watch", resource=kind, seconds=60)
        cluster.drop_watches()
        await trio.sleep(1)
        routers.refused.clear()
        await ask(bench)
        assert bench.condition("Ready")[0] == "True"
        assert condition(bench.find(kinds.MCP_SERVERS, "tools"))[0] == "True"
        routers.refused["box"] = ["no"]
        await ask(bench)
        assert bench.condition("Ready") == ("False", "ConfigRefused")
        assert condition(bench.find(kinds.MCP_SERVERS, "tools"))[0] == "False"


async def test_a_pod_that_is_going_vouches_for_nothing(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(sandbox_manifest())
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.condition("Ready")[0] == "True"
        (pod,) = cluster.all(kinds.PODS)
        released = trio.Event()

        async def slow(_: str) -> bytes:
            await released.wait()
            raise ValueError("gone")

        bench.controller.routers.get = slow
        # Another pod takes the place of the first, and has yet to answer.
        cluster.remove(kinds.PODS, pod["metadata"]["name"], "team")
        pod["metadata"] = {k: pod["metadata"][k] for k in ("namespace", "labels")}
        pod["metadata"]["name"] = "box-pod-2"
        cluster.put(pod)
        await trio.sleep(0.1)
        await bench.settle()
        assert bench.condition("Ready")[0] == "False"


async def test_nothing_is_remembered_of_routers_that_are_gone(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(sandbox_manifest())
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        cluster.remove(kinds.PODS, "box-pod", "team")
        await bench.settle()
        assert not bench.controller.routers._heard


@pytest.mark.parametrize(
    ("kind", "name"), [(kinds.CONFIG_MAPS, "box-router"), (kinds.SERVICE_ACCOUNTS, "box")]
)
async def test_what_is_said_to_be_another_sandboxes_is_looked_at_by_both(
    autojump_clock: MockClock, kind: Any, name: str
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    cluster.put(sandbox_manifest("other"))
    async with operator(cluster) as bench:
        await bench.settle()
        found = bench.find(kind, name)
        found["metadata"]["labels"]["kars.azure.com/sandbox"] = "other"
        cluster.put(found)
        await trio.sleep(30)
        await bench.settle()
        found = bench.find(kind, name)
        assert found is not None
        assert found["metadata"]["labels"]["kars.azure.com/sandbox"] == "box"


async def test_no_pod_outlives_its_policy_when_it_moves(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        routers.start()
        await bench.settle()
    async with operator(cluster, settings=Settings(placement=Placement.OWN)) as bench:
        await bench.settle()
        assert bench.find(kinds.DEPLOYMENTS) is None
        assert bench.find(kinds.NETWORK_POLICIES) is not None
        cluster.remove(kinds.PODS, "box-pod", "team")
        await bench.settle()
        assert bench.find(kinds.NETWORK_POLICIES) is None


async def test_a_definition_that_is_not_served_for_a_moment_is_not_gone(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    kind = kinds.CILIUM_NETWORK_POLICIES
    cluster.served.add(kind)
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.controller.known.installed()
        cluster.trouble(404, times=2, resource=kind)
        cluster.drop_watches()
        await trio.sleep(5)
        assert bench.controller.known.installed()
        await trio.sleep(60)
        assert bench.controller.known.installed()
        cluster.served.discard(kind)
        cluster.drop_watches()
        await trio.sleep(120)
        assert not bench.controller.known.installed()


async def test_a_sandbox_that_may_not_use_a_server_or_has_no_pod_keeps_it_from_nothing(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    routers.start()
    ref = {"mcpServerRefs": [{"name": "tools", "namespace": "team"}]}
    cluster.put(sandbox_manifest("stranger", governance=ref, metadata={"namespace": "other"}))
    cluster.put(sandbox_manifest("asleep", "tools", suspended=True))
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.condition("Ready")[0] == "True"
        assert condition(bench.find(kinds.MCP_SERVERS, "tools")) == ("True", "RouterEnforcing")
        # Once it is let in, it counts.
        allowed = {"namespaces": ["other"]}
        cluster.put(server_manifest(allowedSandboxes=allowed))
        await bench.settle()
        assert condition(bench.find(kinds.MCP_SERVERS, "tools"))[0] == "False"


@pytest.mark.parametrize(
    "spec",
    ["text", ["a"], {"governance": {"mcpServerRefs": 5}}, {"governance": {"mcpServerRefs": "ab"}}],
)
async def test_a_sandbox_that_another_definition_admits_ends_nothing(
    autojump_clock: MockClock, spec: Any
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    odd = sandbox_manifest("odd")
    odd["spec"] = spec
    cluster.put(odd)
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.condition("Ready", "odd") == ("False", "SpecInvalid")
        assert bench.condition("Ready")[1] == "AwaitingRouter"


async def test_a_deployment_whose_owner_was_taken_away_gets_it_back(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        found = bench.find(kinds.DEPLOYMENTS)
        del found["metadata"]["ownerReferences"]
        cluster.put(found)
        await bench.settle()
        assert bench.find(kinds.DEPLOYMENTS)["metadata"].get("ownerReferences")


async def test_an_operator_that_waits_for_the_api_server_can_be_stopped(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.trouble(404, times=10_000, resource=kinds.KARS_SANDBOXES)
    async with cluster.open() as kube:
        controller = Controller(kube, Settings(), Plugins.load(), instance="test")
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(controller.run)
                await trio.sleep(5)
                controller.stop()


async def test_a_sandbox_that_cannot_be_brought_up_to_date_is_not_ready(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.condition("Ready")[0] == "True"
        # As a webhook that is gone makes the API server answer, for as long as it is gone.
        cluster.trouble(500, times=10_000, verb="apply", resource=kinds.NETWORK_POLICIES)
        cluster.put(server_manifest(url="http://tools.mcp.svc:9000/mcp"))
        await trio.sleep(120)
        assert bench.condition("Ready") == ("False", "NotApplied")
        cluster.calm()
        await trio.sleep(120)
        assert bench.condition("Ready")[0] == "True"


async def test_a_pod_is_not_put_outside_of_its_bounds_by_what_somebody_adds(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        found = bench.find(kinds.DEPLOYMENTS)
        spec = found["spec"]["template"]["spec"]
        # No policy is for a pod in its node's network, and a privileged one takes the rules away.
        spec |= dict.fromkeys(("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"), True)
        spec["containers"][0]["securityContext"]["privileged"] = True
        cluster.put(found)
        await bench.settle()
        spec = bench.find(kinds.DEPLOYMENTS)["spec"]["template"]["spec"]
        assert not any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC"))
        assert not spec.get("shareProcessNamespace")
        assert not spec["containers"][0]["securityContext"].get("privileged")


@pytest.mark.parametrize("kind", [kinds.NETWORK_POLICIES, kinds.PODS])
async def test_what_cannot_be_seen_any_more_is_not_said_to_be_tight(
    autojump_clock: MockClock, kind: Any
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.condition("EgressTight") == ("True", "NothingBeyond")
        for verb in ("list", "watch"):
            cluster.trouble(403, times=10_000, verb=verb, resource=kind)
        cluster.drop_watches()
        await trio.sleep(120)
        assert bench.condition("EgressTight")[0] == "True"  # a moment's trouble
        await trio.sleep(1500)
        assert bench.condition("EgressTight") == ("Unknown", "NotSeen")
        cluster.calm()
        await trio.sleep(120)
        assert bench.condition("EgressTight") == ("True", "NothingBeyond")
