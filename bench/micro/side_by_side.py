"""Two routers under the same load at the same time: what a change costs, exact to a percent or two.

Each has an upstream and a load of its own, and both share one processor, so that whatever else
disturbs it disturbs both alike. Runs in turns differ by more than most changes make.

    git worktree add /tmp/before v1.0
    python -m venv /tmp/venv && /tmp/venv/bin/pip install -e /tmp/before
    python bench/micro/side_by_side.py --against /tmp/venv/bin/python
    python bench/micro/side_by_side.py --against /tmp/venv/bin/python --idle 100

The ratio is that of the processor time of this one to that of the other: of each call or, with
`--idle`, of so many sessions that nobody uses, each pinged every 3 s.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import repeat
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.load import load, open_sessions
from bench.processes import BenchError, Program, end_all, heed_signals
from bench.subjects import SERVER, Subject, configured, kars, running, upstream

PATH: Final = f"/mcp/{SERVER}"
PING_SECONDS: Final = 3.0
SETTLE_SECONDS: Final = 4.0
WARM_SECONDS: Final = 1


def calls(routers: Sequence[Subject], connections: int, seconds: int) -> list[float]:
    """Microseconds of processor time for each call, by router."""

    def under_load(router: tuple[Program, list[str]], lasting: int) -> float:
        program, sessions = router
        done = load(
            program, PATH, sessions, tool="json_128", connections=connections, seconds=lasting
        )
        return done.cpu / done.calls * 1e6

    with ExitStack() as stack:
        started = [
            (each, open_sessions(each.port, PATH, connections)) for each in _run(stack, routers)
        ]
        with ThreadPoolExecutor(len(started)) as pool:
            list(pool.map(under_load, started, repeat(WARM_SECONDS)))
            return list(pool.map(under_load, started, repeat(seconds)))


def idle(routers: Sequence[Subject], sessions: int, seconds: int) -> list[float]:
    """Percent of a core, by router."""
    roomy = [
        configured(each, plain=True, limits={"agentSessions": 2 * sessions}) for each in routers
    ]
    with ExitStack() as stack:
        started = list(_run(stack, roomy, "--ping", str(PING_SECONDS)))
        for each in started:
            open_sessions(each.port, PATH, sessions)
        time.sleep(SETTLE_SECONDS)
        before, begin = [each.usage().cpu for each in started], time.monotonic()
        time.sleep(seconds)
        after, lasted = [each.usage().cpu for each in started], time.monotonic() - begin
    return [(now - then) / lasted * 100 for now, then in zip(after, before, strict=True)]


def _run(stack: ExitStack, routers: Sequence[Subject], *server: str) -> Iterator[Program]:
    for each in routers:
        behind = stack.enter_context(upstream(*server))
        yield stack.enter_context(running(each, behind.port))


def main() -> None:
    """Measures, and prints a line for each listener."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--against", required=True, help="the other one's Python interpreter")
    parser.add_argument("--listener", action="append", choices=("hypercorn", "lean"))
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--idle", type=int, metavar="SESSIONS", help="measure no calls, but pings")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=6, help="how long each round lasts")
    asked = parser.parse_args()
    if not Path(asked.against).with_name("kars").exists():
        raise SystemExit(f"there is no kars beside {asked.against}; install one there")
    heed_signals()
    try:
        for listener in asked.listener or ("hypercorn", "lean"):
            _compare(asked, listener)
    except BenchError as error:
        raise SystemExit(str(error)) from None
    finally:
        end_all()


def _compare(asked: argparse.Namespace, listener: str) -> None:
    unit = "us per call" if asked.idle is None else "% of a core"
    routers = [
        Subject(name=python, command=kars("--listener", listener, python=python), path=PATH)
        for python in (sys.executable, asked.against)
    ]
    rounds: list[list[float]] = []
    for number in range(asked.rounds):
        turned = -1 if number % 2 else 1  # who is started first has no advantage
        if asked.idle is None:
            found = calls(routers[::turned], asked.connections, asked.seconds)
        else:
            found = idle(routers[::turned], asked.idle, asked.seconds)
        rounds.append(found[::turned])
    ratios = [this / other for this, other in rounds]
    this, other = (statistics.median(each) for each in zip(*rounds, strict=True))
    print(
        f"{listener}: {this:.3g} {unit}, the other {other:.3g}; ratio "
        f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
