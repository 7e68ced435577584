"""What a measurement comes to: figures by subject, and ratios of two of them.

Pure. Times do not hold from one machine, or one minute, to the next; so every figure keeps its
rounds, and a ratio is taken round by round between things that were measured in turns.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from attrs import frozen


@frozen(kw_only=True)
class Figure:
    """One thing measured of one subject.

    Attributes:
        suite: which suite measured it.
        subject: what was measured: `direct`, `floor`, `kars`, ...
        work: what it had to do: `16 connections`, `json, 64 KiB, 16 connections`, ...
        metric: what was measured: `throughput`, `cpu per call`, `latency p99`, ...
        unit: of the values.
        rounds: a value for each round, in the order in which they were taken.
    """

    suite: str
    subject: str
    work: str
    metric: str
    unit: str
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.rounds)


def figures(
    suite: str, subject: str, work: str, values: Mapping[tuple[str, str], Sequence[float]]
) -> Iterator[Figure]:
    """What was measured of one subject at one work.

    Args:
        suite: which suite measured it.
        subject: what was measured.
        work: what it had to do.
        values: the rounds of each figure, by metric and unit.
    """
    for (metric, unit), rounds in values.items():
        yield Figure(
            suite=suite, subject=subject, work=work, metric=metric, unit=unit, rounds=tuple(rounds)
        )


@frozen(kw_only=True)
class Ratio:
    """One figure as a multiple of another, round by round.

    Attributes:
        median: the middle of the ratios.
        least: the smallest.
        most: the largest.
    """

    median: float
    least: float
    most: float


@frozen
class Figures:
    """All figures of a run."""

    all: tuple[Figure, ...]

    def find(self, suite: str, subject: str, work: str, metric: str) -> Figure | None:
        """The one figure that is meant; None if it was not measured."""
        for figure in self.all:
            if (figure.suite, figure.subject, figure.work, figure.metric) == (
                suite,
                subject,
                work,
                metric,
            ):
                return figure
        return None

    def suites(self) -> list[str]:
        """The suites that measured something, in order."""
        return distinct(figure.suite for figure in self.all)

    def of(self, suite: str) -> list[Figure]:
        """What one suite measured."""
        return [figure for figure in self.all if figure.suite == suite]


def ratio(figure: Figure, over: Figure) -> Ratio:
    """How many times as much a figure is as another one of the same run.

    Raises:
        ValueError: they have not the same number of rounds, or a divisor is zero.
    """
    if len(figure.rounds) != len(over.rounds) or not all(over.rounds):
        raise ValueError(f"{figure.subject} and {over.subject} cannot be compared")
    ratios = [mine / theirs for mine, theirs in zip(figure.rounds, over.rounds, strict=True)]
    return Ratio(median=statistics.median(ratios), least=min(ratios), most=max(ratios))


def distinct(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of their first appearance."""
    return list(dict.fromkeys(names))
