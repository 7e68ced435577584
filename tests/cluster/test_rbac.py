"""The rights of the operator's account: enough for everything that it does, and for nothing else.

The operator runs here as the ServiceAccount that contrib/operator/manifests makes, on an API server
that writes down what it asks for. What the roles grant is compared with that in both directions.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import evolve
from kars_operator import names
from kars_operator.settings import Placement

from cluster.harness import Cluster
from cluster.operator_kit import Api, new_settings, operator, sandbox, server
from cluster.rights_kit import (
    ACCOUNT,
    HOME,
    MANIFESTS,
    SANDBOXES,
    Right,
    Scene,
    all_gone,
    granted,
    manifests,
    uninstall,
    used,
    was_refused,
    whole_path,
)
from kars_router.kube import ApiError, Kube, open_kube
from kars_router.kube import resources as kinds

FOREIGN: Final = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foreign"}}

# What is granted, and yet not among the requests:
NOT_SEEN: Final[frozenset[Right]] = frozenset(
    {
        # asked for within others; see the test of it
        ("update", "kars.azure.com", "karssandboxes/finalizers", ""),
        # needed when something that was made is missing; it depends on which watch is quicker
        ("get", "kars.azure.com", "karssandboxes", ""),
        # needed where Cilium is, as in the test after this one
        ("watch", "cilium.io", "ciliumnetworkpolicies", ""),
        # needed when one thing happens to one object twice within minutes
        ("patch", "events.k8s.io", "events", ""),
    }
)


@pytest.fixture(scope="module")
def installed(running_cluster: Cluster, definitions: None) -> Iterator[Cluster]:
    """A cluster in which everything has been applied as docs/operator.md says."""
    running_cluster.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "operator"))
    running_cluster.kubectl("apply", "--server-side", "-f", str(MANIFESTS / "options"))
    # Pods are made only if they keep the standard that the namespace asks for.
    wait = ["wait", "--for=create", "--timeout=60s", "--namespace", HOME]
    running_cluster.kubectl(*wait, "pod", f"--selector=app.kubernetes.io/name={ACCOUNT}")
    # The operator of the test is to be the only one, and nodes that would run another are none.
    running_cluster.kubectl("delete", "deployment", ACCOUNT, "--namespace", HOME)
    # A binding takes a moment to be in force.
    account = running_cluster.kubeconfig(HOME, ACCOUNT)
    deadline = time.monotonic() + 60
    while HELD_BACK not in apply_as(running_cluster, account, FOREIGN, "default").stderr:
        assert time.monotonic() < deadline, "the admission policy is not in force"
    yield running_cluster
    running_cluster.start_api_server()
    uninstall(running_cluster)


@pytest.fixture
def account(installed: Cluster) -> Path:
    """A kubeconfig that is the operator's account."""
    return installed.directory / f"{HOME}-{ACCOUNT}.kubeconfig"


async def test_the_account_may_do_all_that_the_operator_does_and_no_more(
    installed: Cluster, account: Path, kube: Kube, namespace: str, tmp_path: Path
) -> None:
    connection = installed.connection(account)
    there = Api(kube, namespace)
    scene = Scene(declared=there, made=there, name="here")
    for each in ("here", "away"):
        await trio.Path(tmp_path / each).mkdir()
    async with operator(connection, new_settings()):
        await whole_path(scene, tmp_path / "here")
        # An agent without an image has no Deployment any more.
        await there.apply({**sandbox("here", "tools"), "spec": {"agent": {}}})
        await there.until(kinds.DEPLOYMENTS, "here", lambda found: found is None)
    # The other placement: what was made here goes, and a namespace comes.
    away = evolve(scene, made=Api(kube, "kars-here"))
    async with operator(connection, new_settings(placement=Placement.OWN)):
        await whole_path(away, tmp_path / "away")
        await all_gone(scene)
        await kube.delete(SANDBOXES, "here", namespace)
        await there.until(SANDBOXES, "here", lambda found: found is None)
        assert await there.get(kinds.NAMESPACES, "kars-here") is None
    events = installed.requests_of(HOME, ACCOUNT)
    assert [each for each in events if was_refused(each)] == []
    roles = [*manifests("operator/10-rbac.yaml"), *manifests("options/own-namespaces.yaml")]
    rights = granted(roles)
    assert used(events) - rights == set()
    assert rights - used(events) - NOT_SEEN == set()


