"""What is known of the objects of one resource: by name, and by whatever they are looked up by.

Owns the comparison of what was known with what is there. Must not know how objects are read. The
objects in a store are shared by all its readers and must never be changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from attrs import frozen

Object = dict[str, Any]
Objects = list[Object]
IndexFunction = Callable[[Object], Iterable[str]]

_APPLIED: Final = "kubectl.kubernetes.io/last-applied-configuration"


class Key(NamedTuple):
    """Which object of a resource.

    Attributes:
        namespace: empty for what is not in a namespace.
        name: its name.
    """

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@frozen
class Change:
    """What has become of one object.

    Attributes:
        key: which one.
        before: as it was known; None if it is new.
        after: as it is now; None if it is gone. The same value as `before` if it is only offered
            again.
    """

    key: Key
    before: Object | None
    after: Object | None

    @property
    def object(self) -> Object:
        """The object as it is, or as it was last."""
        known = self.before if self.after is None else self.after
        assert known is not None
        return known


Changes = list[Change]


class Store:
    """The objects of one resource.

    Args:
        indexes: for each index the function that gives the values under which an object is
            found there. It must take any object that the API server accepts.
    """

    def __init__(self, indexes: Mapping[str, IndexFunction] | None = None) -> None:
        self._objects: dict[Key, Object] = {}
        self._functions = dict(indexes or {})
        self._found: dict[str, dict[str, dict[Key, None]]] = {each: {} for each in self._functions}

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, key: object) -> bool:
        return key in self._objects

    def __iter__(self) -> Iterator[Object]:
        return iter(tuple(self._objects.values()))

    def get(self, namespace: str, name: str) -> Object | None:
        """An object by its name; the namespace is empty for what is in none."""
        return self._objects.get(Key(namespace, name))

    def keys(self) -> tuple[Key, ...]:
        """The keys of all objects."""
        return tuple(self._objects)

    def list(self, namespace: str | None = None) -> Objects:
        """All objects, or those of one namespace, in no particular order."""
        if namespace is None:
            return list(self._objects.values())
        return [each for key, each in self._objects.items() if key.namespace == namespace]

    def by(self, index: str, value: str) -> Objects:
        """The objects that an index function has put under a value.

        Raises:
            KeyError: there is no such index.
        """
        return [self._objects[key] for key in self._found[index].get(value, ())]

    def put(self, found: Object) -> Changes:
        """Takes note of an object as it is now.

        Returns:
            What has changed: nothing if this very version was known, two changes if the object
            was deleted and made anew under its name.
        """
        key = key_of(found)
        before = self._objects.get(key)
        if before is None:
            self._set(key, found)
            return [Change(key, None, found)]
        if _identity(before) != _identity(found):
            self._drop(key)
            self._set(key, found)
            return [Change(key, before, None), Change(key, None, found)]
        if _version(before) and _version(before) == _version(found):
            return []
        self._drop(key)
        self._set(key, found)
        return [Change(key, before, found)]

    def remove(self, key: Key, last: Object | None = None) -> Changes:
        """Takes note that an object is gone.

        Args:
            key: which one.
            last: what it was in the end, if that is known.

        Returns:
            The change, or nothing if the object was not known.
        """
        before = self._objects.get(key)
        if before is None:
            return []
        self._drop(key)
        return [Change(key, last or before, None)]

    def replace(self, found: Iterable[Object]) -> Changes:
        """Takes note of all objects there are; what is missing among them is gone."""
        there = {key_of(each): each for each in found}
        changes = [change for key in self.keys() if key not in there for change in self.remove(key)]
        for each in there.values():
            changes += self.put(each)
        return changes

    def _set(self, key: Key, found: Object) -> None:
        self._objects[key] = found
        for index, values_of in self._functions.items():
            for value in values_of(found):
                self._found[index].setdefault(value, {})[key] = None

    def _drop(self, key: Key) -> None:
        before = self._objects.pop(key)
        for index, values_of in self._functions.items():
            found = self._found[index]
            for value in values_of(before):
                keys = found.get(value, {})
                keys.pop(key, None)
                if not keys:
                    found.pop(value, None)


def key_of(manifest: Mapping[str, Any]) -> Key:
    """The key of an object that the API server sent.

    Raises:
        KeyError: it has no name.
    """
    metadata = manifest["metadata"]
    return Key(metadata.get("namespace") or "", metadata["name"])


def trim(found: Object) -> Object:
    """Leaves out what only `kubectl` and the API server read, often more than half of an object."""
    metadata = dict(found["metadata"])
    metadata.pop("managedFields", None)
    annotations = metadata.get("annotations")
    if annotations and _APPLIED in annotations:
        metadata["annotations"] = {k: v for k, v in annotations.items() if k != _APPLIED}
    return {**found, "metadata": metadata}


def by_namespace(found: Object) -> Iterable[str]:
    """An index by namespace."""
    return (found["metadata"].get("namespace") or "",)


def by_label(name: str) -> IndexFunction:
    """An index by the value of a label; objects without it are not in the index."""

    def values(found: Object) -> Iterable[str]:
        value = (found["metadata"].get("labels") or {}).get(name)
        return () if value is None else (value,)

    return values


def by_owner(found: Object) -> Iterable[str]:
    """An index by the uids of an object's owners."""
    return tuple(each["uid"] for each in found["metadata"].get("ownerReferences") or ())


def _identity(found: Object) -> object:
    return found["metadata"].get("uid")


def _version(found: Object) -> object:
    return found["metadata"].get("resourceVersion")
