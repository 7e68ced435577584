"""`kars egress` and a real API server: it takes what is rendered, and `verify` reads it rightly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.cli_kit import run_kars
from cluster.harness import Cluster
from kars_router.egress.reach import types

READS: dict[str, list[str]] = {
    "kars.azure.com": ["karssandboxes", "mcpservers"],
    "": ["services", "pods"],
    "networking.k8s.io": ["networkpolicies"],
}


def kars(cluster: Cluster, *words: str, given: str = "") -> tuple[int, str, str]:
    done = run_kars(cluster, "egress", *words, given=given)
    return done.returncode, done.stdout, done.stderr


def declared(namespace: str) -> list[dict[str, Any]]:
    """A sandbox whose servers need rules of every kind."""
    urls = {
        "pods": f"http://db.{namespace}.svc:81",
        "space": "http://db.elsewhere.svc:82",
        "far": "https://mcp.vendor.example",
        "far-port": "https://mcp.vendor.example:8443",
        "v4": "http://10.1.2.3",
        "v6": "http://[fd00::1]:8080",
    }
    servers = [_custom("McpServer", name, namespace, {"url": url}) for name, url in urls.items()]
    refs = [{"name": name} for name in urls]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "db", "namespace": namespace},
        "spec": {"selector": {"app": "db"}, "ports": [{"port": 81, "targetPort": "mcp"}]},
    }
    governance = {"governance": {"mcpServerRefs": refs}}
    return [*servers, service, _custom("KarsSandbox", "browser", namespace, governance)]


def _custom(kind: str, name: str, namespace: str, spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace}
    return {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": kind,
        "metadata": metadata,
        "spec": spec,
    }


def policy(name: str, namespace: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podSelector": {}, **spec},
    }


@pytest.mark.parametrize("output", ["yaml", "json"])
def test_what_is_rendered_is_taken_as_it_is(
    cluster: Cluster, namespace: str, tmp_path: Path, output: str
) -> None:
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"kind": "List", "items": declared(namespace)}))
    status, text, err = kars(cluster, "render", "-f", str(file), "-o", output)
    assert (status, err) == (0, "")
    strict = ("--server-side", "--validate=strict", "--warnings-as-errors")
    cluster.kubectl("apply", *strict, "-f", "-", given=text)
    # Nothing is filled in, so that what is there can be compared with what was meant.
    found = cluster.get("networkpolicy", "browser", namespace)["spec"]
    _, text, _ = kars(cluster, "render", "-f", str(file), "-o", "json")
    wanted = json.loads(text)["items"][0]["spec"]
    assert found == {key: value for key, value in wanted.items() if value != []}


def test_verify_sees_what_opens_more_and_less(
    cluster: Cluster, namespace: str, definitions: None, tmp_path: Path
) -> None:
    def verify(*words: str) -> tuple[int, dict[str, Any]]:
        status, out, err = kars(cluster, "verify", "-n", namespace, "-o", "json", *words)
        assert err == ""
        (found,) = json.loads(out)
        return status, found

    manifests = declared(namespace)
    cluster.apply(*manifests)
    status, found = verify()
    assert (status, found["verdict"]) == (1, "open")
    assert [each["kind"] for each in found["beyond"]] == ["unselected", "egress", "ingress"]
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"kind": "List", "items": manifests}))
    cluster.kubectl("apply", "-f", "-", given=kars(cluster, "render", "-f", str(file))[1])
    assert verify() == (0, {**found, "verdict": "tight", "beyond": []})
    more = {"to": [{"ipBlock": {"cidr": "169.254.169.254/32"}}]}
    cluster.apply(policy("metadata", namespace, egress=[more]))
    status, found = verify("browser")
    assert status == 1
    assert found["beyond"] == [
        {
            "kind": "egress",
            "policy": "metadata",
            "rule": "spec.egress[0]",
            "what": "every port to 169.254.169.254/32",
        }
    ]
    cluster.kubectl("delete", "networkpolicy", "metadata", "-n", namespace)
    # Another port of the pods, and the policy is behind.
    change = json.dumps({"spec": {"ports": [{"port": 81, "targetPort": 9000}]}})
    cluster.kubectl("patch", "service", "db", "-n", namespace, "-p", change)
    status, found = verify()
    assert (status, found["verdict"]) == (1, "open")
    assert found["lacking"] == [f"TCP 9000 to namespace {namespace} pods app=db"]


def test_verify_needs_few_rights(
    cluster: Cluster, namespace: str, definitions: None, tmp_path: Path
) -> None:
    cluster.apply(*declared(namespace)[-1:])
    cluster.kubectl("create", "serviceaccount", "reader", "-n", namespace)
    rules = [
        {"apiGroups": [group], "resources": resources, "verbs": ["get", "list"]}
        for group, resources in READS.items()
    ]
    rbac = "rbac.authorization.k8s.io"
    metadata = {"name": "reader", "namespace": namespace}
    role = {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules}
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "RoleBinding",
        "metadata": metadata,
        "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "reader"},
        "subjects": [{"kind": "ServiceAccount", "name": "reader", "namespace": namespace}],
    }
    cluster.apply(role, binding)
    config = str(cluster.kubeconfig(namespace, "reader"))
    status, out, err = kars(cluster, "verify", "--kubeconfig", config, "-o", "json")
    assert (status, err) == (1, "")
    assert len(json.loads(out)[0]["refused"]) == 6
    status, out, err = kars(cluster, "verify", "--kubeconfig", config, "-A")
    assert (status, out) == (3, "")
    assert "forbidden" in err


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"egress": []},
        {"egress": [{}]},
        {"ingress": [{}]},
        {"ingress": [], "egress": [{}]},
        {"policyTypes": []},
        {"policyTypes": [], "egress": [{}]},
        {"policyTypes": ["Egress"]},
        {"policyTypes": ["Ingress"], "egress": [{}]},
    ],
)
def test_the_directions_are_those_that_the_api_server_fills_in(
    cluster: Cluster, namespace: str, spec: dict[str, Any]
) -> None:
    given = policy("a", namespace, **spec)
    text = cluster.kubectl("create", "-f", "-", "-o", "json", given=json.dumps(given))
    assert list(types(given)) == json.loads(text)["spec"]["policyTypes"]
