"""The namespace that a sandbox has of its own, with `--placement own`, and its end.

Owns the finalizer. An owner cannot be in another namespace, so a KarsSandbox stays until what was
made for it elsewhere is gone. Must not know what is in the namespace.
"""

from __future__ import annotations

from attrs import define

from kars_operator import names
from kars_operator.settings import Placement, Settings
from kars_operator.store import Object
from kars_router.kube import ForbiddenError, Kube, NotFoundError
from kars_router.kube import resources as kinds
from kars_router.telemetry import log


@define(eq=False)
class OwnNamespaces:
    """The namespaces of sandboxes.

    Args:
        kube: the API server.
        settings: the operator's.
    """

    kube: Kube
    settings: Settings

    async def hold(self, manifest: Object) -> Object:
        """Sees to it that a sandbox is not gone before its namespace is.

        With the other placement, what is left of an earlier one is cleaned up.

        Args:
            manifest: a sandbox that is there to stay.

        Returns:
            The sandbox as it is now.
        """
        present = _finalizers(manifest)
        own = self.settings.placement is Placement.OWN
        if own is (names.FINALIZER in present):
            return manifest
        if own:
            return await self._set(manifest, [*present, names.FINALIZER])
        await self._delete(manifest)
        return await self._let_go(manifest)

    async def clean_up(self, manifest: Object) -> None:
        """Deletes the namespace of a sandbox that is being deleted, and then lets it go.

        To be called again when the namespace has changed.
        """
        if names.FINALIZER not in _finalizers(manifest):
            return
        remains = await self._delete(manifest)
        if remains and self.settings.placement is Placement.OWN:
            return  # its end is a change of which the operator is told
        await self._let_go(manifest)

    async def _delete(self, manifest: Object) -> bool:
        """Deletes the sandbox's namespace, if it has one; whether it is still there."""
        metadata = manifest["metadata"]
        own = self.settings.own_namespace_of(metadata["name"])
        labels = names.labels_of(metadata["name"], metadata["namespace"])
        try:
            found = (await self.kube.get(kinds.NAMESPACES, own))["metadata"]
            if not labels.items() <= (found.get("labels") or {}).items():
                return False
            if "deletionTimestamp" not in found:
                await self.kube.delete(kinds.NAMESPACES, own, uid=found["uid"])
        except NotFoundError:
            return False
        except ForbiddenError as error:
            if self.settings.placement is Placement.OWN:
                raise
            # With this placement the operator need not have the right; who changes it back has.
            log().warning("namespace_left", namespace=own, error=str(error))
        return True

    async def _let_go(self, manifest: Object) -> Object:
        rest = [each for each in _finalizers(manifest) if each != names.FINALIZER]
        return await self._set(manifest, rest)

    async def _set(self, manifest: Object, finalizers: list[str]) -> Object:
        metadata = manifest["metadata"]
        change = {
            "metadata": {
                "finalizers": finalizers,
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            }
        }
        return await self.kube.patch(
            kinds.KARS_SANDBOXES, metadata["name"], metadata["namespace"], change
        )


def _finalizers(manifest: Object) -> list[str]:
    return list(manifest["metadata"].get("finalizers") or [])