@pytest.fixture
def cilium(installed: Cluster) -> Iterator[None]:
    """A cluster that knows CiliumNetworkPolicies, of any content; nobody enforces them."""
    kind = kinds.CILIUM_NETWORK_POLICIES
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {"name": kind.version, "served": True, "storage": True}
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.plural}.{kind.group}"},
        "spec": {
            "group": kind.group,
            "names": {"plural": kind.plural, "kind": kind.kind},
            "scope": "Namespaced",
            "versions": [{**version, "schema": {"openAPIV3Schema": anything}}],
        },
    }
    name = f"customresourcedefinition/{kind.plural}.{kind.group}"
    installed.apply(definition)
    installed.kubectl("wait", "--for=condition=Established", name, "--timeout=60s")
    yield
    installed.kubectl("delete", name)


async def test_the_account_makes_policies_of_cilium_where_it_may(
    installed: Cluster, account: Path, cilium: None, kube: Kube, namespace: str
) -> None:
    pytest.importorskip("kars_plugin_cilium")
    there, kind = Api(kube, namespace), kinds.CILIUM_NETWORK_POLICIES
    async with operator(installed.connection(account), new_settings()):
        await there.apply(server("out", "https://mcp.vendor.example/mcp"), sandbox("out", "out"))
        await there.until(kind, "out", lambda found: "mcp.vendor.example" in str(found))
        await there.apply(server("out", "https://mcp.elsewhere.example/mcp"))
        await there.until(kind, "out", lambda found: "mcp.elsewhere.example" in str(found))
        await there.apply(server("out", "http://tools.mcp.svc:8931/mcp"))
        await there.until(kind, "out", lambda found: found is None)
    events = installed.requests_of(HOME, ACCOUNT)
    assert [each for each in events if was_refused(each)] == []
    read = {(verb, kind.group, kind.plural, "") for verb in ("list", "watch")}
    assert granted(manifests("options/cilium.yaml")) | read <= used(events)


@pytest.mark.parametrize(
    "asked",
    [
        "get secrets --namespace kars-system",
        "list secrets --all-namespaces",
        "create pods",
        "delete pods",
        "create pods --subresource=exec",
        "create pods --subresource=portforward",
        "get pods --subresource=log",
        "get nodes --subresource=proxy",
        "create serviceaccounts --subresource=token",
        "impersonate users",
        "impersonate serviceaccounts",
        "create roles.rbac.authorization.k8s.io",
        "escalate clusterroles.rbac.authorization.k8s.io",
        "bind clusterroles.rbac.authorization.k8s.io",
        "create rolebindings.rbac.authorization.k8s.io",
        "create clusterrolebindings.rbac.authorization.k8s.io",
        "patch validatingadmissionpolicies.admissionregistration.k8s.io",
        "delete validatingadmissionpolicybindings.admissionregistration.k8s.io",
        "create mutatingwebhookconfigurations.admissionregistration.k8s.io",
        "patch customresourcedefinitions.apiextensions.k8s.io",
        "create certificatesigningrequests.certificates.k8s.io",
        "create daemonsets.apps",
        "create statefulsets.apps",
        "create jobs.batch",
        "patch deployments.apps --subresource=scale",
        "update deployments.apps",
        "deletecollection configmaps",
        "update namespaces --subresource=finalize",
        "create karssandboxes.kars.azure.com",
        "delete karssandboxes.kars.azure.com",
        "patch mcpservers.kars.azure.com",
        "patch toolpolicies.kars.azure.com",
        "get leases.coordination.k8s.io/other --namespace kars-system",
        "update leases.coordination.k8s.io/kars-operator --namespace kube-system",
        "delete leases.coordination.k8s.io/kars-operator --namespace kars-system",
        "delete events.events.k8s.io",
        "get /logs",
    ],
)
def test_the_account_may_not(installed: Cluster, account: Path, asked: str) -> None:
    said = installed.try_kubectl("auth", "can-i", *asked.split(), kubeconfig=account)
    assert (said.returncode, said.stdout.strip()) == (1, "no"), said.stderr


