"""CPU time of a plain tools/call through the router, for one or two checkouts of it.

There is no socket and no other process: an agent, the router and a scripted server share one
thread, so that the figure is the router's work and not the network's. Two checkouts are measured in
turns, each time in a process of its own, because absolute times do not hold from one minute to the
next; what counts is the ratio.

    python bench/micro/plain_path.py                   # this checkout
    git worktree add /tmp/before v1.0
    python bench/micro/plain_path.py --against /tmp/before
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


def measure(calls: int) -> float:
    """CPU seconds for each of so many calls, after as many again a tenth to warm up."""
    import logging

    import structlog
    import trio
    from agent_kit import open_bench

    quiet = structlog.make_filtering_bound_logger(logging.ERROR)
    structlog.configure(wrapper_class=quiet)

    async def run() -> float:
        options = {"box": {"ping_interval": None, "responses": "json"}}
        async with open_bench(options=options) as bench:
            agent = await bench.connect()
            for _ in range(max(calls // 10, 1)):
                await agent.call("box__read")
            before = time.process_time()
            for _ in range(calls):
                await agent.call("box__read")
            return (time.process_time() - before) / calls

    return trio.run(run)


def measure_apart(checkout: Path, calls: int) -> float:
    """The same in a process of its own, with the code of a checkout."""
    command = [sys.executable, __file__, "--calls", str(calls), "--inside", str(checkout)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Measures, and prints the median of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout to compare with")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.inside is not None:
        sys.path[:0] = [str(asked.inside), str(asked.inside / "tests")]
        print(measure(asked.calls))
        return
    checkouts = [HERE, *([asked.against.resolve()] if asked.against else [])]
    taken: dict[Path, list[float]] = {checkout: [] for checkout in checkouts}
    for _ in range(asked.rounds):
        for checkout in checkouts:
            taken[checkout].append(measure_apart(checkout, asked.calls))
    for checkout, seconds in taken.items():
        low, high = min(seconds) * 1e6, max(seconds) * 1e6
        middle = statistics.median(seconds) * 1e6
        print(f"{checkout.name}: {middle:.0f} us per call ({low:.0f} to {high:.0f})")
    if asked.against:
        ratios = [a / b for a, b in zip(*(taken[c] for c in checkouts), strict=True)]
        print(f"ratio: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
