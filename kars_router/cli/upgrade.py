"""`kars upgrade`: the cluster release, after everything that it would do has been looked at.

Owns the order of what is said, asked and done. What is found out, and what is done, is
`kars_router.upgrade`'s; how it is shown is `upgrade_view`'s.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from attrs import evolve, frozen

from kars_router.cli.cluster import ask, cluster_options, connection_of
from kars_router.cli.egress_options import check_namespace
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option, wants_colour
from kars_router.cli.upgrade_view import answer, pending, shown
from kars_router.errors import UndeterminedError, UserError

if TYPE_CHECKING:
    from kars_router.kube import Connection, Kube
    from kars_router.upgrade.chart import Wanted
    from kars_router.upgrade.helm import Helm
    from kars_router.upgrade.plan import Plan
    from kars_router.upgrade.release import Release
    from kars_router.upgrade.running import Outcome

_RELEASE: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,51}[a-z0-9])?\Z")
_TIMEOUT: Final = re.compile(r"[1-9][0-9]{0,5}[smh]\Z")


def _check_release(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not _RELEASE.match(value):
        raise click.BadParameter(f"no release can be called {value!r}", param=parameter)
    return value


def _check_timeout(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not _TIMEOUT.match(value):
        raise click.BadParameter(f"{value!r} is no time such as 90s or 5m", param=parameter)
    return value


def _check_version(_: click.Context, parameter: click.Parameter, value: str | None) -> str:
    from kars_router.upgrade.semver import is_version

    version = (value or "").removeprefix("v")
    if value is not None and not is_version(version):
        raise click.BadParameter(f"{value!r} is no version such as 0.2.0", param=parameter)
    return version


@click.command(
    "upgrade",
    epilog=examples(
        ("What would change, and is anything in the way?", "kars upgrade --dry-run"),
        ("Do it without asking", "kars upgrade --yes"),
        ("To the chart of a directory", "kars upgrade --chart ./chart --to 0.2.0 -n kars-system"),
    ),
)
@click.option("--to", metavar="VERSION", callback=_check_version, help="The chart's version.")
@click.option(
    "--chart",
    metavar="PATH|REF",
    envvar="KARS_CHART",
    show_envvar=True,
    help="The chart; that of the installed kars-operator distribution by default.",
)
@click.option(
    "--release",
    "name",
    metavar="NAME",
    default="kars-operator",
    show_default=True,
    callback=_check_release,
    help="The release.",
)
@click.option(
    "-n",
    "--namespace",
    metavar="NS",
    callback=check_namespace,
    help="Its namespace; without it, the context's, and then any in which the release is.",
)
@click.option(
    "-f",
    "--values",
    metavar="FILE",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="Values on top of those that the release has; repeatable.",
)
@click.option(
    "--set", "assignments", metavar="KEY=VALUE", multiple=True, help="A single one, likewise."
)
@click.option("--dry-run", is_flag=True, help="Look at everything, but change nothing.")
@click.option(
    "--force-conflicts", is_flag=True, help="Take fields that others own; they are named first."
)
@click.option(
    "--repair", is_flag=True, help="Bring a release back that an interrupted run left pending."
)
@click.option(
    "--skip-crds", is_flag=True, help="Leave the custom resource definitions as they are."
)
@click.option(
    "--timeout",
    metavar="TIME",
    default="5m",
    show_default=True,
    callback=_check_timeout,
    help="Until when everything has to be ready; else Helm rolls back.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@cluster_options
@output_option
def command(**options: Any) -> None:
    """Upgrade the operator in the cluster, if nothing is in the way.

    Before anything is changed, the API server goes through every object of the new chart. Fields
    that others have set, such as a variable of `kubectl set env`, are named with their owners, and
    nothing is changed: Helm would fail halfway, and so would its way back. Either hand them back
    with the commands that are shown, or take them with --force-conflicts.

    Needs Helm 4 on PATH. The values of the release stay as they are.

    \b
    Exit codes:
      0  it is upgraded, or there was nothing to do
      1  something is in the way, it failed, or it was not to be done after all
      2  wrong usage, or there is no terminal to ask on
      3  it could not be found out: no Helm 4, no answer
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    asked = _Asked(**options)
    if asked.output != "table" and not (asked.yes or asked.dry_run):
        raise click.UsageError(f"-o {asked.output} asks nothing; add --yes or --dry-run")
    asked.run()


