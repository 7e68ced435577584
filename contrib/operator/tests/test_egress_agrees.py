"""`kars egress render` and `verify` mean the policy that the operator applies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

API = "kars.azure.com/v1alpha1"


def custom(kind: str, name: str, spec: Any, namespace: str = "agents", **labels: str) -> Any:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}


SERVERS = {
    "pods": {"url": "http://db.tools.svc:81"},
    "space": {"url": "http://db.elsewhere:82"},
    "far": {"url": "https://mcp.vendor.example", "allowedNetworks": ["10.2.0.0/16"]},
    "far-port": {"url": "https://mcp.vendor.example:8443"},
    "address": {"url": "http://[fd00::1]:8080"},
    "issued": {
        "url": "http://db.tools.svc:81",
        "oauth": {
            "issuer": "https://login.example:9443",
            "clientIdFromEnv": "ID",
            "clientSecretFromEnv": "SECRET",
        },
    },
    "picky": {"url": "http://picky.tools.svc", "allowedSandboxes": {"matchLabels": {"a": "b"}}},
    "nowhere": {"url": "http://0.0.0.0"},
}
OTHER = custom("McpServer", "other", {"url": "http://other.tools.svc"}, "elsewhere")
SERVICE = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "db", "namespace": "tools"},
    "spec": {"selector": {"app": "db"}, "ports": [{"port": 81, "targetPort": "mcp"}]},
}


def sandboxes() -> list[Any]:
    def of(name: str, *refs: Any, **labels: str) -> Any:
        named = [{"name": each} if isinstance(each, str) else each for each in refs]
        return custom("KarsSandbox", name, {"governance": {"mcpServerRefs": named}}, **labels)

    return [
        of("all", *SERVERS),
        of("picked", "picky", {"name": "other", "namespace": "elsewhere"}, "missing", a="b"),
        of("none"),
    ]


def policies(module: str, *words: str) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; from {module} import main; sys.exit(main())", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # some references lead to nothing
    found = YAML(typ="safe", pure=True).load_all(done.stdout)
    return [each for each in found if each["kind"] == "NetworkPolicy"]


@pytest.mark.parametrize(
    "told",
    [
        (),
        ("--placement", "own", "--namespace-prefix", "box-"),
        ("--operator-namespace", "ops", "--admin-port", "9100"),
        ("--cluster-domain", "k8s.example", "--dns-namespace", "dns", "--dns-label", "app=dns"),
        ("--dns-network", "169.254.20.10/32"),
    ],
)
def test_the_same_policy(tmp_path: Path, told: tuple[str, ...]) -> None:
    servers = [custom("McpServer", name, spec) for name, spec in SERVERS.items()]
    file = tmp_path / "all.json"
    file.write_text(json.dumps({"kind": "List", "items": [*servers, OTHER, SERVICE, *sandboxes()]}))
    ours = policies("kars_router.cli.main", "egress", "render", "-f", str(file), *told)
    assert [each["metadata"]["name"] for each in ours] == ["all", "none", "picked"]
    assert ours == policies("kars_operator.main", "render", "-f", str(file), *told)
