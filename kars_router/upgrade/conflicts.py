"""Fields that an apply would take from others: what the API server says, and `managedFields`.

Pure. The server names each field with its manager; the tree of that manager's fields says where in
the object that is. What a forced dry run would take beyond what was said is a conflict as well.

Source of the texts: k8s.io/apimachinery/pkg/util/managedfields/internal/conflict.go.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import attrs
from attrs import frozen

from kars_router.kube.errors import Cause
from kars_router.upgrade import MANAGER
from kars_router.upgrade.ownership import (
    APPLY,
    MISSING,
    UPDATE,
    Entry,
    Manifest,
    Owner,
    Path,
    entries,
    lost,
    shown,
    value_at,
)

REASON: Final = "FieldManagerConflict"
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_OWNER: Final = re.compile(
    rf"conflicts? with (?P<manager>{_QUOTED})"
    rf"(?: with subresource (?P<subresource>{_QUOTED}))?"
    # A colon ends it, but for those of a time.
    r"(?: using (?P<version>[^\s:]+)(?: at (?P<time>[0-9TZ:.+-]*[0-9TZ]))?)?"
)
# An environment variable has one or the other.
_EITHER: Final = {"f:value": "f:valueFrom", "f:valueFrom": "f:value"}


@frozen(kw_only=True)
class Conflict:
    """A field that somebody else owns and that the chart wants otherwise.

    Attributes:
        field: as the API server writes it.
        owner: who owns it.
        path: where it is; empty if `managedFields` does not have it.
        index: the owner's place in `managedFields`; None if it is not there.
        theirs: the value now; `MISSING` if there is none.
        ours: the value of the chart; `MISSING` if there is none.
        forceable: whether taking the field would do. It does not where both values together are
            invalid.
    """

    field: str
    owner: Owner
    path: Path = ()
    index: int | None = None
    theirs: Any = attrs.field(default=MISSING, repr=False)
    ours: Any = attrs.field(default=MISSING, repr=False)
    forceable: bool = True


def owner_of(message: str) -> Owner | None:
    """The manager that a cause names; None if it names none.

    Args:
        message: such as `conflict with "kubectl" with subresource "scale" using apps/v1`. Who
            applies has no version in it.
    """
    found = _OWNER.match(message)
    return _owner(found) if found else None


def _owner(found: re.Match[str]) -> Owner:
    version = found["version"] or ""
    operation = UPDATE if version else APPLY
    return Owner(
        _unquoted(found["manager"]), operation, version, _unquoted(found["subresource"] or '""')
    )


def _unquoted(text: str) -> str:
    """What Go's `%q` has quoted; as JSON does, but for rare characters."""
    try:
        return str(json.loads(text))
    except ValueError:
        return text[1:-1]


def said(message: str) -> Iterator[tuple[Owner, str]]:
    """The owners and fields in the text of a whole error, for one that has no causes.

    Args:
        message: `Apply failed with 1 conflict: conflict with "a" using v1: .data.key`, or with
            several: a line `conflicts with "a" using v1:` and one with `- FIELD` for each field.
            Line feeds may have become spaces.
    """
    heads = list(_OWNER.finditer(message))
    ends = [*(head.start() for head in heads[1:]), len(message)]
    for head, end in zip(heads, ends, strict=False):
        listed = message[head.end() : end]
        for each in re.split(r"(?:^|\s)-\s+(?=\.)", listed.lstrip(": \n")):
            if each.strip().startswith("."):
                yield _owner(head), each.strip()


