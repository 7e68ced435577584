"""Who owns which field of an object: `metadata.managedFields`, and paths into it.

Pure. A path is a tuple of steps as they stand in `fieldsV1`: `f:NAME` for a field, `k:{...}` for
the element of a list with these keys, `v:VALUE` for the element of a set, `i:NUMBER` for a place.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/,
https://pkg.go.dev/sigs.k8s.io/structured-merge-diff/v6/fieldpath.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from attrs import field, frozen

Manifest = Mapping[str, Any]
Path = tuple[str, ...]

SELF: Final = "."  # among the children of a step: the step itself is owned, too
APPLY: Final = "Apply"
UPDATE: Final = "Update"


class Missing:
    """What stands in for a value where there is none."""

    def __repr__(self) -> str:
        return "nothing"


MISSING: Final = Missing()


@frozen
class Owner:
    """A field manager, as far as the server tells one from another.

    Attributes:
        manager: its name.
        operation: `Apply` or `Update`.
        version: the `apiVersion` it used; empty if that was not said.
        subresource: through which it writes; empty for the object itself.
    """

    manager: str
    operation: str
    version: str = ""
    subresource: str = ""


@frozen
class Entry:
    """What one manager owns.

    Attributes:
        owner: who.
        index: the place in `managedFields`.
        fields: the tree of `fieldsV1`.
        time: when it last changed something; empty if that is not known.
    """

    owner: Owner
    index: int
    fields: Mapping[str, Any] = field(repr=False)
    time: str = ""

    def paths(self) -> frozenset[Path]:
        """All that it owns."""
        return frozenset(path for path, _ in _members(self.fields, ()))

    def values(self) -> frozenset[Path]:
        """Those of them that are single values, not what has further fields in it."""
        return frozenset(
            path
            for path, below in _members(self.fields, ())
            if not below and not path[-1].startswith("k:")
        )


def entries(manifest: Manifest) -> tuple[Entry, ...]:
    """What the managers of an object own, in the server's order."""
    metadata = manifest.get("metadata")
    listed = metadata.get("managedFields") if isinstance(metadata, Mapping) else None
    found = []
    for index, each in enumerate(listed if isinstance(listed, Sequence) else ()):
        fields = each.get("fieldsV1")
        owner = Owner(
            str(each.get("manager", "")),
            str(each.get("operation", "")),
            str(each.get("apiVersion", "")),
            str(each.get("subresource") or ""),
        )
        tree = fields if isinstance(fields, Mapping) else {}
        found.append(Entry(owner, index, tree, str(each.get("time") or "")))
    return tuple(found)


def _members(tree: Mapping[str, Any], above: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """What is owned, with what of it is owned on its own."""
    for step, below in tree.items():
        if step == SELF:
            continue
        path = (*above, step)
        if not below or SELF in below:
            yield path, below
        yield from _members(below, path)


def shown(path: Path) -> str:
    """A path as the API server writes it, such as `.spec.ports[port=80,protocol="TCP"].name`."""
    return "".join(_shown(step) for step in path)


def _shown(step: str) -> str:
    kind, _, rest = step.partition(":")
    match kind:
        case "f":
            return f".{rest}"
        case "k":
            keys = json.loads(rest)
            return f"[{','.join(f'{name}={_literal(keys[name])}' for name in sorted(keys))}]"
        case "v":
            return f"[={_literal(json.loads(rest))}]"
        case _:
            return f"[{rest}]"


def _literal(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def value_at(manifest: object, path: Path) -> Any:
    """What an object has at a path; `MISSING` if there is nothing."""
    place = manifest
    for step in path:
        place = _go(place, step)
        if place is MISSING:
            return MISSING
    return place


def _go(place: object, step: str) -> Any:
    kind, _, rest = step.partition(":")
    if kind == "f":
        return place.get(rest, MISSING) if isinstance(place, Mapping) else MISSING
    if not isinstance(place, list):
        return MISSING
    if kind == "i":
        return place[int(rest)] if int(rest) < len(place) else MISSING
    wanted = json.loads(rest)
    for each in place:
        if kind == "v" and each == wanted:
            return each
        if kind == "k" and isinstance(each, Mapping) and _has(each, wanted):
            return each
    return MISSING


def _has(element: Mapping[str, Any], keys: Mapping[str, Any]) -> bool:
    """Whether an element of a list has these keys; one that it lacks may have a default."""
    there = [name for name in keys if name in element]
    return bool(there) and all(element[name] == keys[name] for name in there)


def lost(before: Manifest, after: Manifest) -> Iterator[tuple[Entry, Path]]:
    """What managers own before and not after a change, with their entries before it."""
    still = {entry.owner: entry.paths() for entry in entries(after)}
    for entry in entries(before):
        for path in sorted(entry.paths() - still.get(entry.owner, frozenset())):
            yield entry, path
