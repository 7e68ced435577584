"""The CustomResourceDefinitions, and the files that hold them.

Owns what stands around the schemas: names, columns, the status. The schemas come from the classes
that read the resources. Pure but for `main`, which writes the files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from kars_router.config.manifests import write_manifests
from kars_router.config.openapi import resource_schema
from kars_router.config.resources import GROUP, VERSION

Manifest = dict[str, Any]

_HEADER: Final = "# Made by `python -m kars_operator.crds`; a test compares the two.\n"


@frozen(kw_only=True)
class _Column:
    """A column of `kubectl get`.

    Attributes:
        name: its head.
        path: where its value is.
        type: what its value is.
        wide: whether it is shown with `-o wide` only.
    """

    name: str
    path: str
    type: str = "string"
    wide: bool = False


@frozen(kw_only=True)
class _Names:
    """How one kind is called, and what is shown of it."""

    plural: str
    short: Sequence[str]
    columns: Sequence[_Column]


def _condition(name: str, type_: str, key: str = "status", *, wide: bool = False) -> _Column:
    path = f'.status.conditions[?(@.type=="{type_}")].{key}'
    return _Column(name=name, path=path, wide=wide)


_READY: Final = _condition("Ready", "Ready")
_REASON: Final = _condition("Reason", "Ready", "reason")
_MESSAGE: Final = _condition("Message", "Ready", "message", wide=True)
_AGE: Final = _Column(name="Age", path=".metadata.creationTimestamp", type="date")
_KINDS: Final[Mapping[str, _Names]] = {
    "McpServer": _Names(
        plural="mcpservers",
        short=("mcp",),
        columns=(
            _Column(name="URL", path=".spec.url"),
            _Column(name="Production", path=".spec.productionMode", type="boolean"),
            _READY,
            _REASON,
            _MESSAGE,
            _AGE,
        ),
    ),
    "KarsSandbox": _Names(
        plural="karssandboxes",
        short=("ks",),
        columns=(
            _READY,
            _condition("Router", "RouterEnforcing"),
            _condition("Tight", "EgressTight"),
            _Column(name="Servers", path=".status.serversResolved"),
            _REASON,
            _MESSAGE,
            _AGE,
        ),
    ),
    "ToolPolicy": _Names(
        plural="toolpolicies",
        short=("tp",),
        columns=(
            _Column(name="Tool", path=".spec.appliesTo.tool"),
            _Column(name="Default", path=".spec.default"),
            _READY,
            _REASON,
            _MESSAGE,
            _AGE,
        ),
    ),
}


def crd_manifests() -> list[Manifest]:
    """The definitions of all three kinds, always in the same order and always the same."""
    return [_manifest(kind, names) for kind, names in _KINDS.items()]


def file_name(manifest: Mapping[str, Any]) -> str:
    """The name of the file that holds a definition."""
    return f"{manifest['spec']['names']['plural']}.yaml"


def written(manifest: Mapping[str, Any]) -> str:
    """What the file of a definition holds; the same definition always gives the same text."""
    return f"{_HEADER}{write_manifests([dict(manifest)])}"


def write(directory: Path) -> list[Path]:
    """Writes a file for each definition; returns them."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for manifest in crd_manifests():
        path = directory / file_name(manifest)
        path.write_text(written(manifest), encoding="utf-8")
        paths.append(path)
    return paths


def _manifest(kind: str, names: _Names) -> Manifest:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{names.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/part-of": "kars-router"},
        },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind,
                "listKind": f"{kind}List",
                "plural": names.plural,
                "singular": kind.lower(),
                "shortNames": list(names.short),
                "categories": ["kars"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [_column(each) for each in names.columns],
                    "schema": {"openAPIV3Schema": resource_schema(kind)},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def _column(column: _Column) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": column.name,
        "type": column.type,
        "jsonPath": column.path,
    }
    if column.wide:
        made["priority"] = 1
    return made


def main(arguments: Sequence[str]) -> int:
    """Writes the files to each directory that is named."""
    if not arguments:
        sys.stderr.write("usage: python -m kars_operator.crds DIRECTORY...\n")
        return 2
    for each in arguments:
        write(Path(each))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
