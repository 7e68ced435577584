"""What an upgrade would do, and what is in its way.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import field, frozen

from kars_router.update.findings import Findings
from kars_router.upgrade.changes import Change, Reference
from kars_router.upgrade.chart import Chart
from kars_router.upgrade.conflicts import Conflict, blocking
from kars_router.upgrade.preflight import Checked, Survey
from kars_router.upgrade.release import Release
from kars_router.upgrade.remedies import hand_back


@frozen(kw_only=True)
class Plan:
    """What is to be done to a release.

    Attributes:
        release: as it is.
        chart: what it is to be.
        definitions: the chart's custom resource definitions.
        survey: its objects.
        hooks: what Helm runs before or after.
        notes: what is new.
        force: whether fields of others may be taken.
        remarks: sentences for the user.
    """

    release: Release
    chart: Chart
    definitions: tuple[Checked, ...] = ()
    survey: Survey = field(factory=Survey)
    hooks: tuple[Change, ...] = ()
    notes: Findings | None = None
    force: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def checked(self) -> tuple[Checked, ...]:
        """All that is applied, in its order."""
        return (*self.definitions, *self.survey.checked)

    @property
    def changes(self) -> tuple[Change, ...]:
        """What becomes of every object."""
        return (*(each.change for each in self.checked), *self.survey.removed, *self.hooks)

    @property
    def changes_anything(self) -> bool:
        """Whether there is anything to do; a release that is not deployed is to become so."""
        changed = any(each.action in {"create", "change", "delete"} for each in self.changes)
        return changed or self.release.last.status != "deployed" or not self._same_version()

    def _same_version(self) -> bool:
        return self.chart.version == self.release.current.version

    def conflicts(self) -> Iterator[tuple[Checked, Conflict]]:
        """Fields of others that the chart wants otherwise."""
        for each in self.checked:
            for conflict in each.conflicts:
                yield each, conflict

    def blocking(self) -> tuple[tuple[Checked, Conflict], ...]:
        """Those that are in the way."""
        found = []
        for each in self.checked:
            found += [(each, one) for one in blocking(each.conflicts, force=self.force)]
        return tuple(found)

    def problems(self) -> tuple[tuple[Reference, str], ...]:
        """Why the server refuses, whatever is done about conflicts."""
        refused = ((each.reference, each.problem) for each in self.checked if each.problem)
        return (*refused, *self.survey.problems)

    @property
    def is_blocked(self) -> bool:
        """Whether nothing may be done."""
        return bool(self.blocking() or self.problems())

    def commands(self, cluster: tuple[str, ...] = ()) -> tuple[str, ...]:
        """What hands the fields back that are in the way.

        Args:
            cluster: the words that tell kubectl which cluster is meant.
        """
        found: list[str] = []
        for each in self.checked:
            conflicts = blocking(each.conflicts, force=self.force)
            if conflicts and each.live is not None and each.resource is not None:
                found += hand_back(conflicts, each.live, each.resource, cluster)
        return tuple(found)
