"""How the decisions of several governors become one.

Pure. Deny beats approve beats allow; silence is no decision.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from attrs import evolve

from kars_router.model import Decision, Ruling

_ORDER: Final = {Ruling.ALLOW: 0, Ruling.APPROVE: 1, Ruling.DENY: 2}

# What no governor has an opinion on was admitted by name before: that is the decision.
ADMITTED: Final = Decision(ruling=Ruling.ALLOW, code="ok", source="allowlist")


def fold(decisions: Iterable[Decision]) -> Decision:
    """One decision for a call.

    Args:
        decisions: what governors said, in the order in which they were asked.

    Returns:
        the first of the strictest ones, with the notes of all. Where several want a person's
        approval, all of their terms hold: the shortest time, the channels that all of them admit.
    """
    given = list(decisions)
    if not given:
        return ADMITTED
    if len(given) == 1:
        return given[0]
    strictest = max(_ORDER[each.ruling] for each in given)
    alike = [each for each in given if _ORDER[each.ruling] == strictest]
    first = alike[0]
    if first.ruling is Ruling.APPROVE:
        terms = first.terms
        for each in alike[1:]:
            times = [t for t in (terms.expires, each.terms.expires) if t is not None]
            terms = evolve(
                terms,
                expires=min(times, default=None),
                operator=terms.operator and each.terms.operator,
                elicitation=terms.elicitation and each.terms.elicitation,
            )
        first = evolve(first, terms=terms)
    notes = tuple(dict.fromkeys(note for each in given for note in each.notes))
    return evolve(first, notes=notes) if notes != first.notes else first
