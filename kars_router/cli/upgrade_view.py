"""What `kars upgrade` shows: the plan, what is in its way, and how that is mended.

Owns the columns and the plain data. Values of Secrets are never shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from kars_router.cli.output import clean, table

if TYPE_CHECKING:
    from kars_router.update.findings import Findings
    from kars_router.upgrade.changes import Change, Reference
    from kars_router.upgrade.conflicts import Conflict
    from kars_router.upgrade.ownership import Owner
    from kars_router.upgrade.plan import Plan
    from kars_router.upgrade.preflight import Checked
    from kars_router.upgrade.release import Release, Revision
    from kars_router.upgrade.running import Outcome

_HIDDEN: Final = "(hidden)"
_LONGEST: Final = 60  # characters of a value
_FIELDS: Final = 2  # that are named of each object
_ORDER: Final = ("create", "change", "delete", "keep", "run")


def pending(release: Release, revision: int) -> str:
    """What is said of a pending release; a clause.

    Args:
        release: which one.
        revision: to which it can be brought back.
    """
    last = release.last
    return (
        f"{release} is {last.status} at revision {last.number} since {last.updated or 'a while'}:"
        " a run was interrupted, or is still at work;"
        f" it can be brought back to revision {revision}"
    )


def shown(plan: Plan, cluster: Sequence[str], *, heading: str = "") -> str:
    """The plan for people.

    Args:
        plan: what is to be done.
        cluster: the words that tell kubectl which cluster is meant.
        heading: in place of the one that names both versions.
    """
    parts = [click.style(clean(heading or _heading(plan)), bold=True)]
    parts += [_notes(plan), _changes(plan), "\n".join(map(clean, plan.remarks))]
    parts += [_conflicts(plan), _problems(plan), _remedies(plan, cluster)]
    return "\n\n".join(filter(None, parts))


def _heading(plan: Plan) -> str:
    release, chart = plan.release, plan.chart
    before = release.current.version
    if not plan.changes_anything:
        return f"{release} is at {before}, and there is nothing to do"
    versions = before if before == chart.version else f"{before} -> {chart.version}"
    return f"{release}: {chart.name} {versions}"


def _notes(plan: Plan) -> str:
    notes = plan.notes
    if notes is None:
        return ""
    if not notes.summaries:
        why = notes.problem or notes.notes_problem
        lines = [f"What is new is not known: {why}"] if why else []
    else:
        width = max(map(len, notes.summaries))
        lines = ["What is new:"]
        lines += [
            f"  {each.ljust(width)}  {notes.summaries.get(each, '')}".rstrip()
            for each in reversed(notes.newer)
        ]
    if notes.page:
        lines.append(f"Release notes: {notes.page}")
    return "\n".join(map(clean, lines))


def _changes(plan: Plan) -> str:
    changes = [each for each in plan.changes if each.action != "none"]
    changes.sort(key=lambda each: _ORDER.index(each.action))
    if not changes:
        return ""
    rows = [
        (each.action, each.reference, f"{each.pods} restart" if each.pods else "", _what(each))
        for each in changes
    ]
    same = len(plan.changes) - len(changes)
    rest = f"\n{same} {'object stays' if same == 1 else 'objects stay'} as they are" if same else ""
    if same == 1:
        rest = "\n1 object stays as it is"
    return table(("CHANGE", "OBJECT", "PODS", "WHAT"), rows) + rest


def _what(change: Change) -> str:
    said = [
        f"{each.container}: {each.before} -> {each.after}" if each.before else each.after
        for each in change.images
    ]
    fields = [each for each in change.fields if not (said and each.endswith(".image"))]
    said += fields[:_FIELDS]
    if len(fields) > _FIELDS:
        said.append(f"{len(fields) - _FIELDS} more")
    return ", ".join([*said, *([change.note] if change.note else [])])


def _conflicts(plan: Plan) -> str:
    parts = []
    blocking = plan.blocking()
    taken = [pair for pair in plan.conflicts() if pair not in blocking]
    for title, pairs in (
        ("These fields are taken from others:", taken),
        ("These fields belong to others:", blocking),
    ):
        if pairs:
            rows = [
                (
                    each.reference,
                    conflict.field,
                    _owner(conflict.owner),
                    _value(each, conflict, conflict.theirs),
                    _value(each, conflict, conflict.ours),
                )
                for each, conflict in pairs
            ]
            headings = ("OBJECT", "FIELD", "MANAGER", "NOW", "CHART")
            parts.append(f"{title}\n\n{table(headings, rows)}")
    return "\n\n".join(parts)


def _owner(owner: Owner) -> str:
    aside = f" ({owner.subresource})" if owner.subresource else ""
    return f"{owner.manager}{aside}"


def _value(checked: Checked, conflict: Conflict, value: Any) -> str:
    import msgspec

    from kars_router.upgrade.ownership import MISSING

    if value is MISSING:
        return "-"
    value = _visible(checked.reference, conflict, value)
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _visible(reference: Reference, conflict: Conflict, value: Any) -> Any:
    """A value as it may be shown; None if there is none."""
    from kars_router.upgrade.ownership import MISSING

    if value is MISSING:
        return None
    is_secret = reference.kind == "Secret" and not conflict.field.startswith(".metadata")
    return _HIDDEN if is_secret else value


def _problems(plan: Plan) -> str:
    problems = plan.problems()
    if not problems:
        return ""
    lines = [f"  {reference}: {problem}" for reference, problem in problems]
    return "\n".join(map(clean, ["The API server refuses:", "", *lines]))


def _remedies(plan: Plan, cluster: Sequence[str]) -> str:
    blocking = plan.blocking()
    if not blocking:
        return ""
    lines = []
    commands = plan.commands(tuple(cluster))
    if commands:
        lines = ["To hand them back, run this, and then the upgrade again:", ""]
        lines += [f"  {each}" for each in commands]
    if any(each.owner.operation == "Apply" for _, each in blocking):
        lines += ["", "Who applies them will take them again, until they are taken out there."]
    if all(each.forceable for _, each in blocking):
        lines += ["", "To take them, add --force-conflicts."]
    elif not plan.force:
        lines += ["", "--force-conflicts would not do for all of them."]
    return "\n".join(map(clean, lines)).strip("\n")


def answer(plan: Plan, cluster: Sequence[str], outcome: Outcome | None = None) -> dict[str, Any]:
    """The plan, and what came of it, as plain data.

    Args:
        plan: what is to be done.
        cluster: the words that tell kubectl which cluster is meant.
        outcome: what came of it; None if nothing was done.
    """
    blocking = plan.blocking()
    return {
        "release": plan.release.name,
        "namespace": plan.release.namespace,
        "installed": _revision(plan.release.current),
        "target": {
            "chart": plan.chart.name,
            "version": plan.chart.version,
            "appVersion": plan.chart.app_version or None,
        },
        "status": plan.release.last.status,
        "news": _news(plan.notes),
        "changes": [_change(each) for each in plan.changes if each.action != "none"],
        "conflicts": [
            _conflict(each, conflict, blocks=(each, conflict) in blocking)
            for each, conflict in plan.conflicts()
        ],
        "problems": [
            {**_object(reference), "problem": problem} for reference, problem in plan.problems()
        ],
        "commands": list(plan.commands(tuple(cluster))),
        "remarks": list(plan.remarks),
        "blocked": plan.is_blocked,
        "upgraded": outcome is not None and outcome.succeeded,
        "outcome": _outcome(outcome) if outcome is not None else None,
    }


def _news(notes: Findings | None) -> list[dict[str, str]]:
    newer = reversed(notes.newer) if notes is not None else ()
    summaries = notes.summaries if notes is not None else {}
    return [{"version": each, "summary": summaries.get(each, "")} for each in newer]


def _revision(revision: Revision) -> dict[str, Any]:
    return {
        "chart": revision.chart,
        "version": revision.version,
        "appVersion": revision.app_version or None,
        "revision": revision.number,
    }


def _object(reference: Reference) -> dict[str, Any]:
    return {
        "group": reference.group,
        "kind": reference.kind,
        "namespace": reference.namespace or None,
        "name": reference.name,
    }


def _change(change: Change) -> dict[str, Any]:
    return {
        **_object(change.reference),
        "action": change.action,
        "fields": list(change.fields),
        "images": [
            {"container": each.container, "before": each.before or None, "after": each.after}
            for each in change.images
        ],
        "podsRestarted": change.pods,
        "note": change.note or None,
    }


def _conflict(checked: Checked, conflict: Conflict, *, blocks: bool) -> dict[str, Any]:
    owner = conflict.owner
    return {
        **_object(checked.reference),
        "field": conflict.field,
        "manager": owner.manager,
        "operation": owner.operation,
        "subresource": owner.subresource or None,
        "now": _visible(checked.reference, conflict, conflict.theirs),
        "wanted": _visible(checked.reference, conflict, conflict.ours),
        "canBeForced": conflict.forceable,
        "blocks": blocks,
    }


def _outcome(outcome: Outcome) -> dict[str, Any]:
    after = outcome.release
    return {
        "succeeded": outcome.succeeded,
        "interrupted": outcome.interrupted,
        "said": outcome.said if not outcome.succeeded else None,
        "troubles": [{**_object(each.where), "reason": each.reason} for each in outcome.troubles],
        "status": after.last.status if after is not None else None,
        "now": _revision(after.current) if after is not None else None,
    }
