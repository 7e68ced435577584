"""The pod of a sandbox: the guard, the router beside the agent, and the agent.

Owns what each container may do. Pure. Must not know how a pod gets into a cluster.

Source: Kubernetes "Sidecar Containers" (an init container that is restarted always runs beside the
others, starts before them and ends after them); "Pod Security Standards", restricted, which all but
the guard keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from kars_operator import names
from kars_operator.settings import Settings
from kars_router.config.resources import Agent, EnvVar, KarsSandboxResource, Resources

_SCRATCH: Final = "/tmp"  # noqa: S108 - a directory of the container's own
_ROUTER_RESOURCES: Final = {
    "requests": {"cpu": "50m", "memory": "64Mi"},
    "limits": {"memory": "256Mi"},
}
_GUARD_RESOURCES: Final = {
    "requests": {"cpu": "10m", "memory": "32Mi"},
    "limits": {"memory": "64Mi"},
}
_ADMIN: Final = "admin"
# What these are anyway, said so that nobody else can make them true beside us: no NetworkPolicy is
# for a pod in the network of its node, and the guard's rules would be the node's.
_APART: Final = dict.fromkeys(("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"), False)


@frozen(kw_only=True)
class Needs:
    """What the router's configuration asks of the pod.

    Attributes:
        servers: names of the servers.
        variables: names of the variables that hold tokens.
        restart_on: changes with what a running router does not take over.
    """

    servers: Sequence[str] = ()
    variables: Sequence[str] = ()
    restart_on: str = ""


def deployment(
    sandbox: KarsSandboxResource, needs: Needs, settings: Settings, namespace: str
) -> dict[str, Any]:
    """The Deployment of a sandbox.

    One pod at a time: two would share an agent's servers, and each would hold half of the state.

    Args:
        sandbox: it, with an image for its agent.
        needs: what its router asks for.
        settings: the operator's.
        namespace: where it goes.
    """
    name = sandbox.meta.name
    labels = names.labels_of(name, sandbox.meta.namespace)
    pod_labels = names.pod_labels_of(name, sandbox.meta.namespace)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "replicas": 0 if sandbox.spec.suspended else 1,
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 2,
            "selector": {"matchLabels": pod_labels},
            "template": {
                "metadata": {
                    "labels": pod_labels,
                    "annotations": {names.RESTARTS: needs.restart_on},
                },
                "spec": _pod(sandbox, needs, settings),
            },
        },
    }


def _pod(sandbox: KarsSandboxResource, needs: Needs, settings: Settings) -> dict[str, Any]:
    name = sandbox.meta.name
    made: dict[str, Any] = {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **_APART,
        # Time for the router to end calls after the agent has gone, and to be killed if it cannot.
        "terminationGracePeriodSeconds": settings.grace + 5,
        "securityContext": {
            "fsGroup": names.ROUTER_UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [
            _guard(sandbox, settings),
            _router(sandbox, needs, settings),
        ],
        "containers": [_agent(sandbox, needs, settings)],
        "volumes": [
            {"name": "config", "configMap": {"name": names.config_map(name)}},
            {"name": "state", "emptyDir": {"sizeLimit": "512Mi"}},
            {"name": "scratch", "emptyDir": {}},
        ],
    }
    if settings.pull_secrets:
        made["imagePullSecrets"] = [{"name": each} for each in settings.pull_secrets]
    return made


def _guard(sandbox: KarsSandboxResource, settings: Settings) -> dict[str, Any]:
    return {
        "name": "guard",
        "image": sandbox.spec.router.image or settings.router_image,
        "args": settings.guard().arguments(),
        "securityContext": {
            # Rules are the kernel's, and belong to the pod's network: root and this one right.
            "runAsUser": 0,
            "runAsGroup": 0,
            "privileged": False,
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        },
        "resources": _GUARD_RESOURCES,
    }


def _router(sandbox: KarsSandboxResource, needs: Needs, settings: Settings) -> dict[str, Any]:
    given = sandbox.spec.router
    ours = {"KARS_STATE_DIR": names.STATE_DIRECTORY}
    # Whoever writes a server names its variable; one that is there already stays as it is.
    written = {*ours, *(each.name for each in given.env)}
    secret = names.credentials(sandbox.meta.name)
    from_secret = [
        {"name": each, "valueFrom": {"secretKeyRef": {"name": secret, "key": each}}}
        for each in needs.variables
        if each not in written
    ]
    return {
        "name": "router",
        "image": given.image or settings.router_image,
        "restartPolicy": "Always",
        "args": ["run", "-c", f"{names.CONFIG_DIRECTORY}/{names.CONFIG_FILE}"],
        "env": _variables(ours, given.env) + from_secret,
        "ports": [{"name": _ADMIN, "containerPort": settings.admin_port}],
        "securityContext": _confined(names.ROUTER_UID, read_only=True),
        # The agent starts when the router answers; it is restarted when it no longer does.
        "startupProbe": _probe("/healthz", period=1, failures=60),
        "livenessProbe": _probe("/healthz", period=10, failures=3),
        "readinessProbe": _probe("/readyz", period=5, failures=2),
        "resources": _resources(given.resources) or _ROUTER_RESOURCES,
        "volumeMounts": [
            {"name": "config", "mountPath": names.CONFIG_DIRECTORY, "readOnly": True},
            {"name": "state", "mountPath": names.STATE_DIRECTORY},
        ],
    }


def _agent(sandbox: KarsSandboxResource, needs: Needs, settings: Settings) -> dict[str, Any]:
    agent: Agent = sandbox.spec.container
    url = f"http://127.0.0.1:{settings.agent_port}/mcp"
    made: dict[str, Any] = {
        "name": "agent",
        "image": agent.image or settings.agent_images.get(sandbox.spec.runtime.kind or "", ""),
        "env": _variables(
            {"KARS_MCP_URL": url, "KARS_MCP_SERVERS": ",".join(needs.servers)}, agent.env
        ),
        "envFrom": _given_to_agent(sandbox.meta.name),
        "securityContext": _confined(names.AGENT_UID, read_only=False),
        "volumeMounts": [{"name": "scratch", "mountPath": _SCRATCH}],
    }
    further = {
        "command": list(agent.command),
        "args": list(agent.args),
        "workingDir": agent.working_dir,
        "resources": _resources(agent.resources),
    }
    return {**made, **{key: value for key, value in further.items() if value}}


def _given_to_agent(sandbox: str) -> list[dict[str, Any]]:
    name = names.agent_credentials(sandbox)
    if name.endswith(names.credentials("")):
        return []  # it is that of the router of a sandbox with a shorter name
    return [{"secretRef": {"name": name, "optional": True}}]


def _confined(uid: int, *, read_only: bool) -> dict[str, Any]:
    return {
        "runAsUser": uid,
        "runAsGroup": uid,
        "runAsNonRoot": True,
        "privileged": False,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": read_only,
        "capabilities": {"drop": ["ALL"]},
    }


def _probe(path: str, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": _ADMIN},
        "periodSeconds": period,
        "failureThreshold": failures,
        "timeoutSeconds": 2,
    }


def _variables(ours: Mapping[str, str], given: Sequence[EnvVar]) -> list[dict[str, Any]]:
    """Variables by name, each once: what the sandbox says wins, and the last of its own."""
    found: dict[str, dict[str, Any]] = {
        name: {"name": name, "value": value} for name, value in ours.items()
    }
    for each in given:
        found[each.name] = (
            {"name": each.name, "value": each.value or ""}
            if each.value_from is None
            else {"name": each.name, "valueFrom": each.value_from}
        )
    return list(found.values())


def _resources(resources: Resources) -> Mapping[str, Any]:
    both = {"requests": dict(resources.requests), "limits": dict(resources.limits)}
    return {key: value for key, value in both.items() if value}
