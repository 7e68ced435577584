"""The chart to upgrade to: where it is, which version it has, and what it renders to.

A chart of a repository or registry is fetched once, so that what is installed is what was checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import trio
from attrs import field, frozen

from kars_router.errors import UndeterminedError, UserError
from kars_router.update.text import one_line
from kars_router.upgrade import CHART
from kars_router.upgrade.helm import Helm, HelmError
from kars_router.upgrade.manifests import Manifest, ManifestError, documents, read
from kars_router.upgrade.release import Release
from kars_router.upgrade.semver import is_version

_FILE: Final = "Chart.yaml"
_UPGRADES: Final = frozenset({"pre-upgrade", "post-upgrade"})


@frozen(kw_only=True)
class Wanted:
    """What the user wants to upgrade to.

    Attributes:
        chart: a directory, an archive, or anything else that Helm knows as a chart.
        version: of the chart; empty for the one that is there, or the newest.
        values: files with values, on top of those of the release.
        assignments: single values, likewise.
    """

    chart: str
    version: str = ""
    values: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()

    def options(self) -> tuple[str, ...]:
        """The values, as options of Helm; what the release was given before stays."""
        return (
            "--reset-then-reuse-values",
            *(word for each in self.values for word in ("--values", each)),
            *(word for each in self.assignments for word in ("--set", each)),
        )


@frozen(kw_only=True)
class Chart:
    """A chart on this machine.

    Attributes:
        path: its directory or archive.
        name: of the chart.
        version: of the chart.
        app_version: of what it installs; empty if it does not say.
        definitions: its custom resource definitions, which Helm never upgrades.
    """

    path: str
    name: str
    version: str
    app_version: str = ""
    definitions: tuple[Manifest, ...] = field(default=(), repr=False)


@frozen
class Rendered:
    """What a chart renders to for a release.

    Attributes:
        objects: what is applied.
        hooks: what runs before or after.
    """

    objects: tuple[Manifest, ...]
    hooks: tuple[Manifest, ...]


def installed_chart() -> str | None:
    """The chart of the operator's distribution, if that is installed; else None."""
    try:
        package = distribution(CHART)
    except PackageNotFoundError:
        return None
    for directory in _directories(package):
        if (directory / _FILE).is_file():
            return str(directory)
    return None


def _directories(package: Distribution) -> Sequence[Path]:
    found = [
        Path(str(package.locate_file(each))).parent
        for each in package.files or ()
        if each.name == _FILE and each.parts[-2:] == ("chart", _FILE)
    ]
    try:
        # Installed from a source tree, which has it beside the package.
        direct: Mapping[str, Any] = json.loads(package.read_text("direct_url.json") or "{}")
        url = urlsplit(str(direct.get("url", "")))
    except (ValueError, AttributeError):
        return found
    return [*found, Path(unquote(url.path), "chart")] if url.scheme == "file" else found


async def fetch(helm: Helm, wanted: Wanted, directory: Path) -> Chart:
    """Puts the chart on this machine, if it is not there yet, and reads what it is.

    Args:
        helm: gets it.
        wanted: which one.
        directory: an empty one, where it may be put.

    Raises:
        UserError: it is no chart, or has another version than wanted.
        UndeterminedError: it cannot be had.
    """
    path = wanted.chart
    if not await trio.Path(path).exists():
        path = await _pull(helm, wanted, directory)
    try:
        (described,) = documents(await helm.ask("show", "chart", path))
        definitions = read(await helm.ask("show", "crds", path))
    except (HelmError, ValueError) as error:
        raise UserError(f"{wanted.chart} is no chart that can be used: {error}") from None
    if not isinstance(described, dict):
        raise UserError(f"{wanted.chart} is no chart that can be used: its Chart.yaml is empty")
    version = str(described.get("version", ""))
    if not is_version(version):
        raise UserError(f"{wanted.chart} has no version that can be used: {one_line(version)!r}")
    if wanted.version and wanted.version != version:
        raise UserError(
            f"{wanted.chart} is version {version}, not {wanted.version};"
            " name a chart that has it with --chart"
        )
    return Chart(
        path=path,
        name=one_line(str(described.get("name", ""))),
        version=version,
        app_version=one_line(str(described.get("appVersion") or "")),
        definitions=tuple(definitions),
    )


async def _pull(helm: Helm, wanted: Wanted, directory: Path) -> str:
    """Fetches a chart; returns the archive."""
    version = ("--version", wanted.version) if wanted.version else ()
    try:
        await helm.ask("pull", wanted.chart, *version, "--destination", str(directory))
    except HelmError as error:
        raise UndeterminedError(
            f"the chart {wanted.chart} cannot be had: {error}; name another with --chart"
        ) from None
    for each in await trio.Path(directory).glob("*.tgz"):
        return str(each)
    raise UndeterminedError(f"helm pull {wanted.chart} has left no chart")


async def render(helm: Helm, release: Release, chart: Chart, wanted: Wanted) -> Rendered:
    """Has Helm render the chart with the values of the release, as an upgrade would.

    Helm's dry run on the server looks up what templates look up and refuses objects of that name
    which are not of the release. It does not apply anything, so it shows no conflicts.

    Raises:
        UserError: Helm refuses.
        UndeterminedError: what it renders cannot be read.
    """
    words = ("upgrade", release.name, chart.path, *wanted.options())
    try:
        found = await helm.ask_json(
            *words, "--dry-run=server", "--server-side=true", "--hide-notes"
        )
        hooks = [
            each["manifest"]
            for each in found.get("hooks") or ()
            if _UPGRADES & set(each.get("events") or ())
        ]
        return Rendered(
            tuple(read(found["manifest"])),
            tuple(manifest for text in hooks for manifest in read(text)),
        )
    except HelmError as error:
        said = str(error).removeprefix("UPGRADE FAILED: ")
        raise UserError(f"the chart cannot be applied to {release}: {said}") from None
    except (ManifestError, KeyError, TypeError, AttributeError) as error:
        raise UndeterminedError(f"what {chart.path} renders to cannot be read: {error}") from None
