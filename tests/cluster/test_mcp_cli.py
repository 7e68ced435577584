"""`kars mcp` as a process, against a real API server that knows the operator's definitions."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from unit.cli.mcp_kit import FLAGS, SPEC

from cluster.cli_kit import run_kars
from cluster.harness import Cluster

Kars = Callable[..., subprocess.CompletedProcess[str]]

PLAIN = ("--url", "http://web:8080/mcp", "--allowed-tool", "*")


@pytest.fixture
def kars(cluster: Cluster, definitions: None, namespace: str) -> Kars:
    """Runs `kars mcp` in the test's namespace."""

    def run(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        place = () if "-A" in words else ("-n", namespace)
        return run_kars(cluster, "mcp", *words, *place, given=given)

    return run


def server(cluster: Cluster, namespace: str, name: str = "web") -> dict[str, Any]:
    return cluster.get("mcpserver", name, namespace)


def test_every_flag_is_taken_by_the_cluster(kars: Kars, cluster: Cluster, namespace: str) -> None:
    dry = kars("apply", "web", *FLAGS, "--dry-run")
    assert (dry.returncode, dry.stdout) == (0, f"McpServer {namespace}/web created (dry run)\n")
    assert cluster.try_kubectl("get", "mcpserver", "web", "-n", namespace).returncode == 1

    made = kars("apply", "web", *FLAGS)
    assert (made.returncode, made.stdout) == (0, f"McpServer {namespace}/web created\n")
    found = server(cluster, namespace)
    assert found["spec"] == SPEC
    assert {each["manager"] for each in _managers(cluster, namespace)} == {"kars-cli"}

    assert kars("apply", "web", *FLAGS).stdout == f"McpServer {namespace}/web unchanged\n"
    assert kars("apply", "web", *PLAIN).stdout == f"McpServer {namespace}/web configured\n"
    assert server(cluster, namespace)["spec"] == {
        "url": "http://web:8080/mcp",
        "allowedTools": ["*"],
    }


def _managers(cluster: Cluster, namespace: str) -> list[dict[str, Any]]:
    shown = ["-o", "json", "--show-managed-fields", "-n", namespace]
    found = json.loads(cluster.kubectl("get", "mcpserver", "web", *shown))
    return list(found["metadata"]["managedFields"])


def test_fields_of_others_are_named_and_left_alone(
    kars: Kars, cluster: Cluster, namespace: str
) -> None:
    manifest: dict[str, Any] = {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": "McpServer",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"url": "http://theirs/mcp", "allowedTools": ["theirs"], "displayName": "Theirs"},
    }
    # Once by server-side apply, and once by the older way, whose manager has another operation.
    cluster.apply(manifest)
    change = json.dumps({"spec": {"displayName": "Changed"}})
    patch = ["patch", "mcpserver", "web", "-n", namespace, "--type", "merge", "--patch", change]
    cluster.kubectl(*patch, "--field-manager", "somebody")

    words = ("apply", "web", *PLAIN, "--display-name", "Ours")
    done = kars(*words)
    assert done.returncode == 1
    *lines, advice = done.stderr.splitlines()
    assert sorted(lines) == [
        "kars: spec.allowedTools: set by kubectl",
        "kars: spec.displayName: set by somebody",
        "kars: spec.url: set by kubectl",
    ]
    assert advice == "kars: nothing was changed; --force-conflicts takes these fields"
    assert server(cluster, namespace)["spec"] == {**manifest["spec"], "displayName": "Changed"}

    forced = kars(*words, "--force-conflicts")
    assert (forced.returncode, forced.stderr) == (0, "")
    assert server(cluster, namespace)["spec"] == {
        "url": "http://web:8080/mcp",
        "allowedTools": ["*"],
        "displayName": "Ours",
    }


def test_servers_are_listed_shown_and_deleted(kars: Kars, cluster: Cluster, namespace: str) -> None:
    assert kars("list").stdout == f"no McpServers in {namespace}; -A looks everywhere\n"
    for name in ("web", "files"):
        kars("apply", name, *PLAIN)
    status = {
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "RouterEnforcing",
                "message": "",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ]
    }
    patch = ["patch", "mcpserver", "web", "-n", namespace, "--type", "merge"]
    cluster.kubectl(*patch, "--subresource", "status", "--patch", json.dumps({"status": status}))
    headings, files, web = kars("list").stdout.splitlines()
    assert headings.split() == ["NAME", "URL", "PROD", "AGE", "STATUS", "REASON"]
    assert re.match(r"files +http://web:8080/mcp +no +\d+[smh] +Pending$", files)
    assert re.match(r"web +http://web:8080/mcp +no +\d+[smh] +Ready +RouterEnforcing$", web)
    listed = json.loads(kars("list", "-A", "-o", "json").stdout)
    ours = [each for each in listed if each["metadata"]["namespace"] == namespace]
    assert [each["metadata"]["name"] for each in ours] == ["files", "web"]
    assert {each["kind"] for each in ours} == {"McpServer"}

    assert "Ready (RouterEnforcing)" in kars("get", "web").stdout
    printed = kars("get", "web", "-o", "yaml").stdout
    again = kars("apply", "--from-file", "-", given=printed)
    assert (again.returncode, again.stdout) == (0, f"McpServer {namespace}/web unchanged\n")

    asked = kars("delete", "web")
    assert asked.returncode == 2
    assert "there is no terminal to ask on; add --no-prompt" in asked.stderr
    gone = kars("delete", "web", "--no-prompt")
    assert (gone.returncode, gone.stdout) == (0, f"McpServer {namespace}/web deleted\n")
    for words in (("get", "web"), ("delete", "web", "--no-prompt")):
        missing = kars(*words)
        assert missing.returncode == 1
        assert missing.stderr == f"kars: there is no McpServer {namespace}/web\n"


def test_what_the_server_alone_can_know_is_told(kars: Kars, cluster: Cluster) -> None:
    done = run_kars(cluster, "mcp", "apply", "web", *PLAIN, "-n", "no-such-place")
    assert done.returncode == 1
    assert 'namespaces "no-such-place" not found' in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_account_without_rights_is_told(
    kars: Kars, cluster: Cluster, namespace: str, tmp_path: Path
) -> None:
    kubeconfig = cluster.kubeconfig(namespace, "default")
    for words in (("list",), ("get", "web"), ("apply", "web", *PLAIN)):
        done = kars(*words, "--kubeconfig", str(kubeconfig))
        assert done.returncode == 3
        assert "cannot" in done.stderr
        assert done.stderr.count("\n") == 1


def test_a_server_that_is_down_is_told(kars: Kars, cluster: Cluster) -> None:
    with cluster.api_server_down():
        done = kars("list")
    assert done.returncode == 3
    assert done.stderr.startswith(f"kars: the API server {cluster.url} cannot be reached: ")
    assert done.stderr.count("\n") == 1
