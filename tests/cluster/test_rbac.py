"""The rights of the operator's account: enough for everything that it does, and for nothing else.

The operator runs here as the ServiceAccount that contrib/operator/manifests makes, on an API server
that writes down what it asks for. What the roles grant is compared with that in both directions.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import evolve, frozen
from kars_operator import names
from kars_operator.settings import Placement
from peers import REPOSITORY
from ruamel.yaml import YAML

from cluster.harness import Cluster
from cluster.operator_kit import Api, Node, new_settings, operator, sandbox, server
from kars_router.kube import ApiError, Kube, open_kube
from kars_router.kube import resources as kinds

MANIFESTS: Final = REPOSITORY / "contrib" / "operator" / "manifests"
HOME: Final = "kars-system"
ACCOUNT: Final = "kars-operator"
FOREIGN: Final = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "foreign"}}
SANDBOXES: Final = kinds.KARS_SANDBOXES

# A right: verb, group, resource (with its subresource) and, if it is for one object only, its name.
Right = tuple[str, str, str, str]

# What is granted, and yet not among the requests:
NOT_SEEN: Final[frozenset[Right]] = frozenset(
    {
        # asked for within others; see the test of it
        ("update", "kars.azure.com", "karssandboxes/finalizers", ""),
        # needed where Cilium is; here the list says that there is nothing to watch
        ("watch", "cilium.io", "ciliumnetworkpolicies", ""),
        # needed when one thing happens to one object twice within minutes
        ("patch", "events.k8s.io", "events", ""),
    }
)


def documents(name: str) -> list[dict[str, Any]]:
    """The objects in a file of the manifests."""
    text = (MANIFESTS / name).read_text(encoding="utf-8")
    return list(YAML(typ="safe", pure=True).load_all(text))


def granted(*files: str) -> set[Right]:
    """All that the roles in some files grant."""
    roles = [
        each
        for name in files
        for each in documents(name)
        if each["kind"] in {"ClusterRole", "Role"}
    ]
    return {
        (verb, group, resource, name)
        for role in roles
        for rule in role["rules"]
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames", [""])
    }


def used(events: Iterable[Mapping[str, Any]]) -> set[Right]:
    """The rights that requests have made use of."""
    found: set[Right] = set()
    for event in events:
        about = event.get("objectRef")
        if about is None:  # such as which version the server is, which everybody may ask
            continue
        resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
        of_one = resource == "leases" and event["verb"] != "create"
        right = about.get("apiGroup", ""), resource, about.get("name", "") if of_one else ""
        found.add((event["verb"], *right))
        if event["verb"] == "patch" and event["responseStatus"]["code"] == 201:
            found.add(("create", *right))  # what is applied and was not there is made
    return found


def was_refused(event: Mapping[str, Any]) -> bool:
    return event.get("responseStatus", {}).get("code") in {401, 403}


@pytest.fixture(scope="module")
def installed(running_cluster: Cluster, definitions: None) -> Cluster:
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
    return running_cluster


@pytest.fixture
def account(installed: Cluster) -> Path:
    """A kubeconfig that is the operator's account."""
    return installed.directory / f"{HOME}-{ACCOUNT}.kubeconfig"


@frozen
class Scene:
    """One sandbox under the eyes of an operator that is the account.

    Attributes:
        declared: where its resources are.
        made: where its objects are.
        name: of the sandbox.
    """

    declared: Api
    made: Api
    name: str


async def whole_path(scene: Scene, directory: Path) -> None:
    """Declared, enforced by a real router, told, and changed."""
    declared, made, name = scene.declared, scene.made, scene.name
    tools = server("tools", "http://tools.mcp.svc:8931/mcp")
    policy = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "ToolPolicy",
        "metadata": {"name": "rules"},
        "spec": {"appliesTo": {"sandboxMatchLabels": {"team": "a"}}, "default": "allow"},
    }
    async with trio.open_nursery() as node:
        await declared.apply(tools, policy, sandbox(name, "tools"))
        await node.start(Node(made, directory).run, name)
        await declared.condition(SANDBOXES, name, "Ready", "True")
        await declared.condition(kinds.MCP_SERVERS, "tools", "Ready", "True")
        await declared.condition(kinds.TOOL_POLICIES, "rules", "Ready", "True")
        await has_events(declared, name)
        await declared.apply(server("tools", "http://tools.mcp.svc:9000/mcp"))
        await made.until(kinds.NETWORK_POLICIES, name, lambda found: "9000" in str(found))
        node.cancel_scope.cancel()


async def all_gone(scene: Scene) -> None:
    for kind in (kinds.DEPLOYMENTS, kinds.NETWORK_POLICIES, kinds.SERVICE_ACCOUNTS):
        await scene.made.until(kind, scene.name, lambda found: found is None)
    config_map = names.config_map(scene.name)
    await scene.made.until(kinds.CONFIG_MAPS, config_map, lambda found: found is None)


async def has_events(api: Api, name: str) -> None:
    with trio.fail_after(30):
        while True:
            found = (await api.kube.list(kinds.EVENTS, api.namespace)).items
            if any(each["regarding"]["name"] == name for each in found):
                return
            await trio.sleep(0.05)


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
    rights = granted("operator/10-rbac.yaml", "options/own-namespaces.yaml")
    assert used(events) - rights == set()
    assert rights - used(events) - NOT_SEEN == set()


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
    metadata = {"name": name, "labels": names.labels("some", "agents")}
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
