"""`kars upgrade` as a process, with a real Helm 4 and a real API server."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from cluster.harness import Cluster
from cluster.upgrade_kit import TEMPLATES, Done, Scene, run_pods
from kars_router.kube import Kube


@pytest.fixture
def scene(cluster: Cluster, namespace: str, tmp_path: Path) -> Scene:
    found = Scene(cluster, namespace, tmp_path)
    found.environment()  # without Helm there is nothing to test
    return found


async def upgraded(scene: Scene, kube: Kube, chart: Path, *options: str) -> Done:
    """Runs `kars upgrade --yes` while somebody runs the pods."""
    async with trio.open_nursery() as nursery:
        await nursery.start(run_pods, kube, scene.namespace)
        call = partial(scene.kars, chart, "--yes", *options)
        done = await trio.to_thread.run_sync(call)
        nursery.cancel_scope.cancel()
    return done


def conflicts(plan: dict[str, Any]) -> set[tuple[str, str]]:
    return {(each["manager"], each["field"]) for each in plan["conflicts"]}


async def test_an_upgrade(scene: Scene, kube: Kube) -> None:
    first = scene.chart("0.1.0")
    scene.install(first, "--set", "level=debug")
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    done = await upgraded(scene, kube, second, "--timeout", "60s")
    assert done.code == 0, done.err
    where = f"{scene.namespace}/kars-operator"
    assert done.out.startswith(f"{where}: kars-operator 0.1.0 -> 0.2.0\n")
    assert "registry.example.com/app:1 -> registry.example.com/app:2" in done.out
    assert "1 restart" in done.out
    assert done.out.endswith(f"{where} is at 0.2.0 (revision 2)\n")
    assert done.err == ""
    assert [each[1:] for each in scene.history()] == [
        ("superseded", "kars-operator-0.1.0"),
        ("deployed", "kars-operator-0.2.0"),
    ]
    container = scene.get("deployment")["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "registry.example.com/app:2"
    # What was set stays set.
    assert container["env"][0] == {"name": "LEVEL", "value": "debug"}

    before = scene.versions()
    again = scene.kars(second, "--yes")
    assert (again.code, again.err) == (0, "")
    assert again.out == f"{where} is at 0.2.0, and there is nothing to do\n"
    assert scene.versions() == before


async def test_a_dry_run_changes_nothing(scene: Scene) -> None:
    scene.install(scene.chart("0.1.0"))
    before = scene.versions()
    plan = scene.plan(scene.chart("0.2.0", level="debug", replicas=2))
    assert not plan["blocked"]
    changed = {(each["kind"], each["action"]): each for each in plan["changes"]}
    assert changed.keys() == {("ConfigMap", "change"), ("Deployment", "change")}
    assert changed["ConfigMap", "change"]["fields"] == [".data.key"]
    deployment = changed["Deployment", "change"]
    assert sorted(deployment["fields"]) == [
        ".metadata.labels.app.kubernetes.io/version",
        ".spec.replicas",
        '.spec.template.spec.containers[name="main"].env[name="LEVEL"].value',
    ]
    assert (deployment["podsRestarted"], deployment["images"]) == (1, [])
    assert plan["installed"]["version"] == "0.1.0"
    assert plan["target"]["version"] == "0.2.0"
    assert plan["remarks"]  # no image changes
    assert scene.versions() == before


async def test_a_variable_that_kubectl_has_set(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    scene.kubectl("set", "env", "deployment/app", "LEVEL=trace", "-c", "main")
    before = scene.versions()
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    done = scene.kars(second, "--yes")
    assert done.code == 1
    assert done.err == "kars: nothing was changed: 1 field belongs to others\n"
    field = '.spec.template.spec.containers[name="main"].env[name="LEVEL"].value'
    row = re.search(rf"^Deployment {scene.namespace}/app .*$", done.out, re.MULTILINE)
    assert row is not None
    where = f"{scene.namespace}/app"
    assert row[0].split() == ["Deployment", where, field, "kubectl-set", "trace", "info"]
    assert done.commands == [f"kubectl set env deployment/app -n {scene.namespace} -c main LEVEL-"]
    assert scene.versions() == before

    scene.follow(done.commands)
    done = await upgraded(scene, kube, second)
    assert done.code == 0, done.err
    env = scene.get("deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "LEVEL", "value": "info"} in env


def apply_as(scene: Scene, manager: str, manifest: dict[str, Any]) -> None:
    metadata = {"name": "app", "namespace": scene.namespace}
    given = json.dumps({**manifest, "metadata": {**metadata, **manifest.get("metadata", {})}})
    words = ["apply", "--server-side", "--force-conflicts", "--field-manager", manager]
    scene.cluster.kubectl(*words, "--filename", "-", given=given)


def gitops(**container: Any) -> dict[str, Any]:
    """What somebody applies to the deployment."""
    spec = {"template": {"spec": {"containers": [{"name": "main", **container}]}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}


def patch(kind: str, name: str, *operations: dict[str, Any]) -> list[str]:
    return ["patch", kind, name, "--type=json", "--patch", json.dumps(operations)]


MAIN = '.spec.template.spec.containers[name="main"]'
# What somebody does, and whose field is in the way then.
OTHERS: dict[str, tuple[Any, str, str]] = {
    "a list-map key with a number": (
        patch("service", "app", {"op": "replace", "path": "/spec/ports/0/targetPort", "value": 1}),
        "kubectl-patch",
        '.spec.ports[port=80,protocol="TCP"].targetPort',
    ),
    "a subresource": (["scale", "deployment/app", "--replicas=3"], "kubectl", ".spec.replicas"),
    "a label with dots and a slash": (
        ["label", "deployment/app", "app.kubernetes.io/version=9", "--overwrite"],
        "kubectl-label",
        ".metadata.labels.app.kubernetes.io/version",
    ),
    "an annotation": (
        ["annotate", "deployment/app", "example.com/team=two", "--overwrite"],
        "kubectl-annotate",
        ".metadata.annotations.example.com/team",
    ),
    "an image": (
        ["set", "image", "deployment/app", "main=registry.example.com/mine:1"],
        "kubectl-set",
        f"{MAIN}.image",
    ),
    "data": (
        patch("configmap", "conf", {"op": "replace", "path": "/data/other.key", "value": "x"}),
        "kubectl-patch",
        ".data.other.key",
    ),
    "a list that is one value": (
        patch("role", "app", {"op": "replace", "path": "/rules/0/verbs", "value": ["list"]}),
        "kubectl-patch",
        ".rules",
    ),
    "an image that is applied": (
        gitops(image="registry.example.com/mine:1"),
        "gitops",
        f"{MAIN}.image",
    ),
    "a variable that is applied": (
        gitops(env=[{"name": "LEVEL", "value": "trace"}]),
        "gitops",
        f'{MAIN}.env[name="LEVEL"].value',
    ),
    "a variable of an init container": (
        ["set", "env", "deployment/app", "-c", "first", "SPEED=fast"],
        "kubectl-set",
        '.spec.template.spec.initContainers[name="first"].env[name="SPEED"].value',
    ),
}


@pytest.mark.parametrize("what", OTHERS)
async def test_what_hands_a_field_back(scene: Scene, what: str) -> None:
    deed, manager, field = OTHERS[what]
    first = scene.chart("0.1.0")
    scene.install(first)
    if isinstance(deed, dict):
        apply_as(scene, manager, deed)
    else:
        scene.kubectl(*deed)
    before = scene.versions()
    plan = scene.plan(first)
    assert conflicts(plan) == {(manager, field)}
    assert plan["blocked"]
    (conflict,) = plan["conflicts"]
    assert conflict["now"] != conflict["wanted"]
    assert (len(plan["commands"]), scene.versions()) == (1, before)

    specs = [scene.get(kind)["spec"] for kind in ("deployment", "service")]
    scene.follow(plan["commands"])
    if plan["commands"][0].startswith("kubectl patch"):  # no value has changed
        assert [scene.get(kind)["spec"] for kind in ("deployment", "service")] == specs
    after = scene.plan(first)
    assert (after["conflicts"], after["problems"]) == ([], [])


async def test_several_managers_of_one_object(scene: Scene, kube: Kube) -> None:
    first = scene.chart("0.1.0")
    scene.install(first)
    for deed, _, _ in (OTHERS[name] for name in ("a subresource", "an annotation", "an image")):
        scene.kubectl(*deed)
    scene.kubectl("set", "env", "deployment/app", "LEVEL=trace", "SPEED=fast")
    apply_as(scene, "gitops", gitops(env=[{"name": "LEVEL", "value": "warning"}]))
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    plan = scene.plan(second)
    assert conflicts(plan) == {
        ("gitops", f'{MAIN}.env[name="LEVEL"].value'),
        ("kubectl", ".spec.replicas"),
        ("kubectl-annotate", ".metadata.annotations.example.com/team"),
        ("kubectl-set", f"{MAIN}.image"),
        ("kubectl-set", f'{MAIN}.env[name="SPEED"].value'),
        (
            "kubectl-set",
            '.spec.template.spec.initContainers[name="first"].env[name="SPEED"].value',
        ),
    }
    assert [each.split()[1] for each in plan["commands"]] == ["patch", "set", "set", "set"]
    scene.follow(plan["commands"])
    done = await upgraded(scene, kube, second)
    assert done.code == 0, done.err


async def test_fields_are_taken_when_that_is_said(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    scene.kubectl("set", "env", "deployment/app", "LEVEL=trace", "-c", "main")
    scene.kubectl("scale", "deployment/app", "--replicas=3")
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    done = await upgraded(scene, kube, second, "--force-conflicts")
    assert done.code == 0, done.err
    assert "These fields are taken from others:" in done.out
    deployment = scene.get("deployment")
    assert deployment["spec"]["replicas"] == 1
    assert scene.plan(second)["conflicts"] == []


async def test_a_variable_with_a_value_and_a_source(scene: Scene) -> None:
    """Force would not do: nobody is taken anything from, and both together are invalid."""
    first = scene.chart("0.1.0")
    scene.install(first)
    scene.kubectl("set", "env", "deployment/app", "-c", "main", "PLACE=elsewhere")
    before = scene.versions()
    plans = [scene.plan(first), scene.plan(first, "--force-conflicts")]
    for plan in plans:
        assert conflicts(plan) == {("kubectl-set", f'{MAIN}.env[name="PLACE"].value')}
        (conflict,) = plan["conflicts"]
        assert (conflict["canBeForced"], conflict["blocks"]) == (False, True)
    assert scene.versions() == before
    scene.follow(plans[0]["commands"])
    after = scene.plan(first)
    assert (after["conflicts"], after["problems"]) == ([], [])


async def test_values_of_secrets_are_not_shown(scene: Scene) -> None:
    scene.install(scene.chart("0.1.0"))
    value = {"op": "replace", "path": "/data/key", "value": "bXlzdGVyeQ=="}
    scene.kubectl(*patch("secret", "hidden", value))
    second = scene.chart("0.2.0", secret="another")
    for options in (("--dry-run",), ("--dry-run", "-o", "json")):
        done = scene.kars(second, *options)
        assert (done.code, "(hidden)" in done.out) == (1, True)
        assert not re.search("mystery|bXlzdGVyeQ|another|YW5vdGhlcg|first", done.out)


async def test_a_release_that_was_applied_by_the_client(scene: Scene, kube: Kube) -> None:
    """As Helm 3 made them: Helm's own updates are in nobody's way, those of others are."""
    scene.install(scene.chart("0.1.0"), "--server-side=false")
    second = scene.chart("0.2.0", image="registry.example.com/app:2", level="debug")
    assert scene.plan(second)["conflicts"] == []
    scene.kubectl("set", "env", "deployment/app", "LEVEL=trace", "-c", "main")
    plan = scene.plan(second)
    assert conflicts(plan) == {("kubectl-set", f'{MAIN}.env[name="LEVEL"].value')}
    done = await upgraded(scene, kube, second, "--force-conflicts")
    assert done.code == 0, done.err
    made = json.loads(scene.helm("get", "metadata", scene.release, "--output", "json"))
    assert (made["applyMethod"], made["version"]) == ("ssa", "0.2.0")


async def test_a_variable_that_goes_with_a_release_of_the_client(scene: Scene) -> None:
    """The server's dry run does not see it go; the pods restart all the same."""
    scene.install(scene.chart("0.1.0"), "--server-side=false")
    fewer = {**TEMPLATES, "workload.yaml": re.sub(r".*LEVEL.*\n", "", TEMPLATES["workload.yaml"])}
    plan = scene.plan(scene.chart("0.2.0", templates=fewer))
    (deployment,) = (each for each in plan["changes"] if each["kind"] == "Deployment")
    assert (deployment["action"], deployment["podsRestarted"]) == ("change", 1)


