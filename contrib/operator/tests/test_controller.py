"""The operator in a cluster in memory: what it does when something changes, and when nothing works.

What a real API server makes of all this is tests/cluster's.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from kars_operator import names
from kars_operator.controller import Controller
from kars_operator.enforcement import Heard
from kars_operator.settings import Placement, Settings
from kars_operator.store import Key
from operator_kit import (
    TEAM,
    FakeRouters,
    condition,
    manifest,
    new_cluster,
    operator,
    policy_manifest,
    sandbox_manifest,
    server_manifest,
)
from trio.testing import MockClock

from kars_router.kube import resources as kinds
from kars_router.testing.kube import FakeCluster

MADE = (
    (kinds.SERVICE_ACCOUNTS, "box"),
    (kinds.CONFIG_MAPS, "box-router"),
    (kinds.NETWORK_POLICIES, "box"),
    (kinds.DEPLOYMENTS, "box"),
)
SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "tools", "namespace": "mcp"},
    "spec": {"selector": {"app": "t"}, "ports": [{"port": 8931, "targetPort": 9000}]},
}


def ports(cluster: FakeCluster, name: str = "box") -> list[int]:
    """What the policy of a sandbox opens beside DNS."""
    policy = cluster.find(kinds.NETWORK_POLICIES, name, "team")
    assert policy is not None
    found = [each["ports"][0]["port"] for each in policy["spec"]["egress"]]
    return [each for each in found if each != 53]


def writes(cluster: FakeCluster) -> int:
    return sum(each.verb not in {"get", "list", "watch"} for each in cluster.seen)


async def test_what_is_declared_is_made_and_ready_once_the_router_says_so(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert all(bench.find(*each) for each in MADE)
        assert bench.condition("Ready") == ("False", "AwaitingRouter")
        assert condition(bench.find(kinds.MCP_SERVERS, "tools"))[1] == "AwaitingRouterEnforcement"
        routers.start()
        await bench.settle()
        assert bench.condition("Ready") == ("True", "RouterEnforcing")
        assert condition(bench.find(kinds.MCP_SERVERS, "tools")) == ("True", "RouterEnforcing")
        status = bench.find(kinds.KARS_SANDBOXES)["status"]
        assert status["phase"] == "Ready"
        assert (
            status["observedGeneration"]
            == bench.find(kinds.KARS_SANDBOXES)["metadata"]["generation"]
        )
        assert [each["egress"] for each in status["servers"]] == ["Namespace"]
        assert status["serversResolved"] == "1/1"


async def test_nothing_is_written_when_nothing_changes(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.condition("Ready")[0] == "True"
        await trio.sleep(30)  # a run of reports that says it is one, too
        before = writes(cluster)
        await trio.sleep(3600)
        assert writes(cluster) == before
        assert routers.asked > 50


async def test_a_changed_url_changes_policy_and_configuration(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert ports(cluster) == [8931]
        cluster.put(server_manifest(url="http://tools.mcp.svc:7000/mcp"))
        await bench.settle()
        assert ports(cluster) == [7000]
        assert ":7000/" in bench.find(kinds.CONFIG_MAPS, "box-router")["data"]["kars.yaml"]
        assert bench.condition("Ready")[0] == "True"
        cluster.remove(kinds.MCP_SERVERS, "tools", "team")
        await bench.settle()
        assert ports(cluster) == []
        assert bench.condition("RefsResolved") == ("False", "ServerMissing")


async def test_a_service_that_comes_or_changes_narrows_the_policy(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.condition("EgressDerived") == ("True", "NamespaceWide")
        cluster.put(SERVICE)
        await bench.settle()
        assert ports(cluster) == [9000]
        assert bench.condition("EgressDerived") == ("True", "Derived")
        moved = {**SERVICE, "spec": {**SERVICE["spec"], "ports": [{"port": 8931}]}}
        cluster.put(moved)
        await bench.settle()
        assert ports(cluster) == [8931]


async def test_a_policy_of_others_that_opens_more_is_named(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    wide = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "allow-all", "namespace": "team"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
    }
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.condition("EgressTight") == ("True", "NothingBeyond")
        cluster.put(wide)
        await bench.settle()
        assert bench.condition("EgressTight") == ("False", "OpenedByOthers")
        found = bench.find(kinds.KARS_SANDBOXES)["status"]["conditions"]
        assert any("allow-all" in each["message"] for each in found)
        cluster.remove(kinds.NETWORK_POLICIES, "allow-all", "team")
        await bench.settle()
        assert bench.condition("EgressTight") == ("True", "NothingBeyond")


async def test_a_policy_that_selects_by_a_label_that_somebody_gave_the_pod_counts(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    routers = FakeRouters(cluster)
    routers.start()
    wide = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "debug", "namespace": "team"},
        "spec": {
            "podSelector": {"matchLabels": {"debug": "on"}},
            "policyTypes": ["Egress"],
            "egress": [{}],
        },
    }
    cluster.put(wide)
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.condition("EgressTight") == ("True", "NothingBeyond")
        pod = bench.find(kinds.PODS, "box-pod")
        pod["metadata"]["labels"]["debug"] = "on"
        cluster.put(pod)
        await bench.settle()
        assert bench.condition("EgressTight") == ("False", "OpenedByOthers")


async def test_what_somebody_took_away_or_changed_comes_back(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    async with operator(cluster) as bench:
        await bench.settle()
        for kind, name in MADE:
            cluster.remove(kind, name, "team")
        await bench.settle()
        assert all(bench.find(*each) for each in MADE)
        policy = bench.find(kinds.NETWORK_POLICIES)
        policy["spec"]["egress"] = [{}]
        cluster.put(policy)
        await bench.settle()
        assert ports(cluster) == [8931]


async def test_what_is_no_longer_wanted_goes(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    stale = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "box-of-an-older-release",
            "namespace": "team",
            "labels": names.labels_of("box", "team"),
        },
    }
    other = {**stale, "metadata": {"name": "not-ours", "namespace": "team"}}
    cluster.put(stale)
    cluster.put(other)
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.find(kinds.CONFIG_MAPS, "box-of-an-older-release") is None
        assert bench.find(kinds.CONFIG_MAPS, "not-ours") is not None
        # A pod without an image cannot be.
        cluster.put(sandbox_manifest(agent={}))
        await bench.settle()
        assert bench.find(kinds.DEPLOYMENTS) is None
        assert bench.find(kinds.NETWORK_POLICIES) is not None
        assert bench.condition("RouterEnforcing") == ("False", "NoAgentImage")


async def test_another_ones_object_is_not_taken_over(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    theirs = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "box-router", "namespace": "team"},
        "data": {"a": "b"},
    }
    cluster.put(theirs)
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.condition("Ready") == ("False", "NameTaken")
        assert bench.find(kinds.CONFIG_MAPS, "box-router")["data"] == {"a": "b"}
        assert bench.find(kinds.DEPLOYMENTS) is None


async def test_one_broken_sandbox_stops_no_other(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(manifest("KarsSandbox", "broken", {"agent": {"image": 5}}))
    cluster.put(sandbox_manifest())
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.condition("Ready", "broken") == ("False", "SpecInvalid")
        assert bench.find(kinds.DEPLOYMENTS) is not None
        # What ran before the mistake goes on.
        cluster.put({**sandbox_manifest(), "spec": {"agent": {"image": 5}}})
        await bench.settle()
        assert bench.condition("Ready") == ("False", "SpecInvalid")
        assert bench.find(kinds.DEPLOYMENTS) is not None


async def test_a_policy_that_changes_reaches_those_that_it_picks(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(sandbox_manifest(metadata={"labels": {"team": "a"}}))
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        picks: dict[str, Any] = {"appliesTo": {"sandboxMatchLabels": {"team": "a"}}}
        cluster.put(policy_manifest(default="allow", **picks))
        await bench.settle()
        text = bench.find(kinds.CONFIG_MAPS, "box-router")["data"]["kars.yaml"]
        assert '"default": "allow"' in text
        assert condition(bench.find(kinds.TOOL_POLICIES, "rules")) == ("True", "RouterEnforcing")
        cluster.put(policy_manifest(default="allow"))
        await bench.settle()
        text = bench.find(kinds.CONFIG_MAPS, "box-router")["data"]["kars.yaml"]
        assert "policies" not in text
        found = condition(bench.find(kinds.TOOL_POLICIES, "rules"))
        assert found == ("False", "NoSandboxesReferencing")


async def test_a_router_that_refuses_says_why(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(sandbox_manifest())
    routers.refused["box"] = ["policies[0]: nobody enforces it"]
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.condition("RouterEnforcing") == ("False", "ConfigRefused")
        found = bench.find(kinds.KARS_SANDBOXES)["status"]["conditions"]
        assert any("nobody enforces it" in each["message"] for each in found)
        routers.refused.clear()
        await trio.sleep(20)
        await bench.settle()
        assert bench.condition("Ready")[0] == "True"


async def test_a_router_that_cannot_be_reached_enforces_nothing(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    routers = FakeRouters(cluster)
    routers.start()

    async def hang(url: str) -> bytes:
        await trio.sleep(3600)
        return url.encode()

    def change(controller: Controller) -> None:
        controller.routers.get = hang

    async with operator(cluster, change=change) as bench:
        await trio.sleep(10)
        await bench.settle()
        assert bench.condition("RouterEnforcing") == ("False", "RouterUnreachable")
        (heard,) = bench.controller.routers.heard(TEAM)
        assert heard == Heard(pod="box-pod", problem="no answer within 5 s")


async def test_a_namespace_of_its_own_comes_and_goes_with_the_sandbox(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    async with operator(cluster, settings=Settings(placement=Placement.OWN)) as bench:
        await bench.settle()
        assert bench.find(kinds.NAMESPACES, "kars-box", "") is not None
        assert bench.find(kinds.DEPLOYMENTS, "box", "kars-box") is not None
        assert bench.find(kinds.KARS_SANDBOXES)["metadata"]["finalizers"] == [names.FINALIZER]
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        assert bench.find(kinds.NAMESPACES, "kars-box", "") is None
        assert bench.find(kinds.KARS_SANDBOXES) is None


async def test_somebody_elses_namespace_is_left_alone(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kars-box"}})
    cluster.put(sandbox_manifest())
    async with operator(cluster, settings=Settings(placement=Placement.OWN)) as bench:
        await bench.settle()
        assert bench.condition("Ready") == ("False", "NameTaken")
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        assert bench.find(kinds.NAMESPACES, "kars-box", "") is not None
        assert bench.find(kinds.KARS_SANDBOXES) is None


async def test_another_placement_leaves_nothing_behind(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    async with operator(cluster, settings=Settings(placement=Placement.OWN)) as bench:
        await bench.settle()
        assert bench.find(kinds.DEPLOYMENTS, "box", "kars-box") is not None
    async with operator(cluster) as bench:
        await bench.settle()
        assert bench.find(kinds.DEPLOYMENTS) is not None
        assert bench.find(kinds.NAMESPACES, "kars-box", "") is None
        assert not bench.find(kinds.KARS_SANDBOXES)["metadata"].get("finalizers")
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        assert bench.find(kinds.KARS_SANDBOXES) is None


async def test_a_sandbox_is_let_go_where_namespaces_are_out_of_reach(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest(metadata={"finalizers": [names.FINALIZER]}))
    cluster.trouble(403, times=99, resource=kinds.NAMESPACES)
    async with operator(cluster) as bench:
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        assert bench.find(kinds.KARS_SANDBOXES) is None


@pytest.mark.parametrize("status", [400, 403, 422])
async def test_what_the_api_server_refuses_is_said(autojump_clock: MockClock, status: int) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    cluster.trouble(status, times=5, verb="apply", resource=kinds.DEPLOYMENTS)
    async with operator(cluster) as bench:
        await trio.sleep(0.05)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.condition("Ready") == ("False", "Refused")
        assert bench.find(kinds.NETWORK_POLICIES) is not None
        await trio.sleep(120)
        await bench.settle()
        assert bench.find(kinds.DEPLOYMENTS) is not None
        assert bench.condition("Ready")[1] == "AwaitingRouter"


async def test_nothing_is_remembered_of_what_is_gone(autojump_clock: MockClock) -> None:
    cluster = new_cluster()
    cluster.put(sandbox_manifest())
    cluster.put(sandbox_manifest("other"))
    async with operator(cluster) as bench:
        await bench.settle()
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        applier = bench.controller._applier
        assert {name for _, _, name in applier._done} == {"other", "other-router"}


def end_state(cluster: FakeCluster) -> dict[str, Any]:
    """All that the operator has made, without what differs from run to run."""
    found: dict[str, Any] = {}
    for kind in (*(kind for kind, _ in MADE), kinds.KARS_SANDBOXES, kinds.MCP_SERVERS):
        for each in cluster.all(kind):
            status = each.get("status") or {}
            for one in status.get("conditions") or ():
                one.pop("lastTransitionTime")
            what = {key: each.get(key) for key in ("spec", "data")}
            found[f"{kind.kind} {each['metadata']['name']}"] = what, status
    return found


def collect_garbage(cluster: FakeCluster) -> None:
    """What a cluster does with objects whose owner is gone: one may be made a moment too late."""
    living = {each["metadata"]["uid"] for each in cluster.all(kinds.KARS_SANDBOXES)}
    for kind, _ in MADE:
        for each in cluster.all(kind):
            (owner,) = each["metadata"]["ownerReferences"]
            if owner["uid"] not in living:
                cluster.remove(kind, each["metadata"]["name"], each["metadata"]["namespace"])


async def play(cluster: FakeCluster, routers: FakeRouters, chaos: random.Random | None) -> None:
    """A day in the life of a cluster."""
    if chaos is not None:
        cluster.chaos(chaos, 0.3)
    async with operator(cluster, routers=routers) as bench:
        for name in ("a", "b", "c"):
            cluster.put(server_manifest(name, f"http://{name}.mcp.svc:8000/mcp"))
        for number in range(6):
            name = f"box{number}"
            cluster.put(sandbox_manifest(name, "a", "b", "c" if number % 2 else "missing"))
            routers.start(name)
        await trio.sleep(60)
        cluster.put(server_manifest("a", "http://a.mcp.svc:9000/mcp"))
        cluster.remove(kinds.MCP_SERVERS, "b", "team")
        cluster.remove(kinds.KARS_SANDBOXES, "box5", "team")
        if chaos is not None:
            cluster.stop()
            await trio.sleep(20)
            cluster.start()
            cluster.forget()
        await trio.sleep(60)
        collect_garbage(cluster)
        cluster.put(server_manifest("b", "http://b.mcp.svc:9000/mcp"))
        await trio.sleep(600)
        await bench.settle()


@pytest.mark.parametrize("seed", range(5))
async def test_a_third_of_all_requests_may_fail_and_the_end_is_the_same(
    autojump_clock: MockClock, seed: int
) -> None:
    calm, rough = new_cluster(), new_cluster()
    await play(calm, FakeRouters(calm), None)
    await play(rough, FakeRouters(rough), random.Random(seed))
    expected = end_state(calm)
    assert len(expected) == 5 * 5 + 3
    found = end_state(rough)
    assert found.keys() == expected.keys()
    for name, what in expected.items():
        assert found[name] == what


@pytest.mark.parametrize("status", [409, 429, 500, 503])
@pytest.mark.parametrize("verb", ["list", "watch", "apply", "get"])
async def test_each_refusal_is_tried_again(
    autojump_clock: MockClock, status: int, verb: str
) -> None:
    cluster = new_cluster()
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    cluster.trouble(status, times=3, verb=verb, retry_after=2 if status == 429 else None)
    async with operator(cluster) as bench:
        await trio.sleep(60)
        await bench.settle()
        assert all(bench.find(*each) for each in MADE)
        assert bench.condition("EgressDerived")[0] == "True"


async def test_a_watch_that_drops_and_a_version_that_is_gone_lose_nothing(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put(server_manifest())
    cluster.put(sandbox_manifest("box", "tools"))
    async with operator(cluster) as bench:
        await bench.settle()
        cluster.stop()
        cluster.put(server_manifest(url="http://tools.mcp.svc:7000/mcp"))
        cluster.forget()
        cluster.start()
        await trio.sleep(120)
        await bench.settle()
        assert ports(cluster) == [7000]


async def test_what_belonged_to_a_sandbox_that_is_gone_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    routers = FakeRouters(cluster)
    cluster.put(sandbox_manifest())
    routers.start()
    async with operator(cluster, routers=routers) as bench:
        await bench.settle()
        assert bench.controller.routers.heard(TEAM)
        cluster.remove(kinds.KARS_SANDBOXES, "box", "team")
        await bench.settle()
        assert bench.controller.routers.heard(TEAM) == ()
        assert bench.find(kinds.DEPLOYMENTS) is None
        asked = routers.asked
        await trio.sleep(600)
        assert routers.asked <= asked + 1
        assert bench.controller.routers.heard(Key("team", "box")) == ()


async def test_a_namespace_of_its_own_is_not_taken_by_a_sandbox_of_the_same_name(
    autojump_clock: MockClock,
) -> None:
    cluster = new_cluster()
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rival"}})
    cluster.put(sandbox_manifest())
    async with operator(cluster, settings=Settings(placement=Placement.OWN)) as bench:
        await bench.settle()
        second = sandbox_manifest()
        cluster.put({**second, "metadata": {"name": "box", "namespace": "rival"}})
        await bench.settle()
        found = bench.find(kinds.KARS_SANDBOXES, "box", "rival")
        assert condition(found) == ("False", "NameTaken")
        labels = bench.find(kinds.NAMESPACES, "kars-box", "")["metadata"]["labels"]
        assert labels[names.SANDBOX_NAMESPACE] == "team"
        # Its end is no end of the other one.
        cluster.remove(kinds.KARS_SANDBOXES, "box", "rival")
        await bench.settle()
        assert bench.find(kinds.KARS_SANDBOXES, "box", "rival") is None
        assert bench.find(kinds.DEPLOYMENTS, "box", "kars-box") is not None
