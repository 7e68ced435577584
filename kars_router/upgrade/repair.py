"""A release that an interrupted run has left pending: recognised, and brought back.

Helm refuses to upgrade such a release, since another run might be at work on it. It goes back to
the last revision that was good, with `helm rollback`, after the same checks as before an upgrade.
If there was none yet, the revision that was being installed is applied again.
"""

from __future__ import annotations

from attrs import field, frozen

from kars_router.errors import UserError
from kars_router.kube import Kube
from kars_router.upgrade.chart import Chart
from kars_router.upgrade.helm import Helm
from kars_router.upgrade.plan import Plan
from kars_router.upgrade.preflight import Preflight
from kars_router.upgrade.release import Release, manifest_of


@frozen
class Repair:
    """How a pending release is repaired.

    Attributes:
        revision: to which it goes back.
        plan: what that does.
    """

    revision: int
    plan: Plan = field(repr=False)

    def words(self, timeout: str) -> tuple[str, ...]:
        """The command for Helm.

        Args:
            timeout: for single operations, as Helm writes it.
        """
        force = ("--force-conflicts",) if self.plan.force else ()
        return (
            *("rollback", self.plan.release.name, str(self.revision)),
            *("--server-side=true", *force, "--timeout", timeout),
        )


def target_of(release: Release) -> int:
    """The revision to go back to.

    Raises:
        UserError: the release was left in the middle of something and has none.
    """
    if release.good is not None:
        return release.good
    if release.last.status == "pending-install":
        return release.last.number
    raise UserError(
        f"{release} is {release.last.status} and has no revision to go back to;"
        " uninstall it with helm uninstall and install it again"
    )


async def prepare_repair(kube: Kube, helm: Helm, release: Release, *, force: bool) -> Repair:
    """Checks a repair; changes nothing.

    Args:
        kube: the API server.
        helm: for the namespace of the release.
        release: a pending one.
        force: whether fields of others may be taken.

    Raises:
        UserError: it cannot be repaired.
        UndeterminedError: something cannot be found out.
        KubeError: the server refused to answer.
    """
    revision = target_of(release)
    wanted = await manifest_of(helm, release.name, revision)
    before = await manifest_of(helm, release.name, release.last.number)
    preflight = Preflight(
        kube=kube,
        release=release.name,
        namespace=release.namespace,
        migrates=True,  # a roll-back always does
    )
    survey = await preflight.survey(wanted, before)
    chart = Chart(path="", name=release.last.chart, version=release.current.version)
    return Repair(revision, Plan(release=release, chart=chart, survey=survey, force=force))
