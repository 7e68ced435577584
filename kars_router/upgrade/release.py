"""The state of a release, as Helm tells it: `helm history`, `helm get` and `helm list`.

Owns what the states mean. Helm keeps a Secret of type `helm.sh/release.v1` for each revision, and
nobody but Helm reads or writes those.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

from attrs import frozen

from kars_router.errors import UndeterminedError, UserError
from kars_router.update.text import one_line
from kars_router.upgrade.helm import Helm, HelmError
from kars_router.upgrade.manifests import Manifest, ManifestError, read

_PENDING: Final = frozenset({"pending-install", "pending-upgrade", "pending-rollback"})
_GOING: Final = frozenset({"uninstalling", "uninstalled"})
_ABSENT: Final = re.compile(r"release: not found|has no deployed releases")
_TAKEN_FOR_GOOD: Final = frozenset({"deployed", "superseded"})
_FAILED: Final = re.compile(r"(Upgrade|Rollback|Release) .* failed: ")
_MOST: Final = "256"


@frozen(kw_only=True)
class Revision:
    """One revision of a release.

    Attributes:
        number: from 1 on.
        status: in Helm's words.
        chart: the name of its chart.
        version: of the chart.
        app_version: of what the chart installs; empty if the chart does not say.
        updated: when it was made, as Helm writes it.
        description: what Helm says of it.
    """

    number: int
    status: str
    chart: str
    version: str
    app_version: str = ""
    updated: str = ""
    description: str = ""

    @property
    def is_pending(self) -> bool:
        """Whether Helm was at work on it, and perhaps still is."""
        return self.status in _PENDING

    @property
    def was_good(self) -> bool:
        """Whether it was ever deployed; a failed one may be superseded as well."""
        return self.status == "deployed" or (
            self.status == "superseded" and not _FAILED.match(self.description)
        )


@frozen(kw_only=True)
class Release:
    """A release.

    Attributes:
        name: of the release.
        namespace: where it is.
        last: its newest revision.
        current: the one that Helm goes out from: the deployed one, or the newest if there is none.
        good: the number of the newest one that was ever deployed; None if there is none.
        returns: the number of the one that Helm goes back to when an upgrade fails. That may be
            one that was never deployed: whatever failed to go back makes of it a superseded one.
        migrates: whether it was applied by the client so far. Helm then turns its updates into
            what it applies, the first time.
    """

    name: str
    namespace: str
    last: Revision
    current: Revision
    good: int | None = None
    returns: int | None = None
    migrates: bool = False

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class NoReleaseError(UserError):
    """There is no such release in the namespace."""


async def read_release(helm: Helm, name: str) -> Release:
    """Asks for the state of a release.

    Args:
        helm: for the namespace.
        name: of the release.

    Raises:
        NoReleaseError: there is none.
        UserError: it is being uninstalled.
        UndeterminedError: Helm does not know, or says something strange.
    """
    namespace = helm.cluster.namespace
    try:
        listed = await helm.ask_json("history", name, "--max", _MOST)
        revisions = [_revision(each) for each in listed]
        last = max(revisions, key=lambda each: each.number)
        deployed = [each for each in revisions if each.status == "deployed"]
        current = max(deployed, key=lambda each: each.number) if deployed else last
        metadata = await helm.ask_json("get", "metadata", name, "--revision", str(current.number))
        migrates = metadata.get("applyMethod") in {None, "", "csa"}
    except HelmError as error:
        if _ABSENT.search(str(error)):
            raise _absent(name, namespace) from None
        raise UndeterminedError(f"the release {namespace}/{name} is not known: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        said = one_line(f"{type(error).__name__}: {error}")
        raise UndeterminedError(f"helm says something strange of {name}: {said}") from None
    if last.status == "uninstalled":
        raise _absent(name, namespace)
    if last.status in _GOING:
        raise UserError(f"the release {namespace}/{name} is being uninstalled")
    good = [each.number for each in revisions if each.was_good]
    returns = [each.number for each in revisions if each.status in _TAKEN_FOR_GOOD]
    return Release(
        name=name,
        namespace=namespace,
        last=last,
        current=current,
        good=max(good, default=None),
        returns=max(returns, default=None),
        migrates=migrates,
    )


def _absent(name: str, namespace: str) -> NoReleaseError:
    return NoReleaseError(
        f"there is no release {name} in the namespace {namespace};"
        " name it with --release and --namespace, or install it with helm install"
    )


def _revision(found: Any) -> Revision:
    name, _, version = str(found["chart"]).partition("-")
    # The version begins at the first dash that a number follows.
    split = re.fullmatch(r"(?P<name>.+?)-(?P<version>v?[0-9]+\..*)", str(found["chart"]))
    if split:
        name, version = split["name"], split["version"].removeprefix("v")
    return Revision(
        number=int(found["revision"]),
        status=str(found["status"]),
        chart=one_line(name),
        version=one_line(version),
        app_version=one_line(str(found.get("app_version") or "")),
        updated=one_line(str(found.get("updated") or "")),
        description=one_line(str(found.get("description") or ""), 500),
    )


async def namespaces_of(helm: Helm, name: str) -> Sequence[str]:
    """The namespaces in which there is a release of a name; empty if that is not known either."""
    try:
        listed = await helm.ask_json("list", "--all-namespaces", "--filter", f"^{re.escape(name)}$")
        return sorted(str(each["namespace"]) for each in listed)
    except (HelmError, KeyError, TypeError):
        return ()


async def manifest_of(helm: Helm, name: str, revision: int) -> list[Manifest]:
    """The objects of one revision.

    Raises:
        UndeterminedError: Helm does not tell, or it cannot be read.
    """
    try:
        return read(await helm.ask("get", "manifest", name, "--revision", str(revision)))
    except (HelmError, ManifestError) as error:
        raise UndeterminedError(
            f"the manifest of revision {revision} of {name} is not known: {error}"
        ) from None
