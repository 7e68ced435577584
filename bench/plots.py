"""Plots of a report, as PNG and SVG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from bench.model import Figure, Figures, distinct

_PLOTTED: Final = {
    "calls": ("throughput", "cpu per call", "latency p50", "latency p99"),
    "sizes": ("throughput", "cpu per call"),
    "pongs": ("p50", "p99", "max"),
    "idle": ("memory", "cpu", "wake-ups"),
    "start": ("time", "size"),
    "growth": ("memory",),
    "peers": ("throughput", "cpu per call", "memory per session"),
    "profile": ("share of the listener", "share of the router", "share of the scheduler"),
}
_MOST_BARS: Final = 12  # of the sizes of packages, only the largest are worth looking at


def draw(figures: Figures, out: Path) -> list[Path]:
    """Draws every plot; returns the files.

    Args:
        figures: what was measured.
        out: the directory.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    files: list[Path] = []
    for suite, metric, found in _groups(figures):
        plot, axes = plt.subplots(figsize=(10, 5), layout="constrained")
        if metric == "memory" and suite == "growth":
            _lines(axes, found)
        else:
            _bars(axes, found)
        axes.set_title(f"{suite}: {metric}")
        axes.set_ylabel(found[0].unit)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        if len(distinct(figure.subject for figure in found)) > 1:
            axes.legend(loc="best", fontsize="small")
        for kind in ("png", "svg"):
            file = out / f"{suite}-{metric.replace(' ', '-')}.{kind}"
            plot.savefig(file, dpi=120)
            files.append(file)
        plt.close(plot)
    return files


def _groups(figures: Figures) -> Iterator[tuple[str, str, list[Figure]]]:
    for suite, metrics in _PLOTTED.items():
        for metric in metrics:
            found = [figure for figure in figures.of(suite) if figure.metric == metric]
            if found:
                yield suite, metric, found[:_MOST_BARS] if metric == "size" else found


def _bars(axes: Any, figures: Sequence[Figure]) -> None:
    """Bars by work, one colour for each subject, with the spread of the rounds."""
    works = distinct(figure.work for figure in figures)
    subjects = distinct(figure.subject for figure in figures)
    width = 0.8 / len(subjects)
    for index, subject in enumerate(subjects):
        mine = {figure.work: figure for figure in figures if figure.subject == subject}
        places = [works.index(work) + index * width for work in mine]
        heights = [figure.median for figure in mine.values()]
        below = [figure.median - min(figure.rounds) for figure in mine.values()]
        above = [max(figure.rounds) - figure.median for figure in mine.values()]
        axes.bar(places, heights, width, yerr=[below, above], capsize=2, label=subject)
    middle = 0.4 - width / 2
    many = len(works) > 4
    axes.set_xticks(
        [place + middle for place in range(len(works))],
        works,
        rotation=30 if many else 0,
        ha="right" if many else "center",
    )
    heights = [figure.median for figure in figures if figure.median > 0]
    if heights and max(heights) > 50 * min(heights):
        axes.set_yscale("log")


def _lines(axes: Any, figures: Sequence[Figure]) -> None:
    """A line for each subject, over its rounds."""
    for figure in figures:
        steps = [(number + 1) / len(figure.rounds) * 100 for number in range(len(figure.rounds))]
        axes.plot(steps, figure.rounds, marker="o", label=f"{figure.subject}, {figure.work}")
    axes.set_xlabel("% of the sessions")
    axes.set_ylim(bottom=0)
