"""Commands that hand fields back, so that an upgrade takes nothing from anybody.

Pure. For an environment variable that is `kubectl set env VAR-`, which removes it until the upgrade
sets it again. For all else it is a patch that takes the fields out of the manager's part of
`managedFields`: the object's values stay, no pod restarts, and nobody owns the field any more.

A server-side apply in the manager's name would not do: it is another owner than the same manager's
updates, and where the manager applies, it would take the value away, or be refused for that.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from kars_router.kube.resources import Resource, name_of
from kars_router.upgrade.conflicts import Conflict
from kars_router.upgrade.ownership import SELF, Manifest, Path

# Where pods are in the kinds that `kubectl set env` knows.
_TEMPLATES: Final[Mapping[str, Path]] = {
    "CronJob": ("f:spec", "f:jobTemplate", "f:spec", "f:template", "f:spec"),
    "DaemonSet": ("f:spec", "f:template", "f:spec"),
    "Deployment": ("f:spec", "f:template", "f:spec"),
    "StatefulSet": ("f:spec", "f:template", "f:spec"),
}
_CONTAINERS: Final = ("containers", "initContainers")
_ROOT: Final = "/metadata/managedFields"

Operation = dict[str, Any]


def hand_back(
    conflicts: Sequence[Conflict], live: Manifest, resource: Resource, cluster: Sequence[str] = ()
) -> tuple[str, ...]:
    """The commands for one object, to be run in this order.

    Args:
        conflicts: of the object.
        live: the object as it is.
        resource: its kind.
        cluster: the words that tell kubectl which cluster is meant.

    Returns:
        Shell commands; none for fields of which nobody knows where they are.
    """
    namespace, name = name_of(live)
    where = ["-n", namespace] if namespace else []
    variables = [each for each in conflicts if _variable(each, resource)]
    patch = list(_operations([each for each in conflicts if each not in variables], live))
    found = []
    # First, as what others change moves the places that a patch names.
    if patch:
        kind = ".".join(filter(None, (resource.plural, resource.group)))
        text = json.dumps(patch, separators=(",", ":"))
        found.append(["patch", kind, name, *where, "--type=json", "-p", text])
    several = len(list(_containers(live, resource))) > 1
    for container, variable in dict.fromkeys(
        pair for each in variables if (pair := _variable(each, resource)) is not None
    ):
        only = ["-c", container] if several else []
        target = f"{resource.kind.lower()}/{name}"
        found.append(["set", "env", target, *where, *only, f"{variable}-"])
    return tuple(shlex.join(["kubectl", *words, *cluster]) for words in found)


def _variable(conflict: Conflict, resource: Resource) -> tuple[str, str] | None:
    """Container and name, if a conflict is about an environment variable that kubectl can unset."""
    template = _TEMPLATES.get(resource.kind)
    if template is None or conflict.path[: len(template)] != template:
        return None
    match conflict.path[len(template) :]:
        case (kind, container, "f:env", variable, *_) if kind[2:] in _CONTAINERS:
            return _name(container), _name(variable)
        case _:
            return None


def _name(step: str) -> str:
    return str(json.loads(step.partition(":")[2]).get("name", ""))


def _containers(live: Manifest, resource: Resource) -> Iterator[str]:
    pod: Any = live
    for step in _TEMPLATES.get(resource.kind, ()):
        pod = pod.get(step[2:]) or {}
    for each in _CONTAINERS:
        yield from (found.get("name", "") for found in pod.get(each) or ())


def _operations(conflicts: Iterable[Conflict], live: Manifest) -> Iterator[Operation]:
    """A JSON patch (RFC 6902) that takes fields out of what managers own.

    It tests that the managers are still where they were: if not, it fails and changes nothing.
    """
    paths: dict[int, list[Path]] = {}
    for each in conflicts:
        if each.index is not None:
            paths.setdefault(each.index, []).append(each.path)
    # From the last one on, since an owner without fields goes, and those after it move up.
    for index in sorted(paths, reverse=True):
        entry = live["metadata"]["managedFields"][index]
        for key in ("manager", "operation", "subresource"):
            if entry.get(key):
                yield {"op": "test", "path": f"{_ROOT}/{index}/{key}", "value": entry[key]}
        yield from _removals(entry["fieldsV1"], paths[index], index)


def _removals(fields: Mapping[str, Any], paths: Iterable[Path], index: int) -> Iterator[Operation]:
    tree = deepcopy(dict(fields))
    removed = [_remove(tree, path) for path in sorted(paths)]
    if not tree:
        yield {"op": "remove", "path": f"{_ROOT}/{index}"}
        return
    for path in removed:
        pointer = "".join(f"/{step.replace('~', '~0').replace('/', '~1')}" for step in path)
        yield {"op": "remove", "path": f"{_ROOT}/{index}/fieldsV1{pointer}"}


def _remove(tree: dict[str, Any], path: Path) -> Path:
    """Removes a field, and what is empty then; returns what was removed as a whole."""
    way = [tree]
    for step in path:
        way.append(way[-1][step])
    if way[-1]:  # others below it stay
        del way[-1][SELF]
        return (*path, SELF)
    last = len(path) - 1
    # An empty one above would be owned, which it was not before.
    while last > 0 and len(way[last]) == 1:
        last -= 1
    del way[last][path[last]]
    return path[: last + 1]
