"""Loads on several subjects in turns, and the figures that they come to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from attrs import frozen

from bench.context import Context
from bench.load import Outcome, load, open_sessions
from bench.model import Figure, figures
from bench.processes import Program
from bench.subjects import DIRECT, Subject, running, upstream

_WARM_SECONDS = 1.0


@frozen(kw_only=True)
class Work:
    """One kind of load.

    Attributes:
        name: in the figures.
        tool: which is called.
        connections: how many at a time.
    """

    name: str
    tool: str
    connections: int


@frozen
class _Target:
    name: str
    program: Program
    path: str
    sessions: list[str]


def measure(
    context: Context, suite: str, subjects: Sequence[Subject], works: Sequence[Work]
) -> Iterator[Figure]:
    """Loads each subject, and the upstream itself, with each work, in turns.

    All of them run all the time, since a process that waits costs nothing; only one has work.

    Raises:
        BenchError: one of them gave a wrong answer, or none.
    """
    most = max(work.connections for work in works)
    with ExitStack() as stack:
        server = stack.enter_context(upstream())
        targets = [_Target(DIRECT, server, "/mcp", open_sessions(server.port, "/mcp", most))]
        for subject in subjects:
            context.say(f"{suite}: starting {subject.name}")
            started = stack.enter_context(running(subject, server.port))
            sessions = open_sessions(started.port, subject.path, most)
            targets.append(_Target(subject.name, started, subject.path, sessions))
        for work in works:
            context.say(f"{suite}: {work.name}")
            outcomes: dict[str, list[Outcome]] = {target.name: [] for target in targets}
            for number in range(-1, context.rounds):
                for target in targets:
                    seconds = _WARM_SECONDS if number < 0 else context.seconds
                    outcome = _load(target, work, seconds)
                    if number >= 0:
                        outcomes[target.name].append(outcome)
            for name, found in outcomes.items():
                yield from figures(suite, name, work.name, came_to(found))


def came_to(outcomes: Sequence[Outcome]) -> dict[tuple[str, str], list[float]]:
    """What the rounds of one load came to, by metric and unit."""
    return {
        ("throughput", "calls/s"): [each.calls / each.seconds for each in outcomes],
        ("cpu per call", "us"): [each.cpu / each.calls * 1e6 for each in outcomes],
        ("latency p50", "ms"): [each.p50 * 1e3 for each in outcomes],
        ("latency p99", "ms"): [each.p99 * 1e3 for each in outcomes],
    }


def _load(target: _Target, work: Work, seconds: float) -> Outcome:
    return load(
        target.program,
        target.path,
        target.sessions[: work.connections],
        tool=work.tool,
        connections=work.connections,
        seconds=seconds,
    )
