"""Label selectors as sets: what they match, whether one is within others.

Exact: a selector is one condition for each label, and the values of one label do not depend on
those of another. Must not know policies.

Source: Kubernetes "Labels and Selectors".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen

from kars_router.egress.spans import UnreadableError

_MOST_PIECES: Final = 256


@frozen
class Values:
    """What one label may be.

    Attributes:
        listed: values.
        others: whether it may be anything but these, rather than one of these.
        absent: whether it may be missing.
    """

    listed: frozenset[str]
    others: bool
    absent: bool

    def __and__(self, other: Values) -> Values:
        if self.others and other.others:
            listed = self.listed | other.listed
        elif self.others:
            listed = other.listed - self.listed
        elif other.others:
            listed = self.listed - other.listed
        else:
            listed = self.listed & other.listed
        return Values(listed, self.others and other.others, self.absent and other.absent)

    def __invert__(self) -> Values:
        return Values(self.listed, not self.others, not self.absent)

    def __bool__(self) -> bool:
        return self.others or self.absent or bool(self.listed)

    def admit(self, value: str | None) -> bool:
        """Whether the label may have this value; None stands for no such label."""
        return self.absent if value is None else (value in self.listed) is not self.others


ANY: Final = Values(frozenset(), others=True, absent=True)
PRESENT: Final = Values(frozenset(), others=True, absent=False)

# What each label has to be; any other may be anything.
Labels = Mapping[str, Values]


def read(selector: Mapping[str, Any] | None) -> dict[str, Values]:
    """Reads a label selector; one that is empty or missing matches everything.

    Raises:
        UnreadableError: it has an operator that there is not.
    """
    found: dict[str, Values] = {}
    conditions = [
        (key, Values(frozenset((str(value),)), others=False, absent=False))
        for key, value in ((selector or {}).get("matchLabels") or {}).items()
    ]
    conditions += map(_expression, (selector or {}).get("matchExpressions") or ())
    for key, values in conditions:
        found[key] = found.get(key, ANY) & values
    return found


def match(wanted: Labels, labels: Mapping[str, str]) -> bool:
    """Whether labels are what is wanted."""
    return all(values.admit(labels.get(key)) for key, values in wanted.items())


def outside(wanted: Labels, others: Sequence[Labels]) -> list[Labels]:
    """What is within the first and within none of the others; empty if there is no such thing.

    Where that comes in too many pieces, the first is returned as it is, so that nothing that is
    outside is ever left out.
    """
    whole = dict(wanted)
    if not all(whole.values()) or any(not _minus(whole, other) for other in others):
        return []
    pieces = [whole]
    for other in others:
        pieces = [left for piece in pieces for left in _minus(piece, other)]
        if len(pieces) > _MOST_PIECES:
            return [wanted]
    return [*pieces]


def _minus(piece: dict[str, Values], other: Labels) -> list[dict[str, Values]]:
    left = []
    inside = dict(piece)
    for key, values in other.items():
        here = inside.get(key, ANY)
        if beyond := here & ~values:
            left.append({**inside, key: beyond})
        inside[key] = here & values
        if not inside[key]:
            return [piece]
    return left


def _expression(said: Mapping[str, Any]) -> tuple[str, Values]:
    key, operator = said.get("key"), said.get("operator")
    listed = frozenset(str(value) for value in said.get("values") or ())
    match operator:
        case "In":
            values = Values(listed, others=False, absent=False)
        case "NotIn":
            values = Values(listed, others=True, absent=True)
        case "Exists":
            values = PRESENT
        case "DoesNotExist":
            values = Values(frozenset(), others=False, absent=True)
        case _:
            raise UnreadableError(f"{operator} is no operator of a selector")
    return str(key), values