async def test_objects_come_and_go(scene: Scene, kube: Kube) -> None:
    keep = "metadata: {name: kept, annotations: {helm.sh/resource-policy: keep}}"
    more = {
        "gone.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: gone}",
        "kept.yaml": f"apiVersion: v1\nkind: ConfigMap\n{keep}",
    }
    scene.install(scene.chart("0.1.0", templates={**TEMPLATES, **more}))
    hook = (
        "apiVersion: v1\nkind: ConfigMap\n"
        "metadata: {name: hook, annotations: {helm.sh/hook: pre-upgrade}}"
    )
    new = {"new.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: new}", "hook.yaml": hook}
    second = scene.chart("0.2.0", templates={**TEMPLATES, **new})
    plan = scene.plan(second)
    found = {each["name"]: each["action"] for each in plan["changes"]}
    assert found == {
        "app": "change",
        "gone": "delete",
        "kept": "keep",
        "new": "create",
        "hook": "run",
    }
    assert (await upgraded(scene, kube, second)).code == 0
    there = {
        each["metadata"]["name"]
        for each in scene.cluster.get("configmap", namespace=scene.namespace)["items"]
    }
    assert {"kept", "new"} <= there
    assert "gone" not in there


async def test_what_the_server_refuses(scene: Scene) -> None:
    scene.install(scene.chart("0.1.0"))
    scene.kubectl("create", "configmap", "foreign")
    before = scene.versions()
    other = {
        **TEMPLATES,
        "workload.yaml": TEMPLATES["workload.yaml"].replace("app: app}", "app: b}"),
    }
    done = scene.kars(scene.chart("0.2.0", templates=other), "--yes", "--force-conflicts")
    assert done.code == 1
    assert f"Deployment {scene.namespace}/app: " in done.out
    assert "field is immutable" in done.out
    assert done.err == "kars: nothing was changed: the API server refuses what the chart has\n"
    foreign = {**TEMPLATES, "f.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: foreign}"}
    done = scene.kars(scene.chart("0.2.0", templates=foreign), "--yes")
    assert (done.code, "cannot be imported into the current release" in done.err) == (1, True)
    unknown = {
        **TEMPLATES,
        "u.yaml": "apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: u}",
    }
    done = scene.kars(scene.chart("0.2.0", templates=unknown), "--yes")
    assert (done.code, "Thing" in done.err) == (1, True)
    assert scene.versions() == before


