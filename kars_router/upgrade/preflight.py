"""Has the API server go through an upgrade object by object, without keeping anything.

Owns what is asked and what the answers come to. Every object is applied in Helm's name with a dry
run, so that defaults, admission, quotas and conflicts are the real ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from attrs import evolve, field, frozen

from kars_router.errors import UndeterminedError
from kars_router.kube import ApiError, ConflictError, ForbiddenError, Kube, NotFoundError, Resource
from kars_router.kube.resources import name_of
from kars_router.upgrade import MANAGER
from kars_router.upgrade.changes import (
    Action,
    Change,
    Reference,
    change_of,
    reference_of,
    same_template,
)
from kars_router.upgrade.conflicts import REASON, Conflict, find
from kars_router.upgrade.manifests import Manifest, marked

# The server has looked at what was asked, and it will not do. Anything else may change by itself.
_FINDINGS: Final = frozenset({400, 403, 404, 409, 413, 415, 422})
# What a server answers, with status 500, to a field that a kind does not have.
_UNKNOWN_FIELD: Final = "field not declared in schema"
_NO_DRY_RUN: Final = "does not support dry run"
_ATTEMPTS: Final = 5
_KEEP: Final = "helm.sh/resource-policy"


@frozen(kw_only=True)
class Checked:
    """One object that is to be applied, and what the server says to that.

    Attributes:
        change: what becomes of it.
        wanted: what is applied.
        resource: its kind; None if the server does not know it.
        live: the object as it is; None if it is not there.
        result: as it will be; None if the server does not say.
        conflicts: fields that others own.
        problem: why the server refuses, whatever is done about conflicts; empty if it does not.
    """

    change: Change
    wanted: Manifest = field(repr=False)
    resource: Resource | None = None
    live: Manifest | None = field(default=None, repr=False)
    result: Manifest | None = field(default=None, repr=False)
    conflicts: tuple[Conflict, ...] = ()
    problem: str = ""

    @property
    def reference(self) -> Reference:
        """Which object it is."""
        return self.change.reference


@frozen
class Survey:
    """What an apply of many objects comes to.

    Attributes:
        checked: what is applied.
        removed: what becomes of objects that are no longer wanted.
        problems: why some of those cannot be deleted.
    """

    checked: tuple[Checked, ...] = ()
    removed: tuple[Change, ...] = ()
    problems: tuple[tuple[Reference, str], ...] = ()


@frozen(kw_only=True)
class Preflight:
    """Asks the API server.

    Attributes:
        kube: its client.
        release: the name of the release.
        namespace: its namespace.
        migrates: whether Helm turns its own updates into what it applies first.
        coming: what is made before these objects, and is not there yet.
    """

    kube: Kube
    release: str
    namespace: str
    migrates: bool = False
    coming: tuple[Manifest, ...] = ()

    async def survey(self, wanted: Iterable[Manifest], before: Sequence[Manifest]) -> Survey:
        """Checks the objects of a chart.

        Args:
            wanted: as the chart has them.
            before: the objects of the revision that Helm goes out from.

        Raises:
            ApiError: the server refused to answer.
            UndeterminedError: it cannot do a dry run.
        """
        wanted = [marked(each, self.release, self.namespace) for each in wanted]
        checker = evolve(self, coming=tuple(wanted))
        old = {checker._key(each): each for each in before}
        checked = []
        for each in wanted:
            was = old.get(checker._key(each))
            # Fields that Helm has updated and the chart no longer has go, once they are migrated;
            # the dry run knows nothing of that.
            replaces = self.migrates and was is not None and not same_template(was, each)
            checked.append(await checker.check(each, replaces=replaces))
        kept = {each.reference for each in checked}
        found = [
            await checker._removal(each)
            for each in before
            if (await checker._reference(each)) not in kept
        ]
        return Survey(
            tuple(checked),
            tuple(change for change, _ in found if change is not None),
            tuple((change.reference, problem) for change, problem in found if change and problem),
        )

    async def check(self, wanted: Manifest, *, replaces: bool = False) -> Checked:
        """Checks one object.

        Args:
            wanted: with Helm's marks, if it gets them.
            replaces: whether its pods are replaced whatever the server says.

        Raises:
            ApiError: the server refused to answer.
            UndeterminedError: it cannot do a dry run.
        """
        try:
            resource = await self.kube.resource_of(wanted)
        except NotFoundError as error:
            return self._of_unknown_kind(wanted, error)
        reference = self._named(wanted, resource)
        if resource.namespaced:
            metadata = {**wanted["metadata"], "namespace": reference.namespace}
            wanted = {**wanted, "metadata": metadata}
        live = await self._get(resource, reference)
        result, conflicts, problem, note = await self._try(wanted, live)
        for _ in range(_ATTEMPTS):
            if live is None or result is None or _version(live) == _version(result):
                break
            # Somebody has written to it between the two, which would look like the work of Helm.
            live = await self._get(resource, reference)
            result, conflicts, problem, note = await self._try(wanted, live)
        change = change_of(reference, live, result or live or wanted, replaces=replaces, note=note)
        return Checked(
            change=change if not problem and not conflicts else _at_least_changed(change),
            wanted=wanted,
            resource=resource,
            live=live,
            result=result,
            conflicts=conflicts,
            problem=problem,
        )

    async def _try(
        self, wanted: Manifest, live: Manifest | None
    ) -> tuple[Manifest | None, tuple[Conflict, ...], str, str]:
        """Applies an object with a dry run; its result, conflicts, a problem and a note."""
        result, error = await self._apply(wanted, force=False)
        if live is None:
            return (result, (), *self._of_new(wanted, error))
        if not isinstance(error, ConflictError):
            found = find(live=live, wanted=wanted, result=result, migrates=self.migrates)
            problem = str(error) if error is not None and not found else ""
            return result, found, problem, ""
        result, refused = await self._apply(wanted, force=True)
        found = find(
            live=live,
            wanted=wanted,
            result=result,
            causes=error.causes,
            message=error.message,
            migrates=self.migrates,
        )
        problem = ""
        if refused is not None and all(each.forceable for each in found):
            problem = str(refused)
        elif not any(each.reason == REASON for each in error.causes) and not found:
            problem = str(error)  # a conflict of another kind
        return result, found, problem, ""

    def _of_new(self, wanted: Manifest, error: ApiError | None) -> tuple[str, str]:
        """A problem and a note, of an object that is not there yet."""
        if isinstance(error, NotFoundError) and self._is_coming(name_of(wanted)[0]):
            return "", "its namespace is made first"
        return str(error) if error is not None else "", ""

    async def _apply(
        self, wanted: Manifest, *, force: bool
    ) -> tuple[Manifest | None, ApiError | None]:
        try:
            result = await self.kube.apply(
                wanted, manager=MANAGER, force=force, dry_run=True, strict=True
            )
        except ApiError as error:
            if _NO_DRY_RUN in error.message:
                raise UndeterminedError(
                    f"{_what(wanted)} cannot be checked beforehand: {error.message}"
                ) from error
            if error.status in _FINDINGS or _UNKNOWN_FIELD in error.message:
                return None, error
            raise
        return result, None

    async def _get(self, resource: Resource, reference: Reference) -> Manifest | None:
        try:
            return await self.kube.get(resource, reference.name, reference.namespace or None)
        except NotFoundError:
            return None
        except ForbiddenError as error:
            raise UndeterminedError(f"{reference} may not be looked at: {error.message}") from error

    async def _removal(self, old: Manifest) -> tuple[Change | None, str]:
        """What becomes of an object that is no longer wanted; None if it is gone already."""
        try:
            resource = await self.kube.resource_of(old)
        except NotFoundError:
            return None, ""
        reference = self._named(old, resource)
        live = await self._get(resource, reference)
        if live is None:
            return None, ""
        annotations = live["metadata"].get("annotations") or {}
        if annotations.get(_KEEP) == "keep":
            return _removed(reference, "keep", note=f"{_KEEP} says so"), ""
        try:
            await self.kube.delete(
                resource, reference.name, reference.namespace or None, dry_run=True
            )
        except ForbiddenError as error:
            return _removed(reference, "delete"), error.message
        return _removed(reference, "delete"), ""

    def _of_unknown_kind(self, wanted: Manifest, error: NotFoundError) -> Checked:
        reference = reference_of(wanted, namespace=self.namespace)
        change = Change(reference=reference, action="create")
        return Checked(change=change, wanted=wanted, problem=error.message)

    def _is_coming(self, namespace: str | None) -> bool:
        return any(
            each.get("kind") == "Namespace" and name_of(each)[1] == namespace
            for each in self.coming
        )

    def _named(self, manifest: Manifest, resource: Resource) -> Reference:
        return reference_of(manifest, namespaced=resource.namespaced, namespace=self.namespace)

    async def _reference(self, manifest: Manifest) -> Reference:
        try:
            return self._named(manifest, await self.kube.resource_of(manifest))
        except NotFoundError:
            return reference_of(manifest, namespace=self.namespace)

    def _key(self, manifest: Manifest) -> Reference:
        """What two manifests of one release have in common if they are about the same object."""
        return reference_of(manifest, namespace=self.namespace)


def _removed(reference: Reference, action: Action, note: str = "") -> Change:
    return Change(reference=reference, action=action, note=note)


def _at_least_changed(change: Change) -> Change:
    return evolve(change, action="change") if change.action == "none" else change


def _version(manifest: Manifest) -> object:
    return manifest["metadata"].get("resourceVersion")


def _what(manifest: Manifest) -> str:
    namespace, name = name_of(manifest)
    return f"{manifest.get('kind')} {f'{namespace}/' if namespace else ''}{name}"
