"""The objects of a fake cluster, their versions, and the log of changes that watches read.

Owns what a real API server does to an object besides keeping it: uid, generation, versions,
finalizers, the deletion of what is owned. Knows no HTTP.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any, Final

import trio
from attrs import define, field, frozen

from kars_router.kube.resources import KNOWN, NAMESPACES, Resource
from kars_router.testing._kube_fields import Manager, Manifest, Owners, managed_fields, note_update

Key = tuple[str, str]  # namespace (empty for none) and name

# Of an object's metadata, what nobody else changes.
_OWN: Final = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "resourceVersion",
    "managedFields",
)
_WITHOUT_STATUS: Final = frozenset(
    {
        "clusterroles",
        "clusterrolebindings",
        "configmaps",
        "endpointslices",
        "events",
        "leases",
        "networkpolicies",
        "rolebindings",
        "roles",
        "secrets",
        "serviceaccounts",
    }
)


@frozen
class Change:
    """One entry of the log.

    Attributes:
        version: of the object, and of the whole store, after the change.
        type: `ADDED`, `MODIFIED` or `DELETED`.
        now: the object after it; of a deleted one, as it was last.
        before: the object before it; None for a new one.
    """

    version: int
    type: str
    resource: Resource
    now: Manifest
    before: Manifest | None


@define
class _Record:
    manifest: Manifest
    owners: Owners = field(factory=dict)


@define
class Store:
    """Everything in the cluster.

    Attributes:
        remember: how many changes the log has; older ones cannot be watched from.
        collects: whether what a deleted object owned is deleted too.
        version: of the newest change.
        changed: set at the next change, and then replaced.
        oldest: changes up to this version are forgotten.
    """

    remember: int = 10_000
    collects: bool = True
    time: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC)
    version: int = field(default=1, init=False)
    oldest: int = field(default=0, init=False)
    changed: trio.Event = field(factory=trio.Event, init=False)
    _log: deque[Change] = field(factory=deque, init=False)
    _records: dict[Resource, dict[Key, _Record]] = field(factory=dict, init=False)

    def find(self, resource: Resource, key: Key) -> Manifest | None:
        """An object; not to be changed."""
        record = self._records.get(resource, {}).get(key)
        return record.manifest if record is not None else None

    def owners(self, resource: Resource, key: Key) -> Owners:
        """A copy of who owns its fields."""
        record = self._records.get(resource, {}).get(key)
        found = record.owners if record is not None else {}
        return {manager: set(paths) for manager, paths in found.items()}

    def all(self, resource: Resource, namespace: str | None = None) -> list[Manifest]:
        """The objects of a kind in their order; not to be changed."""
        records = self._records.get(resource, {})
        return [
            records[key].manifest
            for key in sorted(records)
            if namespace is None or key[0] == namespace
        ]

    def since(self, version: int) -> Iterator[Change]:
        """The changes after a version."""
        return (change for change in reversed(self._after(version)))

    def _after(self, version: int) -> list[Change]:
        found = []
        for change in reversed(self._log):
            if change.version <= version:
                break
            found.append(change)
        return found

    def forget(self) -> None:
        """Forgets all changes so far, as a real server does after some minutes."""
        self._log.clear()
        self.oldest = self.version

    def add(self, resource: Resource, manifest: Manifest, owners: Owners) -> Manifest:
        """Keeps a new object; takes over `manifest`."""
        metadata = manifest.setdefault("metadata", {})
        if not metadata.get("name"):
            metadata["name"] = f"{metadata.get('generateName', '')}{uuid.uuid4().hex[:5]}"
        metadata["uid"] = str(uuid.uuid4())
        metadata["creationTimestamp"] = self._stamp()
        metadata["generation"] = 1
        key = (metadata.get("namespace", ""), metadata["name"])
        self._records.setdefault(resource, {})[key] = _Record(manifest, owners)
        self._log_change("ADDED", resource, manifest, owners, before=None)
        return manifest

    def change(
        self, resource: Resource, key: Key, manifest: Manifest, owners: Owners | Manager
    ) -> Manifest:
        """Keeps an object in place of the one there is; takes over `manifest`.

        Args:
            resource: its kind.
            key: its place.
            manifest: as it is to be, in what is not the server's own.
            owners: who owns its fields now; or whom the changed ones go to.
        """
        record = self._records[resource][key]
        old = record.manifest
        metadata, before = manifest.setdefault("metadata", {}), old["metadata"]
        for name in _OWN:
            metadata.pop(name, None)
            if name in before:
                metadata[name] = before[name]
        if isinstance(owners, Manager):
            manager, owners = owners, self.owners(resource, key)
            note_update(old, manifest, owners, manager)
        if manifest == old and owners == record.owners:
            return old
        if _meant(manifest) != _meant(old):
            metadata["generation"] = before.get("generation", 1) + 1
        if "deletionTimestamp" in metadata and not metadata.get("finalizers"):
            self._remove(resource, key, manifest)
            return manifest
        record.manifest, record.owners = manifest, owners
        self._log_change("MODIFIED", resource, manifest, owners, before=old)
        return manifest

    def delete(self, resource: Resource, key: Key, *, orphan: bool = False) -> Manifest:
        """Deletes an object, or marks it as deleted while it has finalizers."""
        record = self._records[resource][key]
        manifest = deepcopy(record.manifest)
        metadata = manifest["metadata"]
        if not metadata.get("finalizers"):
            self._remove(resource, key, manifest, orphan=orphan)
        elif "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = self._stamp()
            metadata["deletionGracePeriodSeconds"] = 0
            metadata["generation"] = metadata.get("generation", 1) + 1
            old, record.manifest = record.manifest, manifest
            self._log_change("MODIFIED", resource, manifest, record.owners, before=old)
        return manifest

    def _remove(
        self, resource: Resource, key: Key, manifest: Manifest, *, orphan: bool = False
    ) -> None:
        record = self._records[resource].pop(key)
        self._log_change("DELETED", resource, manifest, record.owners, before=record.manifest)
        if resource == NAMESPACES:
            self._delete_where(lambda other: other["metadata"].get("namespace") == key[1])
        if self.collects and not orphan:
            uid = manifest["metadata"]["uid"]
            self._delete_where(lambda other: uid in _owner_uids(other))

    def _delete_where(self, doomed: Callable[[Manifest], bool]) -> None:
        for resource, records in self._records.items():
            for key in [key for key, record in records.items() if doomed(record.manifest)]:
                if key in records:
                    self.delete(resource, key)

    def _log_change(
        self,
        kind: str,
        resource: Resource,
        manifest: Manifest,
        owners: Owners,
        *,
        before: Manifest | None,
    ) -> None:
        self.version += 1
        metadata = manifest["metadata"]
        metadata["resourceVersion"] = str(self.version)
        metadata.pop("managedFields", None)
        if managed := managed_fields(owners, resource.api_version, self._stamp()):
            metadata["managedFields"] = managed
        self._log.append(Change(self.version, kind, resource, manifest, before))
        while len(self._log) > self.remember:
            self.oldest = self._log.popleft().version
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _stamp(self) -> str:
        return self.time().strftime("%Y-%m-%dT%H:%M:%SZ")


def has_status(resource: Resource) -> bool:
    """Whether `status` of a kind is changed through its subresource only."""
    return resource.plural not in _WITHOUT_STATUS


def _meant(manifest: Manifest) -> Any:
    return {key: value for key, value in manifest.items() if key not in {"metadata", "status"}}


def _owner_uids(manifest: Manifest) -> set[str]:
    return {str(each.get("uid")) for each in manifest["metadata"].get("ownerReferences") or ()}


__all__ = ["KNOWN", "Change", "Key", "Store", "has_status"]
