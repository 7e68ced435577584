"""Finds out all there is to know before an upgrade; changes nothing.

Owns the order of the questions, and what makes an upgrade out of the question altogether.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from attrs import evolve

from kars_router.errors import UserError
from kars_router.kube import Kube
from kars_router.kube.resources import DEPLOYMENTS
from kars_router.upgrade import definitions
from kars_router.upgrade.changes import Change, reference_of
from kars_router.upgrade.chart import Chart, Wanted, fetch, render
from kars_router.upgrade.helm import Helm
from kars_router.upgrade.plan import Plan
from kars_router.upgrade.preflight import Checked, Preflight
from kars_router.upgrade.release import (
    NoReleaseError,
    Release,
    manifest_of,
    namespaces_of,
    read_release,
)
from kars_router.upgrade.semver import is_older

_PINNED: Final = (
    "no image changes, although the chart's version does: the values of the release name the images"
)


async def find_release(
    kube: Kube, helm: Helm, name: str, *, anywhere: bool
) -> tuple[Helm, Release]:
    """Finds a release.

    Args:
        kube: the API server; asked first, since it says more clearly why it cannot be asked.
        helm: for the namespace that counts.
        name: of the release.
        anywhere: whether to look in other namespaces if it is not there.

    Returns:
        Helm for the namespace of the release, and the release.

    Raises:
        UserError: there is none, or several.
        KubeError: the server cannot be asked.
    """
    await kube.has(DEPLOYMENTS)
    try:
        return helm, await read_release(helm, name)
    except NoReleaseError as error:
        absent = error
    found = await namespaces_of(helm, name) if anywhere else ()
    if not found:
        raise absent
    if len(found) > 1:
        raise UserError(
            f"there are releases {name} in {', '.join(found)}; choose one with --namespace"
        )
    there = evolve(helm, cluster=evolve(helm.cluster, namespace=found[0]))
    return there, await read_release(there, name)


async def fetch_chart(helm: Helm, release: Release, wanted: Wanted, directory: Path) -> Chart:
    """Gets the chart, and refuses one that the release cannot or should not become.

    Args:
        helm: for the namespace of the release.
        release: what is upgraded.
        wanted: what it is to be.
        directory: an empty one, where the chart may be put.

    Raises:
        UserError: it is another chart, or an older one that was not named.
        UndeterminedError: it cannot be had.
    """
    chart = await fetch(helm, wanted, directory)
    before = release.current
    if chart.name != before.chart:
        raise UserError(
            f"{release} is a release of the chart {before.chart},"
            f" and {wanted.chart} is {chart.name}"
        )
    if is_older(chart.version, before.version) is not False and not (
        wanted.version or chart.version == before.version
    ):
        raise UserError(
            f"{release} is at {before.version}, and the chart is {chart.version};"
            f" to go back, name the version with --to {chart.version}"
        )
    return chart


async def prepare(
    kube: Kube, helm: Helm, release: Release, *, chart: Chart, wanted: Wanted, crds: bool
) -> Plan:
    """Renders the chart and has the API server go through it.

    Args:
        kube: the API server.
        helm: for the namespace of the release.
        release: not a pending one.
        chart: what it is to be.
        wanted: the values.
        crds: whether custom resource definitions are upgraded.

    Raises:
        UserError: Helm refuses the chart or its values.
        UndeterminedError: something cannot be found out.
        KubeError: the server refused to answer.
    """
    rendered = await render(helm, release, chart, wanted)
    before = await manifest_of(helm, release.name, release.current.number)
    remarks = []
    preflight = Preflight(kube=kube, release=release.name, namespace=release.namespace)
    checked: tuple[Checked, ...] = ()
    if chart.definitions and crds:
        if is_older(chart.version, release.current.version):
            remarks.append("the custom resource definitions stay as they are on the way back")
        else:
            checked = await definitions.check(evolve(preflight, migrates=True), chart.definitions)
    preflight = evolve(preflight, migrates=release.migrates)
    survey = await preflight.survey(rendered.objects, before)
    images = [image for each in survey.checked for image in each.change.images]
    if not images and chart.version != release.current.version:
        remarks.append(_PINNED)
    return Plan(
        release=release,
        chart=chart,
        definitions=checked,
        survey=survey,
        hooks=tuple(
            Change(reference=reference_of(each, namespace=release.namespace), action="run")
            for each in rendered.hooks
        ),
        remarks=tuple(remarks),
    )
