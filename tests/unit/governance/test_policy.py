from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.model import ApprovalTerms, Decision, Ruling
from kars_router.policy import ADMITTED, fold

ORDER = [Ruling.ALLOW, Ruling.APPROVE, Ruling.DENY]
decisions = st.builds(
    Decision,
    ruling=st.sampled_from(ORDER),
    rule=st.sampled_from("abc"),
    notes=st.lists(st.sampled_from("xyz"), max_size=2).map(tuple),
)


def test_silence_leaves_what_was_admitted_by_name() -> None:
    assert fold([]) is ADMITTED
    assert ADMITTED.ruling is Ruling.ALLOW


@pytest.mark.parametrize("rulings", list(itertools.product(ORDER, repeat=3)))
def test_deny_beats_approve_beats_allow(rulings: tuple[Ruling, ...]) -> None:
    said = [Decision(ruling=each, rule=str(index)) for index, each in enumerate(rulings)]
    strictest = max(rulings, key=ORDER.index)
    folded = fold(said)
    assert folded.ruling is strictest
    assert folded.rule == str(rulings.index(strictest))  # the first that said so


def test_all_terms_of_an_approval_hold() -> None:
    def ask(expires: float | None, operator: bool, elicitation: bool) -> Decision:
        terms = ApprovalTerms(expires=expires, operator=operator, elicitation=elicitation)
        return Decision(ruling=Ruling.APPROVE, terms=terms)

    folded = fold([ask(None, True, True), ask(60.0, True, False), ask(30.0, True, True)])
    assert folded.terms == ApprovalTerms(expires=30.0, operator=True, elicitation=False)
    # Nobody can decide where the channels exclude each other.
    folded = fold([ask(None, True, False), ask(None, False, True)])
    assert folded.terms == ApprovalTerms(expires=None, operator=False, elicitation=False)


@given(st.lists(decisions), decisions)
def test_one_more_governor_never_makes_it_laxer(said: list[Decision], more: Decision) -> None:
    before, after = fold(said), fold([*said, more])
    assert ORDER.index(after.ruling) >= ORDER.index(before.ruling if said else more.ruling)
    assert set(after.notes) == {note for each in [*said, more] for note in each.notes}
