"""The command: measures, writes the reports and the plots, and holds the figures to the bars."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from bench import gate, plots, report
from bench.bars import verdicts
from bench.context import Context
from bench.model import Figure, Figures
from bench.processes import BenchError, end_all, heed_signals
from bench.subjects import OURS

SUITES = ("calls", "sizes", "profile", "pongs", "idle", "start", "growth", "peers")
_DEFAULT = tuple(suite for suite in SUITES if suite != "profile")
_QUICK = ("calls", "pongs", "idle", "start", "growth")


def main() -> int:
    """Measures.

    Returns:
        1 if a suite failed, or if `--gate` was given and something has become worse; else 0.
    """
    heed_signals()
    asked = _arguments()
    asked.out.mkdir(parents=True, exist_ok=True)
    context = Context(
        subjects=OURS,
        rounds=asked.rounds or (3 if asked.quick else 5),
        seconds=asked.seconds or (1.0 if asked.quick else 3.0),
        quick=asked.quick,
        out=asked.out,
    )
    default = _QUICK if asked.quick else _DEFAULT
    names = [suite for suite in SUITES if suite in (asked.only or default)]
    if asked.profile and "profile" not in names:
        names.append("profile")
    measured: list[Figure] = []
    skipped: list[str] = []
    failed = False
    for name in names:
        suite = importlib.import_module(f"bench.suites.{name}")
        try:
            measured += suite.run(context)
        except BenchError as error:
            failed = True
            skipped.append(f"{name}: {error}")
            context.say(f"{name}: {error}")
        skipped += getattr(suite, "skipped", list)()
    figures = Figures(tuple(measured))
    judged = verdicts(figures)
    report.write(asked.out, figures, judged, skipped)
    plots.draw(figures, asked.out)
    print(report.markdown(figures, judged, skipped))
    context.say(f"the reports and plots are in {asked.out}")
    complaints = list(gate.complaints(judged, gate.load())) if asked.gate else []
    for complaint in complaints:
        context.say(f"worse: {complaint}")
    if asked.keep:
        gate.keep(judged)
    return int(failed or bool(complaints))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", action="append", choices=SUITES, help="a suite; repeatable")
    parser.add_argument("--quick", action="store_true", help="fewer suites and shorter rounds")
    parser.add_argument("--rounds", type=int, help="rounds of each measurement")
    parser.add_argument("--seconds", type=float, help="how long each load lasts")
    parser.add_argument("--profile", action="store_true", help="also sample the router's stacks")
    parser.add_argument(
        "--gate", action="store_true", help="exit status 1 if a ratio is worse than it was"
    )
    parser.add_argument("--keep", action="store_true", help="keep the ratios for later gates")
    parser.add_argument("--out", type=Path, default=Path("bench-report"), help="the directory")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    finally:
        end_all()  # also what was just being started when a signal came
