"""Every manifest that we ship is one that a real API server takes, and takes without a warning."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cluster_assets import find, wanted_kubernetes
from peers import REPOSITORY, missing
from ruamel.yaml import YAML

from cluster.harness import Cluster

OPERATOR = REPOSITORY / "contrib" / "operator"
CHART = OPERATOR / "chart"
CHART_NAMESPACE = "kars-system"


def objects(text: str) -> list[dict[str, Any]]:
    """The Kubernetes objects of a YAML file; a configuration of the router holds none."""
    found = YAML(typ="safe", pure=True).load_all(text)
    return [each for each in found if isinstance(each, dict) and {"apiVersion", "kind"} <= {*each}]


def manifests() -> list[Any]:
    """Each file with objects as a test parameter, in the order in which people apply them."""
    places = [OPERATOR / "manifests", REPOSITORY / "examples"]
    files = sorted(path for place in places for path in place.rglob("*.y*ml"))
    return [
        pytest.param(path, id=str(path.relative_to(REPOSITORY)))
        for path in files
        if objects(path.read_text(encoding="utf-8"))
    ]


def charts() -> list[Any]:
    """What the chart is rendered with: its defaults, and each file of values for such checks."""
    if not (CHART / "Chart.yaml").exists():
        return []
    values = [pytest.param(path, id=path.stem) for path in sorted(CHART.glob("ci/*.yaml"))]
    return [pytest.param(None, id="defaults"), *values]


def accept(cluster: Cluster, text: str) -> None:
    """Fail the test unless the API server would take all objects of a YAML text."""
    listed = objects(text)
    assert listed
    namespaces = {each["metadata"].get("namespace", CHART_NAMESPACE) for each in listed}
    # An object is checked only in a namespace that is there, dry run or not.
    for name in sorted(namespaces):
        cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    cluster.kubectl(*STRICT, given=text)


STRICT = (
    *("apply", "--server-side", "--dry-run=server", "--validate=strict", "--warnings-as-errors"),
    # A namespace that was made for the check belongs to whoever made it.
    *("--force-conflicts", "--filename", "-"),
)


@pytest.mark.parametrize("path", manifests())
def test_a_manifest_is_valid(cluster: Cluster, definitions: None, path: Path) -> None:
    accept(cluster, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("values", charts())
def test_the_rendered_chart_is_valid(
    cluster: Cluster, definitions: None, values: Path | None
) -> None:
    helm = find("helm", wanted_kubernetes())
    if helm is None:
        missing("no helm: `python tools/cluster_assets.py helm` gets it")
    command = [str(helm), "template", "kars-operator", str(CHART), "--include-crds"]
    command += ["--namespace", CHART_NAMESPACE, *(["--values", str(values)] if values else [])]
    rendered = subprocess.run(
        command,
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert rendered.returncode == 0, rendered.stderr
    # Without a namespace for the rest: every object says where it belongs.
    accept(cluster, rendered.stdout)


MCP_SERVER = {"apiVersion": "kars.azure.com/v1alpha1", "kind": "McpServer"}
URL = "http://tools.mcp.svc/mcp"


@pytest.mark.parametrize(
    ("manifest", "complaint"),
    [
        ({"apiVersion": "v1", "kind": "ConfigMap", "dta": {}}, ".dta: field not declared"),
        ({**MCP_SERVER, "spec": {"url": URL, "alowed": []}}, ".spec.alowed: field not declared"),
        ({**MCP_SERVER, "spec": {"url": ["a", "list"]}}, "spec.url"),
    ],
)
def test_an_invalid_manifest_is_refused(
    cluster: Cluster, definitions: None, manifest: dict[str, Any], complaint: str
) -> None:
    given = json.dumps({"metadata": {"name": "invalid"}, **manifest})
    refused = cluster.try_kubectl(*STRICT, given=given)
    assert refused.returncode == 1
    assert complaint in refused.stderr