@frozen(kw_only=True)
class _Asked:
    """What the user has asked for, and the run of it."""

    to: str
    chart: str | None
    name: str
    namespace: str | None
    values: tuple[str, ...]
    assignments: tuple[str, ...]
    dry_run: bool
    force_conflicts: bool
    repair: bool
    skip_crds: bool
    timeout: str
    yes: bool
    kubeconfig: Path | None
    cluster: str | None
    output: Output

    def run(self) -> None:
        """Does it.

        Raises:
            UserError: something is in the way, or it failed.
        """
        from kars_router.upgrade.helm import Cluster, find
        from kars_router.upgrade.prepare import find_release

        wanted = self._wanted()
        connection = connection_of(self.kubeconfig, self.cluster, self.namespace)
        cluster = Cluster(
            kubeconfig=self.kubeconfig, context=self.cluster, namespace=connection.namespace
        )
        found = find(cluster, os.environ)
        anywhere = self.namespace is None
        helm, release = ask(
            connection, lambda kube: find_release(kube, found, self.name, anywhere=anywhere)
        )
        session = _Session(self, connection, helm)
        if release.last.is_pending:
            release = session.repair(release)
        with tempfile.TemporaryDirectory(prefix="kars-upgrade-") as directory:
            session.upgrade(release, wanted, Path(directory))

    def _wanted(self) -> Wanted:
        from kars_router.upgrade.chart import Wanted, installed_chart

        chart = self.chart or installed_chart()
        if chart is None:
            raise UserError(
                "there is no chart to upgrade to: name one with --chart, or install the"
                " distribution kars-operator beside kars, which has it"
            )
        return Wanted(
            chart=chart, version=self.to, values=self.values, assignments=self.assignments
        )


