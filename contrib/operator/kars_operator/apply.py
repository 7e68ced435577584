"""Puts objects into the cluster, and takes out what is no longer wanted.

Owns when a request can be spared, and that nobody else's object is taken over by its name. Must
not know what objects are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from attrs import define, field, frozen

from kars_operator import names
from kars_operator.store import Key, Object
from kars_router.config.digests import digest_of_plain
from kars_router.errors import UserError
from kars_router.kube import Kube, NotFoundError
from kars_router.kube.resources import Resource, resource_of

_Id = tuple[Resource, str, str]


class NameTakenError(UserError):
    """An object of that name is somebody else's."""


@frozen
class _Done:
    """What was applied last, the version that came of it, and for which sandbox."""

    digest: str
    version: tuple[str, object]
    sandbox: Key


@define(eq=False)
class Applier:
    """Server-side apply with one field manager, repeated only where that could change something.

    Args:
        kube: the API server.
        live: gives an object of ours as it was last seen, by kind, namespace and name.
    """

    kube: Kube
    live: Callable[[Resource, str, str], Object | None]
    _done: dict[_Id, _Done] = field(factory=dict, init=False)

    async def apply(self, manifest: Mapping[str, Any]) -> bool:
        """Makes an object as a manifest says.

        Args:
            manifest: it, with its owner.

        Returns:
            Whether the object is new or has changed.

        Raises:
            NameTakenError: there is one of that name that was not made for this sandbox.
            KubeError: the API server did not do it.
        """
        ident, digest = self._ident(manifest), digest_of_plain(manifest)
        kind, namespace, name = ident
        seen = self.live(*ident)
        done = self._done.get(ident)
        if (
            seen is not None
            and done
            and (done.digest, done.version)
            == (
                digest,
                _version(kind, seen),
            )
        ):
            return False
        there = seen if seen is not None else await self._find(kind, namespace, name)
        if there is not None and _whose(there) != _whose(manifest):
            where = f"{namespace}/{name}" if namespace else name
            raise NameTakenError(
                f"there is a {kind.kind} {where} that the operator has not made for this sandbox; "
                "rename it or the sandbox"
            )
        made = await self.kube.apply(manifest, manager=names.MANAGER, force=True)
        self._done[ident] = _Done(digest, _version(kind, made), _sandbox(manifest))
        return seen is None or _version(kind, seen) != _version(kind, made)

    def misses(self, manifests: Iterable[Mapping[str, Any]]) -> bool:
        """Whether something that was made cannot be seen: it is new, or somebody has deleted it."""
        idents = (self._ident(each) for each in manifests)
        return any(each in self._done and self.live(*each) is None for each in idents)

    def is_echo(self, kind: Resource, seen: Object) -> bool:
        """Whether an object is as we have left it, so that its change is no news."""
        metadata = seen["metadata"]
        done = self._done.get((kind, metadata.get("namespace", ""), metadata["name"]))
        return done is not None and done.version == _version(kind, seen)

    def maker_of(self, kind: Resource, seen: Object) -> Key | None:
        """The sandbox that an object was made for here, whatever its labels say by now."""
        metadata = seen["metadata"]
        done = self._done.get((kind, metadata.get("namespace", ""), metadata["name"]))
        return None if done is None else done.sandbox

    def forget(self, sandbox: Key) -> None:
        """There is no such sandbox any more."""
        for ident in [each for each, done in self._done.items() if done.sandbox == sandbox]:
            del self._done[ident]

    async def prune(
        self, there: Iterable[tuple[Resource, Object]], wanted: Iterable[Mapping[str, Any]]
    ) -> int:
        """Deletes what is not wanted.

        Args:
            there: the objects that were made earlier.
            wanted: manifests of the ones that stay.

        Returns:
            How many were deleted.
        """
        stay = {self._ident(each) for each in wanted}
        deleted = 0
        for kind, found in tuple(there):
            metadata = found["metadata"]
            ident = (kind, metadata.get("namespace", ""), metadata["name"])
            if ident in stay or "deletionTimestamp" in metadata:
                continue
            await self.kube.delete(kind, ident[2], ident[1] or None, uid=metadata["uid"])
            done = self._done.get(ident)
            # One that bears the labels of another sandbox than the one that it was made for is
            # missed by that one.
            if done is not None and done.sandbox == _sandbox(found):
                del self._done[ident]
            deleted += 1
        return deleted

    def _ident(self, manifest: Mapping[str, Any]) -> _Id:
        metadata = manifest["metadata"]
        return resource_of(manifest), metadata.get("namespace", ""), metadata["name"]

    async def _find(self, kind: Resource, namespace: str, name: str) -> Object | None:
        try:
            return await self.kube.get(kind, name, namespace or None)
        except NotFoundError:
            return None


def _whose(found: Mapping[str, Any]) -> tuple[object, ...]:
    """Who has made an object, and for which sandbox: names are the same in two namespaces."""
    labels = found["metadata"].get("labels") or {}
    return tuple(map(labels.get, (names.MANAGED_BY, names.SANDBOX, names.SANDBOX_NAMESPACE)))


def _sandbox(found: Mapping[str, Any]) -> Key:
    """The sandbox that the labels of an object of ours name."""
    _, name, namespace = map(str, _whose(found))
    return Key(namespace, name)


def _version(kind: Resource, found: Mapping[str, Any]) -> tuple[str, object]:
    metadata = found["metadata"]
    version = metadata.get("resourceVersion")
    if kind.kind == "Deployment":
        # It gets a new version with each pod that comes or goes; only these are ours.
        owners = [each.get("uid") for each in metadata.get("ownerReferences") or ()]
        version = metadata.get("generation"), metadata.get("labels"), owners
    return metadata.get("uid", ""), version
