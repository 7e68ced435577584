"""Conditions of a status: what is so, why, and since when. Pure; the clock is the caller's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import frozen

_LONGEST: Final = 1024  # of a message: a status is read by people


@frozen
class Condition:
    """One statement about an object.

    Attributes:
        type: what it is about.
        status: whether it is so; None if that is not known.
        reason: in one word.
        message: a sentence for people.
    """

    type: str
    status: bool | None
    reason: str
    message: str = ""

    @property
    def word(self) -> str:
        """`True`, `False` or `Unknown`."""
        return "Unknown" if self.status is None else str(self.status)


def plain(
    wanted: Sequence[Condition],
    before: Sequence[Mapping[str, Any]],
    *,
    generation: int,
    now: str,
) -> list[dict[str, Any]]:
    """Conditions as a status holds them; one that stays as it was keeps its time.

    Args:
        wanted: as they are now.
        before: as the status has them.
        generation: of the spec that they are about.
        now: the time, in RFC 3339.
    """
    known = {each.get("type"): each for each in before}
    made = []
    for each in wanted:
        was = known.get(each.type, {})
        since = was.get("lastTransitionTime") if was.get("status") == each.word else None
        made.append(
            {
                "type": each.type,
                "status": each.word,
                "reason": each.reason,
                "message": _cut(each.message),
                "observedGeneration": generation,
                "lastTransitionTime": since or now,
            }
        )
    return made


def changed(
    wanted: Sequence[Condition], before: Sequence[Mapping[str, Any]]
) -> tuple[Condition, ...]:
    """Those that are not as they were, as far as status and reason go."""
    known = {(each.get("type"), each.get("status"), each.get("reason")) for each in before}
    return tuple(each for each in wanted if (each.type, each.word, each.reason) not in known)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
