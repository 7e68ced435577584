"""`kars upgrade`: releases that were left pending, definitions, the operator's own chart."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from peers import REPOSITORY, free_port

from cluster.harness import Cluster
from cluster.upgrade_kit import PATIENCE, TEMPLATES, Done, Scene, kars_words, run_pods
from kars_router.kube import Kube

OPERATOR: Final = REPOSITORY / "contrib" / "operator" / "chart"


@pytest.fixture
def scene(cluster: Cluster, namespace: str, tmp_path: Path) -> Scene:
    found = Scene(cluster, namespace, tmp_path)
    found.environment()  # without Helm there is nothing to test
    return found


async def upgraded(scene: Scene, kube: Kube, chart: Path | None, *options: str) -> Done:
    """Runs `kars upgrade` while somebody runs the pods."""
    async with trio.open_nursery() as nursery:
        await nursery.start(run_pods, kube, scene.namespace)
        done = await trio.to_thread.run_sync(partial(scene.kars, chart, *options))
        nursery.cancel_scope.cancel()
    return done


def statuses(scene: Scene) -> list[str]:
    return [status for _, status, _ in scene.history()]


async def test_an_interrupted_upgrade_is_repaired(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    second = scene.chart("0.2.0", image="registry.example.com/app:2", level="debug")
    scene.interrupt_helm("upgrade", scene.release, second, "--wait")
    assert statuses(scene) == ["deployed", "pending-upgrade"]
    before = scene.versions()
    for options in (("--yes",), ("--dry-run",), ("--dry-run", "--repair")):
        done = scene.kars(second, *options)
        assert (done.code, done.out) == (1, "")
        said = "is pending-upgrade at revision 2 since [0-9-]+T[0-9:.]+Z: a run was interrupted"
        assert re.search(said, done.err)
        assert "helm rollback kars-operator 1 --server-side=true" in done.err
    assert (scene.versions(), statuses(scene)) == (before, ["deployed", "pending-upgrade"])

    done = await upgraded(scene, kube, second, "--repair", "--yes")
    assert done.code == 0, done.err
    assert "is repaired: it is at 0.1.0 again\n" in done.out
    assert statuses(scene) == ["superseded", "pending-upgrade", "superseded", "deployed"]
    assert scene.get("configmap", "conf")["data"]["key"] == "debug"


async def test_an_interrupted_installation_is_repaired(scene: Scene, kube: Kube) -> None:
    first = scene.chart("0.1.0")
    scene.interrupt_helm("install", scene.release, first, "--wait")
    assert statuses(scene) == ["pending-install"]
    done = await upgraded(scene, kube, first, "--repair", "--yes")
    assert done.code == 0, done.err
    assert statuses(scene)[-1] == "deployed"


async def test_a_repair_takes_nothing_from_anybody(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    second = scene.chart("0.2.0")
    scene.interrupt_helm("upgrade", scene.release, second, "--wait")
    scene.kubectl("set", "env", "deployment/app", "-c", "main", "LEVEL=trace")
    before = scene.versions()
    done = scene.kars(second, "--repair", "--yes")
    assert done.code == 1
    assert done.err == "kars: nothing was changed: 1 field belongs to others\n"
    assert (scene.versions(), statuses(scene)) == (before, ["deployed", "pending-upgrade"])
    scene.follow(done.commands)
    done = await upgraded(scene, kube, second, "--repair", "--yes")
    assert done.code == 0, done.err


async def test_a_release_whose_way_back_failed(scene: Scene, kube: Kube) -> None:
    """What becomes of it without the pre-flight, and that it can still be upgraded."""
    scene.install(scene.chart("0.1.0"))
    scene.kubectl("set", "env", "deployment/app", "-c", "main", "LEVEL=trace")
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    words = ["upgrade", scene.release, str(second), "--namespace", scene.namespace]
    helm = scene.run("helm", *words, "--rollback-on-failure", "--timeout", "30s")
    assert (helm.code, "an error occurred while rolling back" in helm.err) == (1, True)
    assert statuses(scene) == ["deployed", "superseded", "failed"]
    done = scene.kars(second, "--yes")
    assert done.code == 1
    scene.follow(done.commands)

    # On its own, Helm would now go back to revision 2, which never ran.
    broken = scene.chart("0.3.0", image="registry.example.com/broken:3", level="debug")
    done = await upgraded(scene, kube, broken, "--yes", "--timeout", "5s")
    assert (done.code, "and it was rolled back to 0.1.0" in done.err) == (1, True)
    assert (statuses(scene)[-1], scene.get("configmap", "conf")["data"]["key"]) == (
        "deployed",
        "info",
    )
    done = await upgraded(scene, kube, second, "--yes")
    assert done.code == 0, done.err


async def test_an_interrupt_has_helm_take_it_back(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    second = scene.chart("0.2.0", image="registry.example.com/broken:2")
    words = ["--chart", str(second), "-n", scene.namespace, "--yes", "--timeout", "120s"]
    async with trio.open_nursery() as nursery:
        await nursery.start(run_pods, kube, scene.namespace)
        process = await trio.lowlevel.open_process(
            kars_words(*words),
            env=scene.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        with trio.fail_after(PATIENCE):
            while await trio.to_thread.run_sync(statuses, scene) == ["deployed"]:
                continue
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            said = b"".join([piece async for piece in process.stderr]).decode()
            assert await process.wait() == 1
        nursery.cancel_scope.cancel()
    assert "was interrupted, and it was rolled back to 0.1.0" in said
    assert statuses(scene)[1:] == ["failed", "deployed"]


async def test_on_a_terminal_it_asks_and_tells_how_far_it_is(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0"))
    second = scene.chart("0.2.0", image="registry.example.com/app:2")
    words = ["--chart", str(second), "-n", scene.namespace]
    code, said = await trio.to_thread.run_sync(on_terminal, scene, "n\n", words)
    assert (code, "Upgrade it? [y/N]" in said, statuses(scene)) == (1, True, ["deployed"])
    async with trio.open_nursery() as nursery:
        await nursery.start(run_pods, kube, scene.namespace)
        code, said = await trio.to_thread.run_sync(on_terminal, scene, "y\n", words)
        nursery.cancel_scope.cancel()
    assert code == 0, said
    assert re.search(r"Deployment \S+/app: [01] of 1 pods are new and ready", said)


def on_terminal(scene: Scene, typed: str, words: list[str]) -> tuple[int, str]:
    """Runs `kars upgrade` on a terminal; its exit code and what it wrote there."""
    ours, theirs = pty.openpty()
    environment = {**scene.environment(), "TERM": "xterm", "CI": "1"}
    with subprocess.Popen(
        kars_words(*words), env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        os.write(ours, typed.encode())
        said = bytearray()
        try:
            while piece := os.read(ours, 65_536):
                said += piece
        except OSError:  # as Linux says that nobody is at the other end
            pass
        finally:
            os.close(ours)
        code = process.wait(PATIENCE)
    return code, said.decode()


def definition(plural: str, field: str) -> str:
    """A custom resource definition whose resources have one field."""
    kind = plural.removesuffix("s").capitalize()
    schema = {"type": "object", "properties": {field: {"type": "string"}}}
    version = {
        "name": "v1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": schema}}},
    }
    return json.dumps(
        {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.example.com"},
            "spec": {
                "group": "example.com",
                "scope": "Namespaced",
                "names": {"plural": plural, "kind": kind, "singular": plural.removesuffix("s")},
                "versions": [version],
            },
        }
    )


def fields_of(cluster: Cluster, plural: str) -> set[str]:
    spec = cluster.get("customresourcedefinition", f"{plural}.example.com")["spec"]
    schema = spec["versions"][0]["schema"]["openAPIV3Schema"]
    return set(schema["properties"]["spec"]["properties"])


@pytest.mark.parametrize("side", ["--server-side=true", "--server-side=false"])
async def test_definitions_are_upgraded_too(scene: Scene, kube: Kube, side: str) -> None:
    plural = f"things{side[-4:].strip('=')}s"
    other = f"others{side[-4:].strip('=')}s"
    scene.install(scene.chart("0.1.0", crds={"a.yaml": definition(plural, "old")}), side)
    crds = {"a.yaml": definition(plural, "new"), "b.yaml": definition(other, "some")}
    second = scene.chart("0.2.0", crds=crds)
    names = [f"{each}.example.com" for each in (plural, other)]
    try:
        plan = scene.plan(second, "--skip-crds")
        assert not {each["name"] for each in plan["changes"]} & set(names)
        found = {each["name"]: each["action"] for each in scene.plan(second)["changes"]}
        assert [found[name] for name in names] == ["change", "create"]
        assert fields_of(scene.cluster, plural) == {"old"}

        done = await upgraded(scene, kube, second, "--yes")
        assert done.code == 0, done.err
        assert fields_of(scene.cluster, plural) == {"new"}

        back = scene.chart("0.1.5", crds={"a.yaml": definition(plural, "old")})
        plan = scene.plan(back, "--to", "0.1.5")
        assert any("stay as they are on the way back" in each for each in plan["remarks"])
    finally:
        scene.cluster.kubectl("delete", "crd", "--ignore-not-found", *names)


async def test_a_definition_that_others_own(scene: Scene, kube: Kube) -> None:
    scene.install(scene.chart("0.1.0", crds={"a.yaml": definition("mines", "old")}))
    try:
        given = definition("mines", "theirs")
        words = ["apply", "--server-side", "--force-conflicts", "--filename", "-"]
        scene.cluster.kubectl(*words, given=given)
        second = scene.chart("0.2.0", crds={"a.yaml": definition("mines", "new")})
        plan = scene.plan(second)
        managers = {each["manager"] for each in plan["conflicts"]}
        assert (plan["blocked"], managers) == (True, {"kubectl"})
        scene.follow(plan["commands"])
        done = await upgraded(scene, kube, second, "--yes")
        assert done.code == 0, done.err
        assert fields_of(scene.cluster, "mines") == {"new"}
    finally:
        scene.cluster.kubectl("delete", "crd", "--ignore-not-found", "mines.example.com")


async def test_custom_resources(scene: Scene, definitions: None) -> None:
    server = """
