"""The definitions as a whole, and the files that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kars_operator import crds

ROOT = Path(__file__).parent.parent
PLACES = [path for path in (ROOT / "manifests" / "crds", ROOT / "chart" / "crds") if path.is_dir()]
MANIFESTS = crds.crd_manifests()
KINDS = [manifest["spec"]["names"]["kind"] for manifest in MANIFESTS]


def version(manifest: crds.Manifest) -> dict[str, Any]:
    (only,) = manifest["spec"]["versions"]
    found: dict[str, Any] = only
    return found


def test_there_is_one_for_each_kind() -> None:
    assert KINDS == ["McpServer", "KarsSandbox", "ToolPolicy"]


@pytest.mark.parametrize("place", PLACES, ids=lambda path: path.parent.name)
def test_the_files_hold_what_is_made(place: Path) -> None:
    held = {path.name: path.read_text(encoding="utf-8") for path in place.iterdir()}
    made = {crds.file_name(each): crds.written(each) for each in MANIFESTS}
    assert held == made, f"run python -m kars_operator.crds {place}"


def test_writing_is_repeatable(tmp_path: Path) -> None:
    places = [tmp_path / "one" / "deep", tmp_path / "two"]
    assert crds.main([str(each) for each in places]) == 0
    one, two = ([path.read_bytes() for path in sorted(each.iterdir())] for each in places)
    assert len(one) == 3
    assert one == two
    assert crds.main([str(places[0])]) == 0
    assert [path.read_bytes() for path in sorted(places[0].iterdir())] == one


def test_a_directory_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert crds.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: ")


@pytest.mark.parametrize("manifest", MANIFESTS, ids=KINDS)
def test_names_are_as_kubernetes_wants_them(manifest: crds.Manifest) -> None:
    spec, names = manifest["spec"], manifest["spec"]["names"]
    assert manifest["metadata"]["name"] == f"{names['plural']}.kars.azure.com"
    assert names["singular"] == names["kind"].lower()
    assert names["categories"] == ["kars"]
    assert spec["scope"] == "Namespaced"
    assert version(manifest)["name"] == "v1alpha1"
    assert version(manifest)["subresources"] == {"status": {}}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("McpServer", ["URL", "Production", "Ready", "Reason", "Age"]),
        ("KarsSandbox", ["Ready", "Router", "Tight", "Servers", "Reason", "Age"]),
        ("ToolPolicy", ["Tool", "Default", "Ready", "Reason", "Age"]),
    ],
)
def test_columns(kind: str, expected: list[str]) -> None:
    columns = version(MANIFESTS[KINDS.index(kind)])["additionalPrinterColumns"]
    assert [each["name"] for each in columns if "priority" not in each] == expected


def test_short_names_are_different() -> None:
    short = [name for each in MANIFESTS for name in each["spec"]["names"]["shortNames"]]
    assert sorted(short) == ["ks", "mcp", "tp"]


@pytest.mark.parametrize("manifest", MANIFESTS, ids=KINDS)
def test_everything_is_described(manifest: crds.Manifest) -> None:
    spec = version(manifest)["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert list(undescribed(spec, "spec")) == []


def undescribed(schema: dict[str, Any], path: str) -> list[str]:
    found = []
    for key, inner in schema.get("properties", {}).items():
        if "description" not in inner:
            found.append(f"{path}.{key}")
        found += undescribed(inner, f"{path}.{key}")
    if "items" in schema:
        found += undescribed(schema["items"], f"{path}[]")
    return found