def find(
    *,
    live: Manifest,
    wanted: Manifest,
    result: Manifest | None,
    causes: Sequence[Cause] = (),
    message: str = "",
    migrates: bool = False,
) -> tuple[Conflict, ...]:
    """All conflicts of one object, in the order of its fields.

    Args:
        live: the object as it is.
        wanted: what is applied.
        result: what a dry run makes of it, a forced one if there were conflicts; None if the
            server refuses that as well.
        causes: what the server said without force.
        message: its sentence, for one that gives no causes.
        migrates: whether Helm turns its own updates into what it applies first.
    """
    finder = _Finder(live, wanted, result, migrates)
    named = [
        (owner, each.field)
        for each in causes
        if each.reason == REASON and (owner := owner_of(each.message)) is not None
    ]
    found = {
        (each.owner, each.field): each
        for each in (finder.named(owner, name) for owner, name in named or said(message))
    }
    for each in [*finder.taken(), *finder.overwritten(), *finder.clashing()]:
        known = found.get((each.owner, each.field))
        if known is None or not each.forceable:
            found[each.owner, each.field] = each
    return tuple(
        sorted(
            (each for each in found.values() if not finder.is_own(each.owner)),
            key=lambda each: (each.field, each.owner.manager, each.owner.operation),
        )
    )


@frozen
class _Finder:
    """Finds conflicts of one object; see `find`."""

    live: Manifest
    wanted: Manifest
    result: Manifest | None
    migrates: bool

    def is_own(self, owner: Owner) -> bool:
        """Whether it is Helm that owns it; what Helm once updated only if it migrates that."""
        if owner.manager != MANAGER or owner.subresource:
            return False
        return owner.operation == APPLY or self.migrates

    def named(self, owner: Owner, name: str) -> Conflict:
        """The conflict that the server has named."""
        for entry in self._candidates(owner):
            for path in entry.paths():
                if shown(path) == name:
                    return self._conflict(entry, path)
        return Conflict(field=name, owner=owner)

    def _candidates(self, owner: Owner) -> Iterator[Entry]:
        """The entries that may be meant, the likeliest first."""
        same = [each for each in entries(self.live) if each.owner.manager == owner.manager]
        yield from (
            each
            for each in same
            if each.owner.operation == owner.operation
            and each.owner.subresource == owner.subresource
            and owner.version in {"", each.owner.version}
        )
        yield from same

    def taken(self) -> Iterator[Conflict]:
        """What others would lose by force."""
        for entry, path in lost(self.live, self.result) if self.result is not None else ():
            found = self._conflict(entry, path)
            # What is not there any more is forgotten with any change.
            if found.theirs != found.ours:
                yield found

    def overwritten(self) -> Iterator[Conflict]:
        """What others own and would find changed, although the server sees no conflict in it.

        The `stringData` of a Secret is such a case: it becomes `data` only after the merge.
        """
        if self.result is None:
            return
        for entry in entries(self.live):
            for path in entry.values() if not self.is_own(entry.owner) else ():
                found = self._conflict(entry, path)
                if found.theirs != found.ours:
                    yield found

    def clashing(self) -> Iterator[Conflict]:
        """Variables that others give a value and the chart a source, or the other way round.

        An apply takes nothing from anybody there, and the outcome has both, which is invalid.
        """
        for entry in entries(self.live):
            for path in entry.paths() if not self.is_own(entry.owner) else ():
                for place, element in enumerate(path[:-2]):
                    kind = path[place + 2]
                    if element != "f:env" or kind not in _EITHER:
                        continue
                    ours = value_at(self.wanted, path[: place + 2])
                    if _has_only(ours, _EITHER[kind], kind):
                        yield Conflict(
                            field=shown(path),
                            owner=entry.owner,
                            path=path,
                            index=entry.index,
                            theirs=value_at(self.live, path),
                            ours=ours[_EITHER[kind][2:]],
                            forceable=False,
                        )

    def _conflict(self, entry: Entry, path: Path) -> Conflict:
        return Conflict(
            field=shown(path),
            owner=entry.owner,
            path=path,
            index=entry.index,
            theirs=value_at(self.live, path),
            ours=value_at(self.wanted if self.result is None else self.result, path),
        )


def _has_only(variable: object, wanted: str, other: str) -> bool:
    return isinstance(variable, Mapping) and wanted[2:] in variable and other[2:] not in variable


def blocking(found: Iterable[Conflict], *, force: bool) -> tuple[Conflict, ...]:
    """Those that are in the way.

    Args:
        found: conflicts.
        force: whether fields may be taken.
    """
    return tuple(each for each in found if not force or not each.forceable)