apiVersion: kars.azure.com/v1alpha1
kind: McpServer
metadata: {name: web}
spec: {url: "http://web:8080/mcp", allowedTools: ["get_*"]}
"""
    first = scene.chart("0.1.0", templates={**TEMPLATES, "server.yaml": server})
    scene.install(first)
    url = {"op": "replace", "path": "/spec/url", "value": "http://other:8080/mcp"}
    scene.kubectl("patch", "mcpserver", "web", "--type=json", "--patch", json.dumps([url]))
    plan = scene.plan(first)
    (conflict,) = plan["conflicts"]
    assert (conflict["kind"], conflict["field"]) == ("McpServer", ".spec.url")
    assert (conflict["now"], conflict["wanted"]) == ("http://other:8080/mcp", "http://web:8080/mcp")
    assert plan["commands"][0].startswith("kubectl patch mcpservers.kars.azure.com web ")
    scene.follow(plan["commands"])
    assert scene.plan(first)["conflicts"] == []


def operator_chart(scene: Scene, version: str) -> Path:
    """The operator's own chart, as if it were released."""
    chart = scene.directory / f"operator-{version}"
    shutil.copytree(OPERATOR, chart)
    file = chart / "Chart.yaml"
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"^(version|appVersion): .*$", rf"\1: {version}", text, flags=re.MULTILINE)
    file.write_text(text, encoding="utf-8")
    return chart