def ours(kind: str, api: str, name: str, **more: Any) -> dict[str, Any]:
    """An object that says of itself that the operator has made it."""
    metadata = {"name": name, "labels": names.labels_of("some", "agents")}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **more}


def pod_with(**changes: Any) -> dict[str, Any]:
    """A Deployment as the operator makes them, with changes to its pod."""
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    labels = {"app": "some"}
    pod = {
        "automountServiceAccountToken": False,
        "containers": [{"name": "agent", "image": "agent:1", "securityContext": confined}],
        **changes,
    }
    spec = {
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }
    return ours("Deployment", "apps/v1", "some", spec=spec)


def container_with(name: str, **context: Any) -> dict[str, Any]:
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, **context}
    return {"name": name, "image": "agent:1", "securityContext": confined}


# The API server itself refuses a container that is privileged and may not become it.
PRIVILEGED: Final = {"privileged": True, "allowPrivilegeEscalation": True}
HELD_BACK: Final = "the operator writes only what it has made"
NO_NODE: Final = "a sandbox has no part in its node"
NO_PRIVILEGES: Final = "a container of a sandbox has no privileges"


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        pytest.param(
            FOREIGN,
            HELD_BACK,
            id="an-object-that-is-not-its-own",
        ),
        pytest.param(ours("ConfigMap", "v1", "theirs"), HELD_BACK, id="an-object-that-is-there"),
        pytest.param(ours("Namespace", "v1", "default"), HELD_BACK, id="a-namespace-that-is-there"),
        pytest.param(pod_with(hostNetwork=True), NO_NODE, id="the-network-of-a-node"),
        pytest.param(pod_with(hostPID=True), NO_NODE, id="the-processes-of-a-node"),
        pytest.param(
            pod_with(volumes=[{"name": "root", "hostPath": {"path": "/"}}]),
            NO_NODE,
            id="the-files-of-a-node",
        ),
        pytest.param(
            pod_with(
                volumes=[
                    {
                        "name": "token",
                        "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]},
                    }
                ]
            ),
            NO_NODE,
            id="a-token-in-a-volume",
        ),
        pytest.param(
            pod_with(volumes=[{"name": "secret", "secret": {"secretName": "theirs"}}]),
            NO_NODE,
            id="a-secret-in-a-volume",
        ),
        pytest.param(
            pod_with(automountServiceAccountToken=True),
            "a sandbox has no token of the API server",
            id="a-token",
        ),
        pytest.param(
            pod_with(containers=[container_with("agent", **PRIVILEGED)]),
            NO_PRIVILEGES,
            id="privileges",
        ),
        pytest.param(
            pod_with(containers=[container_with("agent", allowPrivilegeEscalation=True)]),
            NO_PRIVILEGES,
            id="more-privileges-than-at-first",
        ),
        pytest.param(
            pod_with(containers=[container_with("agent", capabilities={"add": ["SYS_ADMIN"]})]),
            NO_PRIVILEGES,
            id="capabilities",
        ),
        pytest.param(
            pod_with(
                initContainers=[
                    container_with("other", capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]})
                ]
            ),
            NO_PRIVILEGES,
            id="a-capability-that-only-the-guard-has",
        ),
    ],
)
def test_the_account_may_not_apply(
    installed: Cluster, account: Path, namespace: str, manifest: dict[str, Any], complaint: str
) -> None:
    theirs = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "theirs"}}
    installed.kubectl("create", "-n", namespace, "-f", "-", given=json.dumps(theirs))
    done = apply_as(installed, account, manifest, namespace)
    assert done.returncode == 1
    assert complaint in done.stderr