async def test_going_back_has_to_be_named(scene: Scene, kube: Kube) -> None:
    first, second = scene.chart("0.9.0"), scene.chart("0.10.0")
    scene.install(second)
    before = scene.versions()
    done = scene.kars(first, "--yes")
    assert done.code == 1
    assert done.err.endswith("to go back, name the version with --to 0.9.0\n")
    done = scene.kars(first, "--yes", "--to", "0.8.0")
    assert (done.code, "is version 0.9.0, not 0.8.0" in done.err) == (1, True)
    assert scene.versions() == before
    done = await upgraded(scene, kube, first, "--to", "v0.9.0")
    assert done.code == 0, done.err
    assert scene.history()[-1][1:] == ("deployed", "kars-operator-0.9.0")


async def test_a_roll_out_that_fails(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    second = scene.chart("0.2.0", image="registry.example.com/broken:2")
    done = await upgraded(scene, kube, second, "--timeout", "5s")
    assert done.code == 1
    reason, last = done.err.splitlines()
    said = 'ImagePullBackOff: Back-off pulling image "registry.example.com/broken:2"'
    assert re.fullmatch(
        rf"kars: Pod {scene.namespace}/app-[a-z0-9-]+: container main: {re.escape(said)}", reason
    )
    where = f"{scene.namespace}/kars-operator"
    assert last.startswith(
        f"kars: the upgrade of {where} failed, and it was rolled back to 0.1.0: "
    )
    assert [each[1:] for each in scene.history()][1:] == [
        ("failed", "kars-operator-0.2.0"),
        ("deployed", "kars-operator-0.1.0"),
    ]


async def test_a_quota_that_leaves_no_pod(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    scene.kubectl("create", "quota", "none", "--hard=pods=0")
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    done = await upgraded(scene, kube, second, "--timeout", "5s", "-o", "json")
    assert done.code == 1
    found = json.loads(done.out)
    assert not found["upgraded"]
    (trouble,) = found["outcome"]["troubles"]
    assert trouble["kind"] == "Deployment"
    assert "exceeded quota: none" in trouble["reason"]