async def test_the_chart_of_the_operator(scene: Scene, kube: Kube, definitions: None) -> None:
    scene.release = scene.namespace  # after which objects of the cluster are called
    narrow = ["--set", f"watchNamespace={scene.namespace}"]
    first, second = operator_chart(scene, "0.1.0"), operator_chart(scene, "0.2.0")
    scene.install(first, *narrow, "--skip-crds")
    scene.kubectl("set", "env", "deployment/kars-operator", "KARS_OPERATOR_RUN_LOG_LEVEL=debug")
    before = scene.versions()
    done = scene.kars(second, "--yes", "--skip-crds")
    assert done.code == 1
    name = "KARS_OPERATOR_RUN_LOG_LEVEL"
    where = f"deployment/kars-operator -n {scene.namespace}"
    assert done.commands == [f"kubectl set env {where} {name}-"]
    assert scene.versions() == before
    scene.follow(done.commands)
    done = await upgraded(scene, kube, second, "--yes", "--skip-crds")
    assert done.code == 0, done.err
    assert "operator: kars-operator:0.1.0 -> kars-operator:0.2.0" in done.out
    assert "2 restart" in done.out


def test_the_chart_that_comes_with_the_operator(scene: Scene, definitions: None) -> None:
    """Without `--chart` it is the one of the installed distribution, its definitions included."""
    scene.release = scene.namespace
    narrow = ["--set", f"watchNamespace={scene.namespace}"]
    scene.install(OPERATOR, *narrow, "--skip-crds")
    scene.kubectl("set", "env", "deployment/kars-operator", "KARS_OPERATOR_RUN_WORKERS=9")
    done = scene.kars(None, "--dry-run", "-o", "json")
    found = json.loads(done.out)
    assert [each["field"] for each in found["conflicts"]] == [
        '.spec.template.spec.containers[name="operator"].env[name="KARS_OPERATOR_RUN_WORKERS"].value'
    ]
    assert found["target"]["chart"] == "kars-operator"
    assert {each["kind"] for each in found["changes"]} == {"Deployment"}