def test_the_account_may_apply_what_is_its_own_and_delete_nothing_else(
    installed: Cluster, account: Path, namespace: str
) -> None:
    installed.kubectl("create", "configmap", "theirs", "--namespace", namespace)
    guard = container_with("guard", capabilities={"drop": ["ALL"], "add": ["NET_ADMIN"]})
    for manifest in (ours("ConfigMap", "v1", "own"), pod_with(initContainers=[guard])):
        done = apply_as(installed, account, manifest, namespace)
        assert done.returncode == 0, done.stderr
    where = ["--namespace", namespace, "--wait=false"]
    refused = installed.try_kubectl("delete", "configmap", "theirs", *where, kubeconfig=account)
    assert HELD_BACK in refused.stderr
    installed.kubectl("delete", "configmap", "own", *where, kubeconfig=account)
    refused = installed.try_kubectl("delete", "namespace", namespace, *where, kubeconfig=account)
    assert HELD_BACK in refused.stderr


async def test_the_account_may_hold_a_sandbox_but_not_change_it(
    installed: Cluster, account: Path, kube: Kube, namespace: str
) -> None:
    await Api(kube, namespace).apply(sandbox("held"))
    async with open_kube(installed.connection(account)) as operators:

        async def patch(change: dict[str, Any]) -> None:
            await operators.patch(SANDBOXES, "held", namespace, change)

        await patch({"metadata": {"finalizers": [names.FINALIZER]}})
        with pytest.raises(ApiError, match="the operator does not change what is declared"):
            await patch({"spec": {"suspended": True}})
        await patch({"metadata": {"finalizers": []}})


def test_an_owner_that_waits_for_its_objects_needs_a_right_of_its_own(
    installed: Cluster, namespace: str
) -> None:
    """Where owners are checked, which this API server does; see its admission plugins."""
    installed.kubectl("create", "-n", namespace, "-f", "-", given=json.dumps(sandbox("owner")))
    uid = installed.get("karssandbox", "owner", namespace)["metadata"]["uid"]
    owner = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "KarsSandbox",
        "name": "owner",
        "uid": uid,
        "blockOwnerDeletion": True,
    }
    manifest = ours("ConfigMap", "v1", "owned")
    manifest["metadata"]["ownerReferences"] = [owner]
    where = ["--namespace", namespace]
    installed.kubectl("create", "serviceaccount", "narrow", *where)
    narrow = installed.kubeconfig(namespace, "narrow")

    def grant(name: str, verbs: str, resource: str) -> None:
        installed.kubectl(
            "create", "role", name, f"--verb={verbs}", f"--resource={resource}", *where
        )
        account = f"--serviceaccount={namespace}:narrow"
        installed.kubectl("create", "rolebinding", name, f"--role={name}", account, *where)

    grant("objects", "get,create,patch", "configmaps")
    refused = apply_as(installed, narrow, manifest, namespace)
    assert "cannot set blockOwnerDeletion" in refused.stderr
    grant("owners", "update", "karssandboxes.kars.azure.com/finalizers")
    done = apply_as(installed, narrow, manifest, namespace)
    assert done.returncode == 0, done.stderr


def apply_as(
    cluster: Cluster, kubeconfig: Path, manifest: Mapping[str, Any], namespace: str
) -> subprocess.CompletedProcess[str]:
    command = ["apply", "--server-side", "--force-conflicts", f"--field-manager={names.MANAGER}"]
    # Without a look at the schemas, which would be one more right.
    command += ["--validate=false", "--namespace", namespace, "--filename", "-"]
    return cluster.try_kubectl(*command, given=json.dumps(manifest), kubeconfig=kubeconfig)
