"""The report: JSON for programs, Markdown for people."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from attrs import asdict

from bench.bars import Verdict
from bench.model import Figure, Figures, distinct

JSON: Final = "report.json"
MARKDOWN: Final = "report.md"
_PACKAGES: Final = ("kars-router", "trio", "httpx", "hypercorn", "h11", "httptools", "msgspec")
_EXPLAINED: Final = (
    "Every value is the median of its rounds, with the least and the most of them in brackets.",
    "What stands in one table was measured in turns; only such values can be compared.",
)
_WORDS: Final = {True: "met", False: "**missed**", None: "not measured"}


def machine() -> dict[str, Any]:
    """What the figures were taken on, without naming the machine."""
    return {
        "processors": len(os.sched_getaffinity(0)),
        "architecture": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
        # Whatever is installed is loaded, and some of it costs something in every call.
        "plugins": sorted(point.name for point in metadata.entry_points(group="kars_router")),
    }


def write(out: Path, figures: Figures, verdicts: Sequence[Verdict], skipped: Sequence[str]) -> None:
    """Writes both reports.

    Args:
        out: the directory.
        figures: what was measured.
        verdicts: how the bars were met.
        skipped: what was not measured, with the reason.
    """
    data = {
        "machine": machine(),
        "figures": [asdict(figure) for figure in figures.all],
        "bars": [_as_json(verdict) for verdict in verdicts],
        "skipped": list(skipped),
    }
    (out / JSON).write_text(json.dumps(data, indent=1) + "\n")
    (out / MARKDOWN).write_text(markdown(figures, verdicts, skipped))


def read(path: Path) -> Figures:
    """The figures of a report that was written before."""
    found = json.loads(path.read_text())["figures"]
    return Figures(tuple(Figure(**{**each, "rounds": tuple(each["rounds"])}) for each in found))


def markdown(figures: Figures, verdicts: Sequence[Verdict], skipped: Sequence[str]) -> str:
    """The report as a page."""
    about = machine()
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    lines = [
        "# What the router costs",
        "",
        f"{about['processors']} processors ({about['architecture']}), Python {about['python']}, ",
        f"{versions}; `{' '.join(['python -m bench', *sys.argv[1:]])}`.",
        *(
            [f"**With plugins, which cost something as well: {', '.join(about['plugins'])}.**"]
            if about["plugins"]
            else []
        ),
        "",
        *_EXPLAINED,
        "",
        "## Bars",
        "",
        *_bars(verdicts),
        *(f"\nNot measured: {each}" for each in skipped),
    ]
    for suite in figures.suites():
        lines += ["", f"## {suite}", ""]
        for metric in distinct(figure.metric for figure in figures.of(suite)):
            lines += [*_table([f for f in figures.of(suite) if f.metric == metric]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _bars(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [
        "| what | of | with | has to be | is | |",
        "|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        bar = verdict.bar
        value = "" if verdict.value is None else f"{_spread(verdict)} {verdict.unit}"
        limit = f"{bar.direction} {bar.limit:g}"
        word = _WORDS[verdict.met]
        lines.append(f"| {bar.name} | {bar.subject} | {bar.work} | {limit} | {value} | {word} |")
    return lines


def _table(figures: Sequence[Figure]) -> list[str]:
    """One metric: a row for each subject, a column for each work."""
    works = distinct(figure.work for figure in figures)
    subjects = distinct(figure.subject for figure in figures)
    unit = f", {figures[0].unit}" if figures[0].unit else ""
    cells = {(figure.subject, figure.work): figure for figure in figures}
    lines = [
        f"| {figures[0].metric}{unit} | {' | '.join(works)} |",
        f"|---|{'---|' * len(works)}",
    ]
    for subject in subjects:
        row = [_cell(cells.get((subject, work))) for work in works]
        lines.append(f"| {subject} | {' | '.join(row)} |")
    return lines


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    if len(figure.rounds) == 1:
        return _number(figure.median)
    least, most = _number(min(figure.rounds)), _number(max(figure.rounds))
    return f"{_number(figure.median)} ({least} to {most})"


def _spread(verdict: Verdict) -> str:
    assert verdict.value is not None
    if verdict.least == verdict.most:
        return _number(verdict.value)
    least, most = _number(verdict.least), _number(verdict.most)
    return f"{_number(verdict.value)} ({least} to {most})"


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        **asdict(verdict.bar),
        "value": verdict.value,
        "least": verdict.least,
        "most": verdict.most,
        "unit": verdict.unit,
        "met": verdict.met,
    }
