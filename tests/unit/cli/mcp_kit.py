"""`kars mcp` in this process, with a fake API server on a socket."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from attrs import define, frozen

from kars_router.cli.main import main
from kars_router.kube.resources import MCP_SERVERS
from kars_router.testing.kube import FakeCluster

Manifest = dict[str, Any]

FLAGS: Final = (
    *("--url", "https://web.example.com/mcp", "--production-mode"),
    *("--oauth-issuer", "https://issuer.example.com", "--oauth-audience", "web"),
    *("--oauth-resource", "https://web.example.com/mcp", "--scope", "read", "--scope", "write"),
    *("--allowed-tool", "get_*", "--allowed-tool", "list", "--display-name", "The web"),
    *("--allowed-sandbox-label", "team=a", "--allowed-sandbox-label", "x/y=b"),
    *("--bearer-from-env", "WEB_TOKEN"),
)
SPEC: Final[Manifest] = {
    "url": "https://web.example.com/mcp",
    "productionMode": True,
    "oauth": {
        "issuer": "https://issuer.example.com",
        "audience": "web",
        "resource": "https://web.example.com/mcp",
    },
    "scopes": ["read", "write"],
    "allowedTools": ["get_*", "list"],
    "displayName": "The web",
    "allowedSandboxes": {"matchLabels": {"team": "a", "x/y": "b"}},
    "bearerFromEnv": "WEB_TOKEN",
}


@frozen
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str


@define(eq=False)
class Bench:
    """The command line in this process, and a cluster for it."""

    cluster: FakeCluster
    kubeconfig: Path
    capsys: pytest.CaptureFixture[str]

    async def kars(self, *words: str) -> Done:
        arguments = ["mcp", *words, "--kubeconfig", str(self.kubeconfig)]
        status = await trio.to_thread.run_sync(functools.partial(main, arguments))
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return Done(status, out, err)

    def spec(self, name: str, namespace: str = "default") -> Any:
        found = self.cluster.find(MCP_SERVERS, name, namespace)
        return None if found is None else found["spec"]

    def put(self, name: str = "web", **more: Any) -> Manifest:
        manifest = {
            "apiVersion": "kars.azure.com/v1alpha1",
            "kind": "McpServer",
            "metadata": {"name": name, **more.pop("metadata", {})},
            "spec": {"url": "http://web.tools.svc:8080/mcp", "allowedTools": ["*"]},
        }
        return self.cluster.put({**manifest, **more})


def condition(status: str, reason: str, **more: Any) -> Manifest:
    """A condition `Ready`, as the operator writes it."""
    return {"type": "Ready", "status": status, "reason": reason, "message": "It says.", **more}
