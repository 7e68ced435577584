"""What becomes of objects: fields, images, pods that restart; and why pods are not ready."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from kars_router.upgrade.changes import Image, change_of, pods_of, reference_of
from kars_router.upgrade.pods import is_ready, reasons, trouble
from kars_router.upgrade.rollout import progress


def workload(kind: str = "Deployment", **spec: Any) -> dict[str, Any]:
    containers = [{"name": "main", "image": "a:1", "env": [{"name": "A", "value": "1"}]}]
    pods = {"spec": {"containers": containers, "initContainers": [{"name": "first", "image": "f"}]}}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": "app", "namespace": "there", "resourceVersion": "1"},
        "spec": {"replicas": 3, "template": pods, **spec},
    }


def change(live: dict[str, Any] | None, result: dict[str, Any], **more: Any) -> Any:
    return change_of(reference_of(result), live, result, **more)


def test_an_object_that_stays() -> None:
    live = workload()
    result = deepcopy(live)
    result["metadata"] |= {"resourceVersion": "2", "generation": 7, "managedFields": []}
    found = change(live, result)
    assert (found.action, found.fields, found.pods) == ("none", (), 0)
    assert str(found.reference) == "Deployment there/app"


def test_an_object_that_is_new() -> None:
    found = change(None, workload())
    assert (found.action, found.pods) == ("create", 0)
    assert found.images == (
        Image(container="first", before="", after="f"),
        Image(container="main", before="", after="a:1"),
    )


def test_fields_that_change() -> None:
    live = workload()
    result = deepcopy(live)
    result["metadata"]["labels"] = {"a": "b"}
    result["spec"]["replicas"] = 4
    found = change(live, result)
    assert (found.fields, found.pods) == ((".metadata.labels", ".spec.replicas"), 0)


def test_pods_that_restart() -> None:
    live = workload()
    result = deepcopy(live)
    container = result["spec"]["template"]["spec"]["containers"][0]
    container["image"] = "a:2"
    container["env"] = [{"name": "A", "value": "2"}, {"name": "B"}]
    found = change(live, result)
    above = '.spec.template.spec.containers[name="main"]'
    assert found.fields == (
        f"{above}.image",
        f'{above}.env[name="A"].value',
        f'{above}.env[name="B"]',
    )
    assert (found.pods, found.images) == (3, (Image(container="main", before="a:1", after="a:2"),))


def test_pods_that_restart_although_nothing_shows_it() -> None:
    live = workload()
    found = change(live, deepcopy(live), replaces=True)
    assert (found.action, found.pods) == ("change", 3)


def test_lists_without_names_are_one_value() -> None:
    live = {"kind": "Role", "metadata": {"name": "a"}, "rules": [{"verbs": ["get"]}], "x": [1]}
    result = deepcopy(live) | {"rules": [{"verbs": ["list"]}], "x": [1, 2]}
    assert change(live, result).fields == (".rules", ".x")
    assert change(live, deepcopy(live)).fields == ()


@pytest.mark.parametrize(
    ("kind", "spec", "status", "pods"),
    [
        ("Deployment", {}, {}, 3),
        ("StatefulSet", {}, {}, 3),
        ("StatefulSet", {"updateStrategy": {"type": "OnDelete"}}, {}, 0),
        ("DaemonSet", {}, {"desiredNumberScheduled": 5}, 5),
        ("DaemonSet", {}, {}, 0),
        ("Job", {}, {}, 0),
    ],
)
def test_how_many_pods_a_workload_has(
    kind: str, spec: dict[str, Any], status: dict[str, Any], pods: int
) -> None:
    assert pods_of({**workload(kind, **spec), "status": status}) == pods


def test_which_object_a_manifest_is_about() -> None:
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}
    assert str(reference_of(manifest, namespaced=False, namespace="there")) == "Node a"
    assert str(reference_of(manifest, namespace="there")) == "Node there/a"


# --- pods -----------------------------------------------------------------------------------------


def pod(*containers: dict[str, Any], conditions: Any = (), **status: Any) -> dict[str, Any]:
    listed = [{"name": "main", "ready": False, **each} for each in containers]
    return {"status": {"containerStatuses": listed, "conditions": list(conditions), **status}}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"state": {"waiting": {"reason": reason, "message": message}}}


def ended(code: int, reason: str = "Error", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "reason": reason, "message": message}}


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available:\n3 Insufficient cpu.",
}


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (pod(conditions=[{"type": "Ready", "status": "True"}]), ()),
        (pod(phase="Succeeded"), ()),
        (pod(), ()),
        ({}, ()),
        (pod(waiting("ContainerCreating")), ()),
        (
            pod(waiting("ImagePullBackOff", "Back-off\npulling")),
            ("container main: ImagePullBackOff: Back-off pulling",),
        ),
        (
            pod(
                {**waiting("CrashLoopBackOff", "back-off"), "lastState": ended(2, "Error", "no x")}
            ),
            ("container main: CrashLoopBackOff: back-off (it ended with 2, Error: no x)",),
        ),
        (
            pod({"state": ended(137, "OOMKilled")}),
            ("container main: it ended with 137, OOMKilled",),
        ),
        (pod({"state": ended(0)}), ()),
        (
            pod({"state": {"running": {}}}),
            ("container main: it runs, but its readiness probe fails",),
        ),
        (
            pod(conditions=[UNSCHEDULABLE]),
            ("Unschedulable: 0/3 nodes are available: 3 Insufficient cpu.",),
        ),
        (pod(phase="Failed", reason="Evicted", message="low"), ("Evicted: low",)),
        (pod(phase="Failed"), ("it has failed",)),
        (
            pod(
                {"state": {"running": {}}}, initContainerStatuses=[{"name": "i", "state": ended(1)}]
            ),
            ("container i: it ended with 1, Error",),
        ),
    ],
)
def test_why_a_pod_is_not_ready(found: dict[str, Any], said: tuple[str, ...]) -> None:
    assert reasons(found) == said
    if said:
        assert not is_ready(found)


def test_why_there_are_no_pods() -> None:
    failure = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": "no",
    }
    assert trouble({"status": {"conditions": [failure]}}) == "FailedCreate: no"
    assert trouble({"status": {"conditions": [{**failure, "status": "False"}]}}) == ""
    assert trouble({}) == ""


@pytest.mark.parametrize(
    ("kind", "status", "ready"),
    [
        ("Deployment", {}, "0 of 3"),
        (
            "Deployment",
            {"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 3},
            "2 of 3",
        ),
        (
            "Deployment",
            {"observedGeneration": 1, "updatedReplicas": 3, "availableReplicas": 3},
            "0 of 3",
        ),
        (
            "DaemonSet",
            {
                "observedGeneration": 2,
                "desiredNumberScheduled": 5,
                "updatedNumberScheduled": 5,
                "numberAvailable": 4,
            },
            "4 of 5",
        ),
    ],
)
def test_how_far_a_workload_is(kind: str, status: dict[str, Any], ready: str) -> None:
    found = {**workload(kind), "status": status}
    found["metadata"]["generation"] = 2
    assert progress(found) == f"{ready} pods are new and ready"
