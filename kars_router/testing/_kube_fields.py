"""Who owns which field of a Kubernetes object, and how an apply changes it: a small model.

Lists are keyed or sets where the table below says so, and one value otherwise; a real server
takes that from its schemas. Pure.

Source: https://kubernetes.io/docs/reference/using-api/server-side-apply/.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from typing import Any, Final, NamedTuple

from attrs import frozen

Manifest = dict[str, Any]
Path = tuple[str, ...]


class Manager(NamedTuple):
    """Who set fields, how, and through which subresource."""

    name: str
    operation: str
    subresource: str = ""


Owners = dict[Manager, set[Path]]

_KEYS: Final = {
    "conditions": "type",
    "containers": "name",
    "env": "name",
    "initContainers": "name",
    "ownerReferences": "uid",
    "volumeMounts": "mountPath",
    "volumes": "name",
}
_SETS: Final = frozenset({"finalizers"})
# What the server sees to itself.
_OWN: Final = frozenset(
    ("f:metadata", f"f:{name}")
    for name in (
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "generateName",
        "generation",
        "managedFields",
        "name",
        "namespace",
        "resourceVersion",
        "selfLink",
        "uid",
    )
) | {("f:apiVersion",), ("f:kind",)}


@frozen
class Clash:
    """A field that an apply would take from another manager."""

    path: Path
    manager: Manager

    @property
    def field(self) -> str:
        """The path as the API server writes it."""
        return "".join(_shown(each) for each in self.path)


def leaves(manifest: Mapping[str, Any]) -> dict[Path, Any]:
    """The fields that can be owned, with their values."""
    return {path: value for path, value in _walk(manifest, ()) if path[:2] not in _OWN}


def apply(
    live: Manifest, wanted: Mapping[str, Any], owners: Owners, manager: Manager, *, force: bool
) -> tuple[Manifest, list[Clash]]:
    """Merges what a manager wants.

    Args:
        live: the object as it is; left alone.
        wanted: all fields that the manager wants.
        owners: who owns what; changed, unless there are clashes.
        manager: who applies.
        force: take fields from others.

    Returns:
        The object as it is to be, and what others own and was not to be taken.
    """
    fields = leaves(wanted)
    clashes = list(_clashes(live, fields, owners, manager))
    if clashes and not force:
        return live, clashes
    for clash in clashes:
        owners[clash.manager] -= {
            path for path in owners[clash.manager] if _touch(path, clash.path)
        }
    new = deepcopy(live)
    others = {path for who, owned in owners.items() if who != manager for path in owned}
    # By its key an element is found, so that goes last.
    for path in sorted(owners.get(manager, set()) - fields.keys() - others, key=_names_element):
        if not any(_touch(path, kept) for kept in fields if len(kept) > len(path)):
            _remove(new, path)
    for path, value in fields.items():
        _put(new, path, deepcopy(value))
    owners[manager] = set(fields)
    _tidy(owners)
    return new, []


def note_update(old: Manifest, new: Manifest, owners: Owners, manager: Manager) -> None:
    """Gives a manager the fields that it has changed by other means than an apply.

    An object of which nobody owns anything stays so until it is applied.
    """
    if not owners:
        return
    before, after = leaves(old), leaves(new)
    changed = {path for path, value in after.items() if path not in before or before[path] != value}
    gone = before.keys() - after.keys()
    for owned in owners.values():
        owned.difference_update(changed | gone)
    if changed:
        owners.setdefault(manager, set()).update(changed)
    _tidy(owners)


def managed_fields(owners: Owners, api_version: str, time: str) -> list[Manifest]:
    """The owners as `metadata.managedFields` has them."""
    found = []
    for manager, owned in owners.items():
        tree: Manifest = {}
        for path in sorted(owned):
            place = tree
            for each in path:
                place = place.setdefault(each, {})
        entry = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": api_version,
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": tree,
        }
        found.append(entry | ({"subresource": manager.subresource} if manager.subresource else {}))
    return found


def merge(old: Any, change: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(change, Mapping):
        return deepcopy(change)
    merged = dict(old) if isinstance(old, Mapping) else {}
    for key, value in change.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(merged.get(key), value)
    return merged


def _walk(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    name = path[-1].removeprefix("f:") if path else ""
    if isinstance(value, Mapping) and (value or not path):
        for key, inner in value.items():
            yield from _walk(inner, (*path, f"f:{key}"))
    elif isinstance(value, list) and value and name in _SETS:
        for each in value:
            yield (*path, f"v:{json.dumps(each)}"), each
    elif isinstance(value, list) and value and _is_keyed(value, name):
        key = _KEYS[name]
        for each in value:
            yield from _walk(each, (*path, f"k:{json.dumps({key: each[key]})}"))
    else:
        yield path, value


def _is_keyed(value: list[Any], name: str) -> bool:
    key = _KEYS.get(name)
    return key is not None and all(isinstance(each, Mapping) and key in each for each in value)


def _clashes(
    live: Manifest, fields: Mapping[Path, Any], owners: Owners, manager: Manager
) -> Iterator[Clash]:
    for path, value in fields.items():
        found = _find(live, path)
        if path[-1].startswith("v:") or found == value or _merges(path, value, found):
            continue
        prefixes = {path[:length] for length in range(1, len(path) + 1)}
        for who, owned in owners.items():
            same = who.name == manager.name and who.operation == manager.operation
            if same and who.subresource == manager.subresource:
                continue
            below = not isinstance(value, str | int | float) and any(
                _touch(path, each) for each in owned
            )
            if below or owned & prefixes:
                yield Clash(path, who)


def _merges(path: Path, value: Any, found: Any) -> bool:
    """Whether there is nothing in a value that could take the place of what was found."""
    granular = isinstance(value, dict) or path[-1].removeprefix("f:") in _KEYS.keys() | _SETS
    return granular and value in ({}, []) and type(found) is type(value)


def _names_element(path: Path) -> bool:
    return len(path) > 1 and path[-2].startswith("k:") and path[-1][2:] in json.loads(path[-2][2:])


def _touch(one: Path, other: Path) -> bool:
    """Whether one is the other, or inside it."""
    length = min(len(one), len(other))
    return one[:length] == other[:length]


def _find(tree: Any, path: Path) -> Any:
    for each in path:
        tree = _child(tree, each)
        if tree is None:
            return None
    return tree


def _child(tree: Any, element: str) -> Any:
    kind, _, text = element.partition(":")
    if kind == "f":
        return tree.get(text) if isinstance(tree, Mapping) else None
    wanted = json.loads(text)
    if not isinstance(tree, list):
        return None
    if kind == "v":
        return wanted if wanted in tree else None
    ((key, value),) = wanted.items()
    return next((each for each in tree if isinstance(each, dict) and each.get(key) == value), None)


def _put(tree: Any, path: Path, value: Any) -> None:
    for position, element in enumerate(path[:-1]):
        inner = _child(tree, element)
        holds_list = not path[position + 1].startswith("f:")
        if not isinstance(inner, list if holds_list else dict):
            inner = _set(tree, element, [] if holds_list else {})
        tree = inner
    if path[-1].startswith("v:"):
        if value not in tree:
            tree.append(value)
    elif not _merges(path, value, _child(tree, path[-1])):
        _set(tree, path[-1], value)


def _set(tree: Any, element: str, value: Any) -> Any:
    kind, _, text = element.partition(":")
    if kind == "f":
        tree[text] = value
        return value
    item = {**json.loads(text), **value}
    tree.append(item)
    return item


def _remove(tree: Any, path: Path) -> None:
    """Takes a field away, and what is left empty around it."""
    places = [tree]
    for element in path[:-1]:
        inner = _child(places[-1], element)
        if inner is None:
            return
        places.append(inner)
    inside: Any = None
    for place, element in zip(reversed(places), reversed(path), strict=True):
        kind, _, text = element.partition(":")
        if kind == "f":
            place.pop(text, None)
        elif kind == "v":
            place[:] = [each for each in place if each != json.loads(text)]
        else:
            place[:] = [each for each in place if each is not inside]
        if place:
            return
        inside = place


def _shown(element: str) -> str:
    kind, _, text = element.partition(":")
    if kind == "f":
        return f".{text}"
    if kind == "v":
        return f"[={text}]"
    ((key, value),) = json.loads(text).items()
    return f"[{key}={json.dumps(value)}]"


def _tidy(owners: Owners) -> None:
    for manager in [each for each, owned in owners.items() if not owned]:
        del owners[manager]


def without(manifest: Mapping[str, Any], names: Iterable[str]) -> Manifest:
    """A copy without some of its top-level fields."""
    left_out = set(names)
    return {key: deepcopy(value) for key, value in manifest.items() if key not in left_out}
