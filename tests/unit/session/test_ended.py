"""Ranges of numbers against a plain set, and what is let go of."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from kars_router.session.ended import Ended, new_names

SERIES = "0123456789ab"


def name(number: int) -> str:
    return f"{SERIES}{number:08x}"


@given(st.lists(st.integers(0, 40)), st.booleans())
def test_ranges_hold_what_a_set_would_hold(numbers: list[int], through_rows: bool) -> None:
    ended = Ended(10.0)
    for number in numbers:
        ended.add(name(number), 1.0)
    if through_rows:
        before, ended = ended, Ended(10.0)
        assert all(ended.take(row) for row in before.rows())
    assert {n for n in range(45) if name(n) in ended} == set(numbers)
    for row in ended.rows():
        gaps = [b[0] - a[1] for a, b in itertools.pairwise(row["ended"])]
        assert all(gap > 1 for gap in gaps), row


def test_each_series_and_each_start_has_names_of_its_own() -> None:
    first, second = new_names(), new_names()
    names = [*itertools.islice(first, 3), *itertools.islice(second, 3)]
    assert len(set(names)) == 6
    ended = Ended(10.0)
    ended.add(names[0], 1.0)
    assert [each in ended for each in names] == [True] + [False] * 5


def test_a_series_is_kept_until_its_last_end_is_too_long_ago() -> None:
    ended = Ended(10.0)
    ended.add(name(0), 1.0)
    ended.add(name(2), 5.0)
    ended.forget(14.9)
    assert name(0) in ended
    ended.forget(15.0)
    assert name(0) not in ended
    assert list(ended.rows()) == []
