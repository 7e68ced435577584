"""The chart: it makes what the manifests have, and its accounts have rights where they should.

That a real API server takes what it renders is in test_manifests.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import click
import pytest
import trio
from cluster_assets import find, wanted_kubernetes
from kars_operator.main import operator as operator_command
from kars_operator.main import run_operator
from kars_operator.settings import Placement
from peers import REPOSITORY, missing

from cluster.harness import Cluster
from cluster.operator_kit import Api, new_settings, operator
from cluster.rights_kit import (
    ACCOUNT,
    HOME,
    MANIFESTS,
    SANDBOXES,
    Scene,
    documents,
    manifests,
    was_refused,
    whole_path,
)
from kars_router._version import __version__
from kars_router.kube import Kube
from kars_router.kube import resources as kinds

CHART: Final = REPOSITORY / "contrib" / "operator" / "chart"
# What Helm's users expect on everything, and what the manifests do not have.
OF_HELM: Final = ("app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart")


def try_helm(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run helm, whatever comes of it."""
    program = find("helm", wanted_kubernetes())
    if program is None:
        missing("no helm: `python tools/cluster_assets.py helm` gets it")
    return subprocess.run(
        [program, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def helm(*arguments: str, **environment: str) -> str:
    """Run helm; its stdout. Fails the test if helm fails."""
    done = try_helm(*arguments, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(home: Path, *options: str) -> list[dict[str, Any]]:
    """The chart with some values."""
    command = ["template", "kars-operator", str(CHART), "--namespace", HOME, *options]
    return documents(helm(*command, HOME=str(home)))


def by_name(objects: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    """Objects without what only Helm puts on them."""
    found = {}
    for each in objects:
        metadata = each["metadata"]
        labels = {k: v for k, v in metadata["labels"].items() if k not in OF_HELM}
        key = each["kind"], metadata.get("namespace", ""), metadata["name"]
        assert key not in found
        found[key] = {**each, "metadata": {**metadata, "labels": labels}}
    return found


def test_the_chart_makes_what_the_manifests_have(tmp_path: Path) -> None:
    files = sorted((MANIFESTS / "operator").glob("*.yaml"))
    written = by_name([each for file in files for each in documents(file.read_text("utf-8"))])
    # Helm makes the namespace itself, with --create-namespace.
    del written["Namespace", "", HOME]
    assert by_name(render(tmp_path)) == written


def test_the_options_of_the_chart_are_those_of_the_manifests(tmp_path: Path) -> None:
    options = ["--set", "sandboxes.placement=own", "--set", "cilium.enabled=true"]
    made = by_name(render(tmp_path, *options))
    written = by_name(
        [*manifests("options/own-namespaces.yaml"), *manifests("options/cilium.yaml")]
    )
    assert {key: made[key] for key in written} == written


def variables(objects: list[dict[str, Any]]) -> dict[str, str]:
    """The variables of the operator's container; what the cluster fills in is `filled-in`."""
    (deployment,) = (each for each in objects if each["kind"] == "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["run"]
    return {each["name"]: each.get("value", "filled-in") for each in container["env"]}


def options(given: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The options of `kars-operator run` with these variables and no other."""
    known = {f"KARS_OPERATOR_RUN_{each.name}".upper() for each in run_operator.params}
    assert given.keys() <= known | {"POD_NAMESPACE"}
    with monkeypatch.context() as environment:
        for name in known | {"POD_NAMESPACE"}:
            environment.delenv(name, raising=False)
        for name, value in given.items():
            environment.setenv(name, value)
        group = click.Context(operator_command, auto_envvar_prefix="KARS_OPERATOR")
        return run_operator.make_context("run", [], parent=group).params


def test_the_variables_of_the_defaults_are_the_defaults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stated = {
        "operator_namespace": "filled-in",
        "router_image": f"kars-router:{__version__}",
        "dns_labels": {"k8s-app": "kube-dns"},
    }
    found = options(variables(render(tmp_path)), monkeypatch)
    assert found == {**options({}, monkeypatch), **stated}


def test_every_value_is_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["--values", str(CHART / "ci" / "everything.yaml")]
    found = options(variables(render(tmp_path, *values)), monkeypatch)
    assert found == {
        **options({}, monkeypatch),
        "operator_namespace": "filled-in",
        "router_image": "registry.example.com/kars-router:1",
        "agent_images": {
            "openclaw": "registry.example.com/openclaw:1",
            "hermes": "registry.example.com/hermes:1",
        },
        "placement": "own",
        "namespace_prefix": "box-",
        "pull_secrets": ("pull", "other"),
        "agent_port": 18443,
        "admin_port": 19090,
        "cluster_domain": "k8s.example.com",
        "dns_namespace": "dns",
        "dns_labels": {"app": "coredns", "tier": "system"},
        "dns_networks": ("169.254.20.10/32", "fd00::a/128"),
        "workers": 16,
        "blocked": ("playwright", "otel"),
        "log_level": "debug",
    }
    narrow = ["--values", str(CHART / "ci" / "one-namespace.yaml")]
    assert options(variables(render(tmp_path, *narrow)), monkeypatch)["namespace"] == "agents"


@pytest.mark.parametrize(
    "mistake",
    ["replica=2", "sandboxes.placement=elsewhere", "image.digest=sha256:1", "dns.podLabels=53"],
)
def test_a_value_that_cannot_be_meant_is_refused(tmp_path: Path, mistake: str) -> None:
    done = try_helm("template", "some", str(CHART), "--set", mistake, HOME=str(tmp_path))
    assert done.returncode != 0
    assert mistake.partition("=")[0].rpartition(".")[2] in done.stderr


def test_the_defaults_are_installed_and_taken_away(cluster: Cluster, namespace: str) -> None:
    where = ["--namespace", namespace, "--kubeconfig", str(cluster.admin)]
    helm("install", "some", str(CHART), *where, **cluster.environment())
    defined = cluster.get("customresourcedefinitions")["items"]
    assert "karssandboxes.kars.azure.com" in {each["metadata"]["name"] for each in defined}
    wait = ["wait", "--for=create", "--timeout=60s", "--namespace", namespace]
    cluster.kubectl(*wait, "pod", f"--selector=app.kubernetes.io/name={ACCOUNT}")
    helm("uninstall", "some", *where, "--wait", **cluster.environment())
    for kind in ("clusterrole", "clusterrolebinding", "validatingadmissionpolicy"):
        assert cluster.try_kubectl("get", kind, "some").returncode == 1


async def test_an_account_of_one_namespace(
    cluster: Cluster, definitions: None, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    """The whole path with rights in one namespace, and none in others."""
    there = Api(kube, namespace)
    values = ["--values", str(CHART / "ci" / "one-namespace.yaml")]
    await trio.to_thread.run_sync(install, cluster, namespace, *values)
    account = await trio.to_thread.run_sync(cluster.kubeconfig, namespace, ACCOUNT)
    scene = Scene(declared=there, made=there, name="narrow")
    async with operator(cluster.connection(account), new_settings(), namespace):
        await whole_path(scene, tmp_path)
    assert refusals(cluster, namespace) == []
    for verb, resource in (("list", "configmaps"), ("patch", "deployments"), ("list", "pods")):
        asked = ["auth", "can-i", verb, resource, "--namespace", "default"]
        said = await trio.to_thread.run_sync(
            partial(cluster.try_kubectl, *asked, kubeconfig=account)
        )
        assert said.stdout.strip() == "no"


async def test_an_account_that_looks_at_one_namespace_and_makes_others(
    cluster: Cluster, definitions: None, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    there = Api(kube, namespace)
    values = ["--values", str(CHART / "ci" / "one-namespace-own.yaml")]
    await trio.to_thread.run_sync(install, cluster, namespace, *values)
    account = await trio.to_thread.run_sync(cluster.kubeconfig, namespace, ACCOUNT)
    scene = Scene(declared=there, made=Api(kube, "kars-apart"), name="apart")
    settings = new_settings(placement=Placement.OWN)
    async with operator(cluster.connection(account), settings, namespace):
        await whole_path(scene, tmp_path)
        await kube.delete(SANDBOXES, "apart", namespace)
        await there.until(SANDBOXES, "apart", lambda found: found is None)
        assert await there.get(kinds.NAMESPACES, "kars-apart") is None
    assert refusals(cluster, namespace) == []


def install(cluster: Cluster, namespace: str, *options: str) -> None:
    """Install the chart for real, with the namespace's name as that of the release."""
    where = ["--namespace", namespace, "--kubeconfig", str(cluster.admin)]
    watched = ["--set", f"watchNamespace={namespace}", "--set", "replicas=0", "--skip-crds"]
    helm("install", namespace, str(CHART), *where, *options, *watched, **cluster.environment())


def refusals(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    return [each for each in cluster.requests_of(namespace, ACCOUNT) if was_refused(each)]