def test_the_release_is_found_wherever_it_is(scene: Scene) -> None:
    scene.release = f"r{scene.namespace}"[:50].rstrip("-")
    first = scene.chart("0.1.0")
    scene.install(first)
    words = ["--chart", str(first), "--release", scene.release, "--dry-run"]
    done = scene.run(*kars_words(*words))
    assert done.code == 0, done.err
    assert done.out.startswith(f"{scene.namespace}/{scene.release} is at 0.1.0")
    done = scene.run(*kars_words(*words, "-n", "kube-system"))
    assert (done.code, done.out) == (1, "")
    assert f"there is no release {scene.release} in the namespace kube-system" in done.err


def test_another_chart(scene: Scene) -> None:
    scene.install(scene.chart("0.1.0"))
    done = scene.kars(scene.chart("0.2.0", name="other"), "--yes")
    assert done.code == 1
    assert "is a release of the chart kars-operator, and " in done.err
    done = scene.kars(scene.directory, "--yes")
    assert (done.code, "is no chart that can be used" in done.err) == (1, True)


@pytest.mark.parametrize("reference", ["nobody/here", "oci://127.0.0.1:{port}/here"])
def test_a_chart_that_cannot_be_had(scene: Scene, reference: str) -> None:
    scene.install(scene.chart("0.1.0"))
    where = reference.format(port=free_port())
    done = scene.run(*kars_words("--chart", where, "-n", scene.namespace, "--yes"))
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert done.err.startswith(f"kars: the chart {where} cannot be had: ")


def test_an_api_server_that_does_not_answer(scene: Scene) -> None:
    chart = scene.chart("0.1.0")
    with scene.cluster.api_server_down():
        done = scene.kars(chart, "--yes")
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "cannot be reached" in done.err


def test_an_account_that_may_not_look(scene: Scene) -> None:
    scene.install(scene.chart("0.1.0"))
    second = scene.chart("0.2.0", level="debug")
    config = scene.cluster.kubeconfig(scene.namespace, "default")
    done = scene.kars(second, "--yes", "--kubeconfig", str(config))
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert "forbidden" in done.err


def test_commands_name_the_cluster_that_was_named(scene: Scene) -> None:
    first = scene.chart("0.1.0")
    scene.install(first)
    scene.kubectl("scale", "deployment/app", "--replicas=3")
    scene.kubectl("set", "env", "deployment/app", "-c", "main", "LEVEL=trace")
    named = ["--kubeconfig", str(scene.cluster.admin), "--context", "test"]
    plan: dict[str, Any] = scene.plan(first, *named)
    assert len(plan["commands"]) == 2
    for each in plan["commands"]:
        assert each.endswith(f"--kubeconfig {scene.cluster.admin} --context test")
    scene.follow(plan["commands"])
    assert scene.plan(first)["conflicts"] == []
