"""What the gate lets pass, and what it does not."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import gate
from bench.bars import Bar, Direction, Verdict


def verdict(
    value: float | None,
    direction: Direction = "at most",
    limit: float = 1.0,
    over: str = "floor",
) -> Verdict:
    bar = Bar(
        name="time",
        suite="calls",
        subject="kars",
        work="16 connections",
        metric="cpu per call",
        over=over,
        direction=direction,
        limit=limit,
    )
    return Verdict(bar=bar, value=value, least=value or 0.0, most=value or 0.0)


@pytest.mark.parametrize(
    ("direction", "before", "now", "passes"),
    [
        ("at most", 0.8, 0.99, True),
        ("at most", 0.8, 1.01, False),  # missed, and was met
        ("at most", 0.98, 1.02, True),  # nearly met
        ("at most", None, 1.01, False),  # missed, and nothing is known
        ("at most", 0.5, 0.7, True),
        ("at most", 0.5, 0.8, False),  # met, and much worse than it was
        ("at most", 2.0, 2.9, True),  # missed as before
        ("at most", 2.0, 3.1, False),
        ("at most", 0.0, 0.04, True),
        ("at least", 1.2, 1.0, True),
        ("at least", 1.2, 0.99, False),
        ("at least", 3.0, 1.9, False),
        ("at least", 0.5, 0.45, True),
        ("at most", 0.8, None, True),  # not measured in this run
    ],
)
def test_what_passes(
    direction: Direction, before: float | None, now: float | None, passes: bool
) -> None:
    judged = verdict(now, direction)
    kept = {} if before is None else {gate.key(judged): before}
    assert (list(gate.complaints([judged], kept)) == []) is passes


def test_what_is_no_ratio_is_held_to_its_bar_alone() -> None:
    judged = verdict(12.0, limit=250.0, over="")
    assert list(gate.complaints([judged], {gate.key(judged): 3.0})) == []


def test_what_was_kept_stays_if_it_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    other = verdict(3.0, limit=4.0)
    path.write_text('{"idle / kars": 7.0}')
    gate.keep([other, verdict(None)], path)
    assert gate.load(path) == {"idle / kars": 7.0, gate.key(other): 3.0}


def test_every_kept_value_is_one_that_some_run_can_measure() -> None:
    assert all(len(name.split(" / ")) == 5 for name in gate.load())
