"""The example with a browser in a cluster: what its README says of its manifests is so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from repository import ROOT
from ruamel.yaml import YAML

from kars_router.egress import Dns
from kars_router.egress.rules import to_world

EXAMPLE: Final = ROOT / "examples" / "playwright-mcp"


def manifest(kind: str) -> Any:
    """The one object of a kind in the example."""
    texts = (path.read_text(encoding="utf-8") for path in sorted(EXAMPLE.glob("*.yaml")))
    objects = (each for text in texts for each in YAML(typ="safe", pure=True).load_all(text))
    (found,) = (each for each in objects if each["kind"] == kind)
    return found


def settings(found: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Each plain value in an object, with the keys that lead to it."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from settings(value, (*path, key))
    elif isinstance(found, list):
        for value in found:
            yield from settings(value, path)
    else:
        yield path, found


def test_only_routers_get_at_the_browser() -> None:
    spec = manifest("NetworkPolicy")["spec"]
    routers = {"matchLabels": {"kars.azure.com/component": "sandbox"}}
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert spec["ingress"] == [
        {
            "from": [{"namespaceSelector": {}, "podSelector": routers}],
            "ports": [{"protocol": "TCP", "port": 8931}],
        }
    ]


def test_the_browser_gets_at_names_and_public_addresses() -> None:
    names, world = manifest("NetworkPolicy")["spec"]["egress"]
    assert names == Dns().rule()
    assert world["to"] == to_world(443)["to"]
    assert {each["port"] for each in world["ports"]} == {80, 443}


def test_the_policy_is_around_the_pods_of_the_service() -> None:
    pods = manifest("NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    assert pods == manifest("Service")["spec"]["selector"]
    assert pods == manifest("Deployment")["spec"]["template"]["metadata"]["labels"]


def test_one_line_of_the_sandbox_is_about_the_server() -> None:
    name = manifest("McpServer")["metadata"]["name"]
    about = [path for path, value in settings(manifest("KarsSandbox")) if value == name]
    assert about == [("spec", "governance", "mcpServerRefs", "name")]
    keys = {key for path, _ in settings(manifest("KarsSandbox")) for key in path}
    assert {key for key in keys if "mcp" in key.lower()} == {"mcpServerRefs"}
