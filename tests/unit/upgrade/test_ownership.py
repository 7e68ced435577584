"""Paths into objects, as `fieldsV1` and the API server write them."""

from __future__ import annotations

from typing import Any

import pytest

from kars_router.upgrade.ownership import MISSING, Owner, entries, lost, shown, value_at

PORT = 'k:{"port":80,"protocol":"TCP"}'


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (("f:spec", "f:replicas"), ".spec.replicas"),
        (("f:metadata", "f:labels", "f:a.b/c"), ".metadata.labels.a.b/c"),
        (("f:spec", "f:ports", PORT, "f:name"), '.spec.ports[port=80,protocol="TCP"].name'),
        (('k:{"b":true,"a":null}',), "[a=null,b=true]"),
        (("f:finalizers", 'v:"x/y"'), '.finalizers[="x/y"]'),
        (("f:numbers", "v:1"), ".numbers[=1]"),
        (("f:list", "i:0"), ".list[0]"),
        (('k:{"name":"\\"\u00e9"}',), '[name="\\"\u00e9"]'),
    ],
)
def test_paths_as_the_server_writes_them(path: tuple[str, ...], text: str) -> None:
    assert shown(path) == text


OBJECT: dict[str, Any] = {
    "metadata": {"finalizers": ["x/y"], "labels": {"a.b/c": "1"}},
    "spec": {"ports": [{"port": 81}, {"port": 80, "name": "web"}], "empty": None},
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), OBJECT),
        (("f:metadata", "f:labels", "f:a.b/c"), "1"),
        (("f:metadata", "f:finalizers", 'v:"x/y"'), "x/y"),
        (("f:metadata", "f:finalizers", 'v:"z"'), MISSING),
        (("f:metadata", "f:finalizers", "i:0"), "x/y"),
        (("f:metadata", "f:finalizers", "i:1"), MISSING),
        # The server has filled in a default that a manifest need not have.
        (("f:spec", "f:ports", PORT, "f:name"), "web"),
        (("f:spec", "f:ports", 'k:{"port":82}'), MISSING),
        (("f:spec", "f:ports", 'k:{"other":82}'), MISSING),
        (("f:spec", "f:ports", "f:name"), MISSING),
        (("f:spec", PORT), MISSING),
        (("f:spec", "f:empty"), None),
        (("f:spec", "f:empty", "f:more"), MISSING),
    ],
)
def test_values_at_paths(path: tuple[str, ...], value: object) -> None:
    assert value_at(OBJECT, path) == value


def managed(*trees: dict[str, Any]) -> dict[str, Any]:
    listed = [
        {"manager": f"m{number}", "operation": "Update", "apiVersion": "v1", "fieldsV1": tree}
        for number, tree in enumerate(trees)
    ]
    return {"metadata": {"managedFields": listed}}


def test_what_is_owned() -> None:
    tree: dict[str, Any] = {
        "f:spec": {"f:a": {}, "f:list": {".": {}, "k:{}": {".": {}, "f:x": {}}, 'v:"y"': {}}}
    }
    (entry,) = entries(managed(tree))
    assert entry.owner == Owner("m0", "Update", "v1")
    assert entry.paths() == {
        ("f:spec", "f:a"),
        ("f:spec", "f:list"),
        ("f:spec", "f:list", "k:{}"),
        ("f:spec", "f:list", "k:{}", "f:x"),
        ("f:spec", "f:list", 'v:"y"'),
    }
    assert entry.values() == {
        ("f:spec", "f:a"),
        ("f:spec", "f:list", "k:{}", "f:x"),
        ("f:spec", "f:list", 'v:"y"'),
    }


@pytest.mark.parametrize(
    "manifest", [{}, {"metadata": {}}, {"metadata": {"managedFields": None}}, {"metadata": None}]
)
def test_an_object_that_nobody_owns(manifest: dict[str, Any]) -> None:
    assert entries(manifest) == ()


def test_entries_without_fields() -> None:
    listed = [{"manager": "a", "operation": "Update", "apiVersion": "v1"}]
    (entry,) = entries({"metadata": {"managedFields": listed}})
    assert (entry.paths(), entry.time) == (frozenset(), "")


def test_what_is_lost() -> None:
    before = managed({"f:a": {}, "f:b": {}}, {"f:c": {}})
    after = managed({"f:b": {}})
    found = [(entry.owner.manager, path) for entry, path in lost(before, after)]
    assert found == [("m0", ("f:a",)), ("m1", ("f:c",))]
    assert list(lost(before, before)) == []
