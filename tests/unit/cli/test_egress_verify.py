"""`kars egress verify` against an API server in memory, over a real socket."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import evolve
from unit.cli.kubeconfig_kit import write_kubeconfig

from kars_router.cli.egress_cluster import OTHER_POLICIES
from kars_router.cli.main import main
from kars_router.egress import Dns, Place, SandboxEgress, explain, merge, sandbox_policy
from kars_router.egress.sandbox import asked_by_operator, labels_of, pod_labels_of
from kars_router.hookspecs import hookimpl
from kars_router.kube import resources as kinds
from kars_router.plugins import Plugins
from kars_router.testing import serve
from kars_router.testing.kube import FakeCluster

API = "kars.azure.com/v1alpha1"
CILIUM = kinds.CILIUM_NETWORK_POLICIES
URL = "http://db.tools.svc:81"

Verify = Callable[..., Awaitable[tuple[int, Any, str]]]


def custom(kind: str, name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


def server(name: str = "db", namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return custom("McpServer", name, namespace, **{"url": URL, **spec})


def sandbox(name: str = "browser", *refs: str, namespace: str = "default") -> dict[str, Any]:
    named = [{"name": each} for each in refs or ("db",)]
    return custom("KarsSandbox", name, namespace, governance={"mcpServerRefs": named})


def declared(
    *urls: str, name: str = "browser", home: str = "default", **more: Any
) -> dict[str, Any]:
    """The policy that the operator makes."""
    rules = [explain(url, more.get("namespace", home)).rule for url in urls]
    given = {
        "namespace": home,
        "https": False,
        "dns": Dns(),
        "ingress": [asked_by_operator("kars-system", 9090)],
        **more,
    }
    return sandbox_policy(
        name=name,
        labels=labels_of(name, home),
        pod_labels=pod_labels_of(name, home),
        rules=merge([("db", [rule for rule in rules if rule is not None])]),
        **given,
    )


def pod(name: str, of: str = "browser", namespace: str = "default", **labels: str) -> Any:
    labels = pod_labels_of(of, "default") | labels
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}


def other(name: str, namespace: str = "default", **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


OPEN: dict[str, Any] = {
    "egress": [{"ports": [{"protocol": "TCP", "port": 22}]}],
    "policyTypes": ["Egress"],
}


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    for manifest in (server(), sandbox(), declared(URL)):
        made.put(manifest)
    return made


@pytest.fixture
def verify(cluster: FakeCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verify:
    """Runs the command; its answer as data, unless another output is asked for."""

    async def run(*args: str, table: bool = False) -> tuple[int, Any, str]:
        async with serve(cluster) as url:
            config = write_kubeconfig(tmp_path / "config", url)
            more = () if table else ("-o", "json")
            words = ["egress", "verify", "--kubeconfig", str(config), *args, *more]
            status = await trio.to_thread.run_sync(main, words)
        out, err = capsys.readouterr()
        return status, out if table or not out else json.loads(out), err

    return run


async def test_a_sandbox_that_has_what_it_declares(verify: Verify) -> None:
    status, found, err = await verify()
    assert (status, err) == (0, "")
    assert found == [
        {
            "sandbox": "default/browser",
            "namespace": "default",
            "policy": "browser",
            "pods": 0,
            "verdict": "tight",
            "beyond": [],
            "lacking": [],
            "refused": [],
            "unclear": [],
        }
    ]


async def test_another_policy_opens_more(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put(other("ssh", **OPEN))
    cluster.put(other("elsewhere", "kube-system", **OPEN))
    status, (found,), _ = await verify()
    assert (status, found["verdict"]) == (1, "open")
    assert found["beyond"] == [
        {
            "kind": "egress",
            "policy": "ssh",
            "rule": "spec.egress[0]",
            "what": "TCP 22 to anywhere",
        }
    ]


async def test_what_selects_the_labels_that_pods_really_have(
    verify: Verify, cluster: FakeCluster
) -> None:
    selector = {"matchLabels": {"debug": "1"}}
    cluster.put(other("debug", **{**OPEN, "podSelector": selector}))
    cluster.put(pod("browser-1"))
    assert (await verify())[0] == 0
    cluster.put(pod("browser-2", debug="1"))
    cluster.put(pod("other-1", "other", debug="1"))
    status, (found,), _ = await verify()
    assert (status, found["pods"]) == (1, 2)
    assert [each["policy"] for each in found["beyond"]] == ["debug"]


async def test_the_policy_is_gone(verify: Verify, cluster: FakeCluster) -> None:
    cluster.remove(kinds.NETWORK_POLICIES, "browser")
    status, (found,), _ = await verify()
    assert status == 1
    assert [each["kind"] for each in found["beyond"]] == ["unselected", "egress", "ingress"]


async def test_the_policy_was_changed(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put(declared("http://10.0.0.1:1"))
    status, out, _ = await verify(table=True)
    assert status == 1
    heading, beyond, less = out.splitlines()
    assert heading.split() == ["SANDBOX", "PODS", "VERDICT", "POLICY", "WHAT"]
    assert " ".join(beyond.split()) == (
        "default/browser 0 open browser egress: TCP 1 to 10.0.0.1/32"
    )
    assert " ".join(less.split()) == (
        "default/browser 0 lacking browser egress: TCP 81 to namespace tools"
    )


async def test_services_are_read(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "tools"}})
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "db", "namespace": "tools"},
        "spec": {"selector": {"app": "db"}, "ports": [{"port": 81, "targetPort": 8081}]},
    }
    cluster.put(service)
    status, (found,), _ = await verify()
    assert status == 1
    assert [each["what"] for each in found["beyond"]] == ["TCP 81 to namespace tools"]
    assert found["lacking"] == ["TCP 8081 to namespace tools pods app=db"]
    # One that stands for another name leads to the next one.
    service["spec"] = {"type": "ExternalName", "externalName": "mcp.vendor.example"}
    cluster.put(service)
    cluster.put(declared("http://mcp.vendor.example:81"))
    assert (await verify())[0] == 0


async def test_all_sandboxes_and_some(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "alpha"}})
    cluster.put(sandbox("second", namespace="alpha"))
    cluster.put(sandbox("third"))
    _, found, _ = await verify()
    assert [each["sandbox"] for each in found] == ["default/browser", "default/third"]
    status, found, _ = await verify("-A")
    assert [each["sandbox"] for each in found] == [
        "alpha/second",
        "default/browser",
        "default/third",
    ]
    assert [each["verdict"] for each in found] == ["open", "tight", "open"]
    assert found[0]["refused"] == ["McpServer alpha/db is not there; apply it"]
    status, found, _ = await verify("browser")
    assert (status, len(found)) == (0, 1)
    status, found, _ = await verify("second", "-n", "alpha")
    assert (status, len(found)) == (1, 1)
    status, found, err = await verify("second")
    assert (status, found) == (1, "")
    assert "there is no KarsSandbox default/second" in err


async def test_a_reference_that_leads_to_nothing(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put(sandbox("browser", "db", "no"))
    status, (found,), _ = await verify()
    assert (status, found["verdict"]) == (1, "lacking")
    cluster.put(server("no", url="nonsense"))
    assert "cannot be read" in (await verify())[1][0]["refused"][0]


async def test_what_the_operator_was_told(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "box-browser"}})
    cluster.remove(kinds.NETWORK_POLICIES, "browser")
    ingress = [asked_by_operator("ops", 9100)]
    cluster.put(declared(URL, namespace="box-browser", ingress=ingress))
    told = ("--operator-namespace", "ops", "--admin-port", "9100")
    own = ("--placement", "own", "--namespace-prefix", "box-")
    status, (found,), _ = await verify(*told, *own)
    assert (status, found["namespace"]) == (0, "box-browser")
    # The operator says where it has put a sandbox.
    cluster.put({**sandbox(), "status": {"namespace": "box-browser"}})
    status, _, _ = await verify(*told)
    assert status == 0
    status, (found,), _ = await verify()
    assert [each["what"] for each in found["beyond"]] == [
        "TCP 9100 from namespace ops pods app.kubernetes.io/name=kars-operator"
    ]


@pytest.mark.parametrize("resource", OTHER_POLICIES)
async def test_policies_of_other_kinds_leave_it_open(
    verify: Verify, cluster: FakeCluster, resource: Any
) -> None:
    cluster.served.add(resource)
    assert (await verify())[0] == 0
    cluster.trouble(403, resource=resource, verb="list")
    status, (found,), _ = await verify()
    assert (status, found["verdict"]) == (3, "unclear")
    assert "cannot be listed" in found["unclear"][0]
    assert (await verify("--only-networkpolicies"))[0] == 0


def cilium(name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNetworkPolicy",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }


async def test_cilium_policies_of_others(verify: Verify, cluster: FakeCluster) -> None:
    cluster.served.add(CILIUM)
    labels = {"matchLabels": pod_labels_of("second", "default")}
    cluster.put(cilium("second", endpointSelector=labels, egress=[{}]))
    assert (await verify())[0] == 0
    cluster.put(cilium("all", endpointSelector={}, egress=[{}]))
    status, (found,), _ = await verify()
    assert status == 3
    assert found["unclear"] == ["CiliumNetworkPolicy (cilium.io) all is not evaluated"]
    status, (found,), _ = await verify("--only-networkpolicies")
    assert (status, found["verdict"]) == (0, "unclear")


class Names:
    """A plugin that opens names."""

    @hookimpl
    def kars_egress_objects(self, sandbox: SandboxEgress, place: Place) -> SandboxEgress | None:
        if f"{CILIUM.plural}.{CILIUM.group}" not in place.installed:
            return None
        made = cilium(sandbox.name, egress=[{"toFQDNs": []}])
        return evolve(sandbox, https=False, dns=None, objects=(made,))


async def test_what_plugins_put_beside_it(
    verify: Verify, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(**_: Any) -> Plugins:
        plugins = Plugins()
        plugins.register(Names(), "names")
        return plugins

    monkeypatch.setattr(Plugins, "load", loaded)
    cluster.served.add(CILIUM)
    cluster.put(declared(dns=None))
    status, (found,), _ = await verify()
    assert (status, found["lacking"]) == (1, ["CiliumNetworkPolicy browser is not there"])
    cluster.put(cilium("browser", egress=[{}]))
    status, (found,), _ = await verify()
    assert (status, found["lacking"]) == (1, ["CiliumNetworkPolicy browser is not as declared"])
    cluster.put(cilium("browser", egress=[{"toFQDNs": []}]))
    assert (await verify())[0] == 0


async def test_a_sandbox_that_cannot_be_read(verify: Verify, cluster: FakeCluster) -> None:
    cluster.put(custom("KarsSandbox", "odd", governance={"mcpServerRefs": 5}))
    status, found, _ = await verify()
    assert [each["verdict"] for each in found] == ["tight", "unclear"]
    assert status == 3
    assert (await verify("--only-networkpolicies"))[0] == 3


async def test_what_cannot_be_determined(verify: Verify, cluster: FakeCluster) -> None:
    for status in (403, 500):
        cluster.trouble(status, resource=kinds.NETWORK_POLICIES, times=9)
        found, out, err = await verify()
        assert (found, out) == (3, "")
        assert err.startswith("kars: ")
        cluster.calm()
    status, _, err = await verify("-n", "kube-system")
    assert (status, "there is no KarsSandbox in kube-system" in err) == (3, True)
    cluster.served.discard(kinds.KARS_SANDBOXES)
    status, _, err = await verify()
    assert (status, "knows no KarsSandbox: install" in err) == (3, True)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("-A", "-n", "a"), "--all-namespaces"),
        (("-A", "browser"), "--all-namespaces"),
        (("-n", "No"), "--namespace"),
        (("--namespace-prefix", "A_"), "--namespace-prefix"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str) -> None:
    assert main(["egress", "verify", *args]) == 2
    assert said in capsys.readouterr().err


def test_no_cluster(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["egress", "verify"]) == 3
    assert "--kubeconfig" in capsys.readouterr().err
