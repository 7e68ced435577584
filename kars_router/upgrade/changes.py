"""What an upgrade does to an object: which fields change, and which pods are replaced for it.

Pure. Compares the object as it is with what the server's dry run makes of it, so defaults, and what
others have set, are as they will be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

from attrs import frozen

from kars_router.kube.resources import name_of
from kars_router.upgrade.ownership import Manifest

Action = Literal["create", "change", "delete", "keep", "run", "none"]

# The server's own, which change with every write.
_BOOKKEEPING: Final = frozenset(
    {"creationTimestamp", "generation", "managedFields", "resourceVersion", "selfLink", "uid"}
)
# Lists whose elements are told apart by this key, for people at least.
_KEY: Final = "name"
_LISTS: Final = ("initContainers", "containers")


@frozen
class Reference:
    """Which object is meant.

    Attributes:
        kind: of the object.
        name: its name.
        namespace: empty for one that is in none.
        group: the API group of its kind; empty for the core group.
    """

    kind: str
    name: str
    namespace: str = ""
    group: str = ""

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


@frozen(kw_only=True)
class Image:
    """The image of a container, before and after; empty before if the container is new."""

    container: str
    before: str
    after: str


@frozen(kw_only=True)
class Change:
    """What becomes of one object.

    Attributes:
        reference: the object.
        action: `keep` is for one that is no longer in the chart and stays all the same, `run` for
            a hook, `none` for one that stays as it is.
        fields: those that change, as paths.
        images: those that change.
        pods: how many pods are replaced.
        note: what else there is to say of it.
    """

    reference: Reference
    action: Action
    fields: tuple[str, ...] = ()
    images: tuple[Image, ...] = ()
    pods: int = 0
    note: str = ""


def reference_of(manifest: Manifest, *, namespaced: bool = True, namespace: str = "") -> Reference:
    """Which object a manifest is about.

    Args:
        manifest: of the object.
        namespaced: whether its kind is in namespaces.
        namespace: where it is if it names none.
    """
    place, name = name_of(manifest)
    group, _, _ = str(manifest.get("apiVersion", "")).rpartition("/")
    return Reference(str(manifest["kind"]), name, (place or namespace) if namespaced else "", group)


def change_of(
    reference: Reference,
    live: Manifest | None,
    result: Manifest,
    *,
    replaces: bool = False,
    note: str = "",
) -> Change:
    """What becomes of an object.

    Args:
        reference: the object.
        live: as it is; None if it is not there.
        result: as it will be.
        replaces: whether its pods are replaced whatever the two look like.
        note: what else there is to say of it.
    """
    if live is None:
        images = tuple(_images({}, _template(result)))
        return Change(reference=reference, action="create", images=images, note=note)
    fields = tuple(_differences(live, result, ""))
    before, after = _template(live), _template(result)
    replaces = replaces or before != after
    return Change(
        reference=reference,
        action="change" if fields or replaces else "none",
        fields=fields,
        images=tuple(_images(before, after)),
        pods=pods_of(live) if replaces else 0,
        note=note,
    )


def _template(manifest: Manifest) -> Mapping[str, Any]:
    """The pod template of a workload; empty for anything else."""
    spec = manifest.get("spec")
    template = spec.get("template") if isinstance(spec, Mapping) else None
    return template if isinstance(template, Mapping) else {}


def same_template(first: Manifest, second: Manifest) -> bool:
    """Whether two manifests ask for the same pods."""
    return _template(first) == _template(second)


def pods_of(live: Manifest) -> int:
    """How many pods a workload has that are replaced when their template changes."""
    spec, status = live.get("spec") or {}, live.get("status") or {}
    if (spec.get("updateStrategy") or {}).get("type") == "OnDelete":
        return 0
    match live.get("kind"):
        case "Deployment" | "StatefulSet":
            return int(spec.get("replicas", 1))
        case "DaemonSet":
            return int(status.get("desiredNumberScheduled", 0))
        case _:
            return 0


def _images(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Image]:
    was = dict(_containers(before))
    for name, image in _containers(after):
        if was.get(name) != image:
            yield Image(container=name, before=was.get(name, ""), after=image)


def _containers(template: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for kind in _LISTS:
        for each in (template.get("spec") or {}).get(kind) or ():
            yield str(each.get("name", "")), str(each.get("image", ""))


def _differences(before: object, after: object, path: str) -> Iterator[str]:
    """The paths at which two objects differ, as deep as both have something there."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in dict.fromkeys((*before, *after)):
            if path == ".metadata" and key in _BOOKKEEPING:
                continue
            if key not in before or key not in after:
                yield f"{path}.{key}"
            else:
                yield from _differences(before[key], after[key], f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list):
        yield from _list_differences(before, after, path)
    elif before != after:
        yield path


def _list_differences(before: list[Any], after: list[Any], path: str) -> Iterator[str]:
    first, second = _named(before), _named(after)
    if first is None or second is None or len(first) + len(second) == 0:
        if before != after:
            yield path
        return
    for name in dict.fromkeys((*first, *second)):
        place = f'{path}[{_KEY}="{name}"]'
        if name not in first or name not in second:
            yield place
        else:
            yield from _differences(first[name], second[name], place)


def _named(items: list[Any]) -> dict[str, Any] | None:
    """The elements of a list by their names; None if they have none of their own."""
    found = {each[_KEY]: each for each in items if isinstance(each, Mapping) and _KEY in each}
    return found if len(found) == len(items) else None
