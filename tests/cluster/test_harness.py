"""The cluster itself: what tests of ours rely on when they use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio

from cluster.harness import Cluster
from kars_router.kube import ForbiddenError, Kube, open_kube
from kars_router.kube.resources import CONFIG_MAPS


def config_map(namespace: str, **data: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "kept", "namespace": namespace},
        "data": data,
    }


def test_the_server_says_its_version(cluster: Cluster) -> None:
    said = json.loads(cluster.kubectl("version", "--output", "json"))
    server = said["serverVersion"]
    assert server["gitVersion"].startswith(f"v{server['major']}.{server['minor']}.")
    assert said["clientVersion"]["minor"] == server["minor"]


def test_what_is_applied_can_be_read(cluster: Cluster, namespace: str) -> None:
    cluster.apply(config_map(namespace, colour="red"))
    kept = cluster.get("configmap", "kept", namespace)
    assert kept["data"] == {"colour": "red"}
    cluster.kubectl("get", "configmap", "kept", "--namespace", namespace, "--show-managed-fields")


def test_a_service_account_may_do_what_it_was_granted_and_nothing_else(
    cluster: Cluster, namespace: str
) -> None:
    cluster.kubectl("create", "serviceaccount", "reader", "--namespace", namespace)
    reader = cluster.kubeconfig(namespace, "reader")
    refused = cluster.try_kubectl("get", "pods", kubeconfig=reader)
    assert refused.returncode == 1
    assert f'"system:serviceaccount:{namespace}:reader" cannot list resource' in refused.stderr

    role = ["create", "role", "reader", "--verb=list", "--resource=pods"]
    cluster.kubectl(*role, "--namespace", namespace)
    account = f"--serviceaccount={namespace}:reader"
    binding = ["create", "rolebinding", "reader", "--role=reader", account]
    cluster.kubectl(*binding, "--namespace", namespace)
    assert cluster.kubectl("get", "pods", "--output", "name", kubeconfig=reader) == ""
    assert cluster.try_kubectl("get", "secrets", kubeconfig=reader).returncode == 1


def test_somebody_without_credentials_is_refused(
    cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    config = json.loads(cluster.admin.read_text(encoding="utf-8"))
    config["users"][0]["user"] = {"token": "guessed"}
    stranger = tmp_path / "kubeconfig"
    stranger.write_text(json.dumps(config), encoding="utf-8")
    refused = cluster.try_kubectl("get", "namespaces", kubeconfig=stranger)
    assert refused.returncode == 1
    assert "Unauthorized" in refused.stderr


def test_a_restarted_server_has_kept_everything(cluster: Cluster, namespace: str) -> None:
    cluster.apply(config_map(namespace, colour="blue"))
    with cluster.api_server_down():
        assert cluster.try_kubectl("version", "--request-timeout=5s").returncode == 1
    assert cluster.get("configmap", "kept", namespace)["data"] == {"colour": "blue"}


def test_controllers_make_pods_and_collect_what_nobody_owns(
    cluster: Cluster, namespace: str
) -> None:
    where = ["--namespace", namespace]
    cluster.kubectl("create", "deployment", "idle", "--image=idle", "--replicas=2", *where)
    # Without a node a pod is never ready; that it is there is enough.
    cluster.kubectl("wait", "--for=create", "pod", "--selector=app=idle", "--timeout=60s", *where)
    cluster.kubectl("delete", "deployment", "idle", "--cascade=background", *where)
    wait = ["wait", "--for=delete", "--selector=app=idle", "--timeout=60s"]
    cluster.kubectl(*wait, "pod,replicaset", *where)
    assert cluster.get("pods", namespace=namespace)["items"] == []


def test_a_deleted_namespace_takes_everything_with_it(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl("create", "namespace", f"{namespace}-2")
    cluster.apply(config_map(f"{namespace}-2", colour="green"))
    cluster.kubectl("delete", "namespace", f"{namespace}-2", "--timeout=60s")
    gone = cluster.try_kubectl("get", "namespace", f"{namespace}-2")
    assert "NotFound" in gone.stderr


def test_a_namespace_that_is_deleted_during_a_restart_is_deleted_whole(
    cluster: Cluster, namespace: str
) -> None:
    inner = f"{namespace}-2"
    cluster.kubectl("create", "namespace", inner)
    where = ["--namespace", inner]
    cluster.kubectl("create", "deployment", "idle", "--image=idle", *where)
    cluster.kubectl("delete", "namespace", inner, "--wait=false")
    with cluster.api_server_down():
        pass
    cluster.kubectl("wait", "--for=delete", "namespace", inner, "--timeout=60s")
    left = cluster.get("deployments,replicasets,pods", namespace=inner)
    assert left["items"] == []


async def test_our_own_client_is_the_administrator_or_an_account(
    cluster: Cluster, kube: Kube, namespace: str
) -> None:
    applied = await kube.apply(config_map(namespace, colour="red"), manager="test")
    assert applied["data"] == {"colour": "red"}
    file = await trio.to_thread.run_sync(cluster.kubeconfig, namespace, "default")
    async with open_kube(cluster.connection(file)) as nobody:
        with pytest.raises(ForbiddenError):
            await nobody.get(CONFIG_MAPS, "kept", namespace)
