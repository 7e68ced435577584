"""Helm at work: progress, what pods said, and interrupts."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from helm_kit import FakeHelm, revision

from kars_router.kube import Kube
from kars_router.kube.resources import DEPLOYMENTS, Resource
from kars_router.testing.kube import FakeCluster
from kars_router.upgrade.changes import Reference
from kars_router.upgrade.chart import Chart
from kars_router.upgrade.helm import Cluster, find
from kars_router.upgrade.plan import Plan
from kars_router.upgrade.release import Release, Revision
from kars_router.upgrade.rollout import Rollout, Workload
from kars_router.upgrade.running import Outcome, Upgrade, run, upgrade

APP = Reference("Deployment", "app", "default", "apps")
TEMPLATE: dict[str, Any] = {"metadata": {"labels": {"app": "app"}}, "spec": {"containers": []}}


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster()


@pytest.fixture
async def kube(cluster: FakeCluster) -> AsyncIterator[Kube]:
    async with cluster.open() as kube:
        yield kube


@pytest.fixture
def fake(tmp_path: Path) -> FakeHelm:
    directory = tmp_path / "bin"
    directory.mkdir()
    found = FakeHelm(directory)
    found.say("history it", [revision(1)])
    found.say("get metadata it", {"applyMethod": "ssa"})
    return found


def release() -> Release:
    last = Revision(number=1, status="deployed", chart="kars-operator", version="0.1.0")
    return Release(name="it", namespace="there", last=last, current=last)


# --- roll-outs ------------------------------------------------------------------------------------


def deploy(cluster: FakeCluster, *, ready: int, template: Any = TEMPLATE, **status: Any) -> str:
    """A deployment with its newest and an older replica set; its uid."""
    made = cluster.put(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {
                "name": "app",
                "namespace": "default",
                "annotations": {"deployment.kubernetes.io/revision": "2"},
            },
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "app"}},
                "template": template,
            },
            "status": {
                "observedGeneration": 99,
                "updatedReplicas": 2,
                "availableReplicas": ready,
                **status,
            },
        }
    )
    uid: str = made["metadata"]["uid"]
    for number in "12":
        cluster.put(
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "metadata": {
                    "name": f"app-{number}",
                    "namespace": "default",
                    "labels": {"app": "app", "pod-template-hash": number},
                    "annotations": {"deployment.kubernetes.io/revision": number},
                    "ownerReferences": [
                        {"apiVersion": "apps/v1", "kind": "Deployment", "name": "app", "uid": uid}
                    ],
                },
                "spec": {},
            }
        )
    return uid


def pod(cluster: FakeCluster, name: str, number: str, *, ready: bool) -> None:
    state: dict[str, Any] = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    cluster.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name,
                "namespace": "default",
                "labels": {"app": "app", "pod-template-hash": number},
            },
            "status": {
                "conditions": [{"type": "Ready", "status": str(ready)}],
                "containerStatuses": [{"name": "main", "state": state}],
            },
        }
    )


def watch(kube: Kube, template: Any = TEMPLATE) -> tuple[Rollout, list[str]]:
    said: list[str] = []
    return Rollout(kube, [Workload(DEPLOYMENTS, APP, template)], said.append), said


async def test_progress_is_told_when_there_is_some(cluster: FakeCluster, kube: Kube) -> None:
    rollout, said = watch(kube)
    await rollout.look()  # it is not there yet
    deploy(cluster, ready=0)
    await rollout.look()
    await rollout.look()
    deploy(cluster, ready=2)
    await rollout.look()
    assert said == [
        "Deployment default/app: 0 of 2 pods are new and ready",
        "Deployment default/app: 2 of 2 pods are new and ready",
    ]


async def test_pods_are_remembered_when_they_are_gone(cluster: FakeCluster, kube: Kube) -> None:
    rollout, said = watch(kube)
    deploy(cluster, ready=1)
    pod(cluster, "old", "1", ready=False)
    pod(cluster, "bad", "2", ready=False)
    pod(cluster, "mended", "2", ready=False)
    await rollout.look()
    assert {each.where.name for each in rollout.troubles} == {"bad", "mended"}
    pod(cluster, "mended", "2", ready=True)
    await rollout.look()
    # Helm rolls back, and nothing of that is looked at any more.
    other = {**TEMPLATE, "spec": {"containers": [{"name": "other"}]}}
    deploy(cluster, ready=2, template=other)
    await rollout.look()
    (trouble,) = rollout.troubles
    assert (str(trouble.where), trouble.reason) == (
        "Pod default/bad",
        "container main: ImagePullBackOff: no such image",
    )
    assert len(said) == 1


async def test_a_workload_without_pods(cluster: FakeCluster, kube: Kube) -> None:
    rollout, _ = watch(kube, None)
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "Quota",
        "message": "none left",
    }
    deploy(cluster, ready=0, conditions=[failure])
    await rollout.look()
    (trouble,) = rollout.troubles
    assert (trouble.where, trouble.reason) == (APP, "Quota: none left")


async def test_a_workload_whose_pods_cannot_be_found(cluster: FakeCluster, kube: Kube) -> None:
    kind = Resource("apps", "v1", "statefulsets", "StatefulSet")
    cluster.served.add(kind)
    rollout = Rollout(kube, [Workload(kind, Reference("StatefulSet", "app", "default"))], print)
    await rollout.look()
    assert rollout.troubles == ()


async def test_a_server_that_is_away_for_a_while(
    cluster: FakeCluster, kube: Kube, autojump_clock: trio.testing.MockClock
) -> None:
    rollout, said = watch(kube)
    deploy(cluster, ready=2)
    cluster.stop()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rollout.run)
        await trio.sleep(10)
        assert said == []
        cluster.start()
        await trio.sleep(10)
        assert len(said) == 1
        nursery.cancel_scope.cancel()


# --- Helm -----------------------------------------------------------------------------------------


async def outcome(fake: FakeHelm, kube: Kube, tell: Any = print) -> Outcome:
    helm = find(Cluster(namespace="there"), fake.environment({}))
    rollout = Rollout(kube, (), print)
    return await run(helm, ["upgrade", "it"], release(), rollout=rollout, tell=tell)


def test_the_command() -> None:
    plan = Plan(release=release(), chart=Chart(path="/a b", name="x", version="0.2.0"))
    assert Upgrade(plan, ("--set", "a=b"), "5m").words() == (
        *("upgrade", "it", "/a b", "--set", "a=b", "--server-side=true"),
        *("--rollback-on-failure", "--wait=watcher", "--timeout", "5m", "--hide-notes"),
    )
    forced = Plan(release=release(), chart=plan.chart, force=True)
    assert "--force-conflicts" in Upgrade(forced, (), "5m").words()


def misled(*, good: int | None = 1) -> Upgrade:
    """An upgrade of a release on which Helm would go back to what was never deployed."""
    last = Revision(number=3, status="failed", chart="kars-operator", version="0.1.0")
    found = Release(name="it", namespace="there", last=last, current=last, good=good, returns=2)
    chart = Chart(path="/chart", name="kars-operator", version="0.2.0")
    return Upgrade(Plan(release=found, chart=chart, force=True), (), "5m")


async def take(fake: FakeHelm, kube: Kube, how: Upgrade) -> Outcome:
    helm = find(Cluster(namespace="there"), fake.environment({}))
    return await upgrade(helm, how, rollout=Rollout(kube, (), print), tell=print)


async def test_the_way_back_is_ours_where_helm_would_lose_it(fake: FakeHelm, kube: Kube) -> None:
    assert "--rollback-on-failure" not in misled().words()
    fake.say("upgrade it", err="Error: no", code=1)
    fake.say("rollback it")
    fake.say("history it", [revision(3, "failed"), revision(5)])
    found = await take(fake, kube, misled())
    assert (found.succeeded, found.said) == (False, "no")
    assert found.release is not None
    (back,) = (each for each in fake.asked() if each.startswith("rollback"))
    assert back == (
        "rollback it 1 --server-side=true --force-conflicts --wait=watcher --timeout 5m"
        " --namespace there"
    )
    fake.say("rollback it", err="Error: neither", code=1)
    found = await take(fake, kube, misled())
    assert (found.succeeded, found.said) == (False, "no; on the way back: neither")


async def test_no_way_back_where_nothing_has_begun(fake: FakeHelm, kube: Kube) -> None:
    fake.say("upgrade it")
    assert (await take(fake, kube, misled())).succeeded
    fake.say("upgrade it", err="Error: no", code=1)
    fake.say("history it", [revision(1), revision(3, "failed")])
    assert not (await take(fake, kube, misled())).succeeded
    fake.say("history it", [revision(4, "failed")])
    assert not (await take(fake, kube, misled(good=None))).succeeded
    assert not any(each.startswith("rollback") for each in fake.asked())


async def test_a_run_that_succeeds(fake: FakeHelm, kube: Kube) -> None:
    fake.say("upgrade it", "a lot of text", err="a warning\n")
    found = await outcome(fake, kube)
    assert (found.succeeded, found.interrupted, found.troubles) == (True, False, ())
    assert found.release is not None
    assert fake.asked()[0] == "upgrade it --namespace there"


async def test_a_run_that_fails(fake: FakeHelm, kube: Kube) -> None:
    fake.say("upgrade it", err=f"{'x' * 300_000}\nError: UPGRADE FAILED: no\n", code=1)
    found = await outcome(fake, kube)
    assert (found.succeeded, found.said) == (False, "UPGRADE FAILED: no")


async def test_a_state_that_is_not_known_afterwards(fake: FakeHelm, kube: Kube) -> None:
    fake.say("upgrade it", err="Error: no", code=1)
    fake.say("history it", err="Error: unreachable", code=1)
    assert (await outcome(fake, kube)).release is None


def at_work(fake: FakeHelm, trap: str) -> None:
    """Has Helm work until it is told to end."""
    fake.environment({})
    program = fake.directory / "helm"
    text = program.read_text(encoding="utf-8")
    script = f"trap '{trap}' TERM; : > {fake.directory}/begun; while :; do sleep 0.05; done"
    marker = 'case "$* " in'
    text = text.replace(marker, f'case "$* " in\n"upgrade it "*) {script};;', 1)
    program.write_text(text, encoding="utf-8")


async def interrupt(fake: FakeHelm) -> None:
    with trio.fail_after(30):
        while not await trio.Path(fake.directory / "begun").exists():  # noqa: ASYNC110
            await trio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


async def test_an_interrupt_is_passed_on(fake: FakeHelm, kube: Kube) -> None:
    helm = find(Cluster(namespace="there"), fake.environment({}))
    at_work(fake, 'echo "Error: taken back" >&2; exit 1')
    said: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt, fake)
        rollout = Rollout(kube, (), print)
        found = await run(helm, ["upgrade", "it"], release(), rollout=rollout, tell=said.append)
    assert (found.succeeded, found.interrupted, found.said) == (False, True, "taken back")
    assert said == ["interrupted: Helm takes back what it has done; once more ends it at once"]


async def test_a_second_interrupt_ends_it(fake: FakeHelm, kube: Kube) -> None:
    helm = find(Cluster(namespace="there"), fake.environment({}))
    at_work(fake, ":")
    rollout = Rollout(kube, (), print)

    def once_more(_: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt, fake)
        found = await run(helm, ["upgrade", "it"], release(), rollout=rollout, tell=once_more)
    assert (found.succeeded, found.interrupted, found.said) == (False, True, "it said nothing")


async def test_whoever_is_cancelled_leaves_nothing_behind(fake: FakeHelm, kube: Kube) -> None:
    helm = find(Cluster(namespace="there"), fake.environment({}))
    at_work(fake, f": > {fake.directory}/told; exit 1")
    rollout = Rollout(kube, (), print)
    with trio.move_on_after(30) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                lambda: run(helm, ["upgrade", "it"], release(), rollout=rollout, tell=print)
            )
            while not await trio.Path(fake.directory / "begun").exists():  # noqa: ASYNC110
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert not scope.cancelled_caught
    assert (fake.directory / "told").exists()
