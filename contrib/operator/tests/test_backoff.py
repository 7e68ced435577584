"""Delays: they grow, within bounds, and never undercut what the server asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from kars_operator.backoff import Growth, asked_delay

from kars_router.kube.errors import ApiError, UnreachableError

chances = st.floats(0, 1, exclude_max=True)


def test_delays_double_up_to_the_cap() -> None:
    growth = Growth(0.2, 10)
    delays = [growth.delay(failures, lambda: 0.5) for failures in range(1, 9)]
    assert [round(each, 3) for each in delays] == [0.15, 0.3, 0.6, 1.2, 2.4, 4.8, 7.5, 7.5]


@given(st.integers(1, 10**9), chances, st.floats(0, 1000))
def test_delays_keep_their_bounds(failures: int, chance: float, floor: float) -> None:
    delay = Growth(0.2, 60).delay(failures, lambda: chance, floor=floor)
    assert max(floor, 0.1) <= delay <= max(60, floor * 1.25)


def test_what_the_server_asks_for_is_heeded_within_reason() -> None:
    assert asked_delay(ApiError(429, "TooManyRequests", "no", retry_after=7)) == 7
    assert asked_delay(ApiError(503, "x", "no", retry_after=86400)) == 300
    assert asked_delay(ApiError(500, "x", "no")) == 0
    assert asked_delay(UnreachableError("no")) == 0
    assert asked_delay(None) == 0