@frozen
class _Session:
    """A run, once it is known which release is meant."""

    asked: _Asked
    connection: Connection
    helm: Helm

    def upgrade(self, release: Release, wanted: Wanted, directory: Path) -> None:
        """Checks, shows, asks, upgrades and says what came of it."""
        from kars_router.upgrade.notes import notes_between
        from kars_router.upgrade.prepare import fetch_chart, prepare

        async def look(kube: Kube) -> Plan:
            chart = await fetch_chart(self.helm, release, wanted, directory)
            crds = not self.asked.skip_crds
            return await prepare(kube, self.helm, release, chart=chart, wanted=wanted, crds=crds)

        plan = evolve(ask(self.connection, look), force=self.asked.force_conflicts)
        if plan.chart.version != release.current.version:
            notes = notes_between(release.current.app_version, plan.chart.app_version)
            plan = evolve(plan, notes=notes)
        self._show(plan)
        if plan.is_blocked:
            self._emit(plan)
            raise _blocked(plan)
        if self.asked.dry_run or not plan.changes_anything:
            self._emit(plan)
            return
        self._consent("Upgrade it?")
        outcome = self._do(plan, wanted)
        self._emit(plan, outcome)
        self._say(plan, outcome)

    def _do(self, plan: Plan, wanted: Wanted) -> Outcome:
        from kars_router.upgrade import definitions
        from kars_router.upgrade.rollout import Rollout, workloads
        from kars_router.upgrade.running import Upgrade, upgrade

        async def act(kube: Kube) -> Outcome:
            await definitions.apply(kube, plan.definitions, force=plan.force)
            watched = workloads(plan.survey.checked, exact=not plan.release.migrates)
            rollout = Rollout(kube, watched, _tell)
            how = Upgrade(plan, wanted.options(), self.asked.timeout)
            return await upgrade(self.helm, how, rollout=rollout, tell=_tell)

        return ask(self.connection, act)

    def repair(self, release: Release) -> Release:
        """Brings a pending release back to a known state; returns it as it is then."""
        from kars_router.upgrade.release import read_release
        from kars_router.upgrade.repair import prepare_repair
        from kars_router.upgrade.rollout import Rollout
        from kars_router.upgrade.running import run

        repair = ask(
            self.connection,
            lambda kube: prepare_repair(kube, self.helm, release, force=self.asked.force_conflicts),
        )
        words = repair.words(self.asked.timeout)
        way = shlex.join(["helm", *words, *self.helm.cluster.for_helm()])
        said = pending(release, repair.revision)
        if repair.plan.is_blocked:
            self._show(repair.plan, heading=said)
            self._emit(repair.plan)
            raise _blocked(repair.plan)
        if self.asked.dry_run or not self._may_repair(said):
            self._emit(repair.plan)
            raise UserError(f"{said}; if no run is at work on it, add --repair (it runs {way})")

        async def act(kube: Kube) -> Outcome:
            rollout = Rollout(kube, (), _tell)
            return await run(self.helm, words, release, rollout=rollout, tell=_tell)

        outcome = ask(self.connection, act)
        if not outcome.succeeded:
            raise UserError(f"{release} could not be repaired: {outcome.said}")
        after = ask(self.connection, lambda _: read_release(self.helm, release.name))
        if self.asked.output == "table":
            click.echo(f"{release} is repaired: it is at {after.current.version} again")
        return after

    def _may_repair(self, said: str) -> bool:
        if self.asked.repair:
            return True
        if self.asked.yes or self.asked.output != "table" or not _terminal():
            return False
        click.echo(f"{said[0].upper()}{said[1:]}.", err=True)
        return click.confirm("If no other run is at work on it: repair it?", err=True)

    def _consent(self, question: str) -> None:
        if self.asked.yes:
            return
        if not _terminal():
            raise click.UsageError("there is no terminal to ask on; add --yes")
        if not click.confirm(question, err=True):
            raise UserError("nothing was changed")

    def _show(self, plan: Plan, heading: str = "") -> None:
        if self.asked.output == "table":
            cluster = self.helm.cluster.for_kubectl()
            click.echo(shown(plan, cluster, heading=heading), color=wants_colour())

    def _emit(self, plan: Plan, outcome: Outcome | None = None) -> None:
        if self.asked.output != "table":
            data = answer(plan, self.helm.cluster.for_kubectl(), outcome)
            emit(data, self.asked.output, str)

    def _say(self, plan: Plan, outcome: Outcome) -> None:
        """Says what came of it."""
        release, after = plan.release, outcome.release
        if outcome.succeeded:
            number = f" (revision {after.last.number})" if after is not None else ""
            if self.asked.output == "table":
                click.echo(f"{release} is at {plan.chart.version}{number}")
            return
        for each in outcome.troubles:
            click.echo(clean(f"kars: {each.where}: {each.reason}"), err=True)
        what = "was interrupted" if outcome.interrupted else "failed"
        if after is None:
            raise UndeterminedError(
                f"the upgrade of {release} {what}, and how it is now is not known: {outcome.said}"
            )
        raise UserError(f"the upgrade of {release} {what}{_left(release, after)}: {outcome.said}")


def _left(before: Release, after: Release) -> str:
    """What a failed upgrade has left behind, as the end of a clause."""
    last = after.last
    if last.number == before.last.number:
        return ", and nothing of it was changed"
    if last.status == "deployed":
        return f", and it was rolled back to {last.version}"
    return f", and it was left {last.status} at revision {last.number}"


def _blocked(plan: Plan) -> UserError:
    count = len(plan.blocking())
    reasons = []
    if count:
        reasons.append(f"{count} {'field belongs' if count == 1 else 'fields belong'} to others")
    if plan.problems():
        reasons.append("the API server refuses what the chart has")
    return UserError(f"nothing was changed: {', and '.join(reasons)}")


def _terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _tell(line: str) -> None:
    """Tells whoever sits there how far it is."""
    if sys.stderr is not None and sys.stderr.isatty():
        click.echo(clean(line), err=True)


__all__ = ["command"]
