"""What docs/mcp.md says that people see when something is wrong, seen on a real API server."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import frozen

from cluster.harness import Cluster
from cluster.operator_kit import Api, condition, new_settings, operator, sandbox, server
from kars_router.kube import Kube
from kars_router.kube import resources as kinds

TOOLS = server("tools", "http://tools.mcp.svc:8931/mcp")


@frozen
class Symptom:
    """Something that is wrong, and what is said of the sandbox `it`.

    Attributes:
        objects: what is applied, in this order.
        condition: its type.
        reason: its reason.
        words: some of its message.
    """

    objects: tuple[dict[str, Any], ...]
    condition: str
    reason: str
    words: str


def config_map(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}}


def open_policy() -> dict[str, Any]:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "everything"},
        "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
    }


SYMPTOMS = {
    "a-reference-to-nothing": Symptom(
        (sandbox("it", "tools"),), "RefsResolved", "ServerMissing", "tools is not there"
    ),
    "a-server-that-does-not-allow-it": Symptom(
        (
            server(
                "tools",
                "http://tools.mcp.svc/mcp",
                allowedSandboxes={"matchLabels": {"team": "b"}},
            ),
            sandbox("it", "tools"),
        ),
        "RefsResolved",
        "ServerNotAllowed",
        "allowedSandboxes",
    ),
    "a-policy-that-is-not-there": Symptom(
        (sandbox("it", governance={"toolPolicyRef": {"name": "rules"}}),),
        "RefsResolved",
        "PolicyMissing",
        "every call is denied meanwhile",
    ),
    "a-policy-of-somebody-else": Symptom(
        (open_policy(), TOOLS, sandbox("it", "tools")),
        "EgressTight",
        "OpenedByOthers",
        "everything",
    ),
    "a-service-that-is-not-there": Symptom(
        (TOOLS, sandbox("it", "tools")),
        "EgressDerived",
        "NamespaceWide",
        "open to the whole namespace",
    ),
    "a-name-that-is-taken": Symptom(
        (config_map("it-router"), sandbox("it")), "Ready", "NameTaken", "ConfigMap"
    ),
    "no-image": Symptom(
        (sandbox("it", agent={}),), "RouterEnforcing", "NoAgentImage", "spec.agent.image"
    ),
    "no-node": Symptom((sandbox("it"),), "RouterEnforcing", "AwaitingRouter", "no address yet"),
    "suspended": Symptom(
        (sandbox("it", suspended=True),), "RouterEnforcing", "Suspended", "no router runs"
    ),
}


@pytest.mark.parametrize("name", SYMPTOMS)
async def test_what_is_wrong_is_said(
    cluster: Cluster, definitions: None, kube: Kube, namespace: str, name: str
) -> None:
    symptom, api = SYMPTOMS[name], Api(kube, namespace)

    def is_said(found: dict[str, Any] | None) -> bool:
        said = condition(found, symptom.condition)
        return said.get("reason") == symptom.reason and symptom.words in said["message"]

    async with operator(cluster.connection(), new_settings(), namespace):
        await api.apply(*symptom.objects)
        await api.until(kinds.KARS_SANDBOXES, "it", is_said)


async def test_a_namespace_that_does_not_admit_the_guard(
    cluster: Cluster, definitions: None, kube: Kube, namespace: str
) -> None:
    api = Api(kube, namespace)
    standard = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}}
    await kube.patch(kinds.NAMESPACES, namespace, None, standard)
    async with operator(cluster.connection(), new_settings(), namespace):
        await api.apply(sandbox("it"))
        found = await api.reason(kinds.KARS_SANDBOXES, "it", "RouterEnforcing", "RolloutFailed")
    assert "NET_ADMIN" in found["message"]


async def test_a_restart_that_somebody_asked_for_stays(
    cluster: Cluster, definitions: None, kube: Kube, namespace: str
) -> None:
    api = Api(kube, namespace)
    async with operator(cluster.connection(), new_settings(), namespace):
        await api.apply(sandbox("it"))
        await api.until(kinds.DEPLOYMENTS, "it", bool)
        restart = ["rollout", "restart", "deployment/it", "--namespace", namespace]
        await trio.to_thread.run_sync(cluster.kubectl, *restart)
        await api.apply(sandbox("it", suspended=True))
        found = await api.until(
            kinds.DEPLOYMENTS, "it", lambda found: found and found["spec"]["replicas"] == 0
        )
    annotations = found["spec"]["template"]["metadata"]["annotations"]
    assert "kubectl.kubernetes.io/restartedAt" in annotations
