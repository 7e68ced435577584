"""Where the processor time of a call goes, by samples of the running router (py-spy)."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from bench.context import Context
from bench.load import Outcome, load, open_sessions
from bench.model import Figure, figures
from bench.processes import BenchError, Program
from bench.subjects import LIMIT, Subject, routers, running, upstream
from bench.suites.calls import work_of

SUITE = "profile"
_CONNECTIONS: Final = (1, 16)
_RATE: Final = 250  # samples a second
# The innermost frame of these decides whose work a sample is: what they call on the way, trio's
# streams and the standard library, is theirs.
_LISTENER: Final = (
    *("hypercorn/", "h11/", "front/listen", "front/lean", "front/hypercorn"),
    *("front/ordinary", "front/idle", "front/http_"),
)
# The sockets of both sides; whose work they do is their caller's.
_SHARED: Final = ("transports/counted_stream", "cli/")
_OURS: Final = ("kars_router/", "httpx/", "msgspec", "structlog", "prometheus_client", "bench/")
PARTS: Final = ("listener", "router", "scheduler")


def run(context: Context) -> Iterator[Figure]:
    """Every router that we have, in turns with the limit program."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent)) or shutil.which("py-spy")
    if spy is None:
        raise BenchError("py-spy is missing; pip install py-spy")
    subjects = [LIMIT, *routers(context.subjects)]
    for connections in _CONNECTIONS:
        yield from _work(context, subjects, spy, connections)


def _work(
    context: Context, subjects: list[Subject], spy: str, connections: int
) -> Iterator[Figure]:
    costs: dict[str, list[float]] = {subject.name: [] for subject in subjects}
    shares: dict[str, list[Counter[str]]] = {subject.name: [] for subject in subjects}
    for number in range(context.rounds):
        for subject in subjects:
            context.say(f"{SUITE}: {subject.name}, {work_of(connections)}")
            raw = context.out / f"profile-{subject.name}-{connections}.txt"
            outcome = _round(context, subject, spy, raw, connections=connections)
            costs[subject.name].append(outcome.cpu / outcome.calls * 1e6)
            shares[subject.name].append(attribute(raw.read_text()))
            if number == 0:
                graph = raw.with_suffix(".svg")
                _round(context, subject, spy, graph, connections=connections, kind="flamegraph")
    for subject in subjects:
        name = subject.name
        values = {("cpu per call", "us"): costs[name]}
        if subject is not LIMIT:
            for part in PARTS:
                values[f"share of the {part}", "%"] = [
                    found[part] / found.total() * 100 for found in shares[name]
                ]
            pairs = zip(costs[name], shares[name], strict=True)
            without = [cost * rest(found) for cost, found in pairs]
            values["cpu per call without the listener", "us"] = without
        yield from figures(SUITE, name, work_of(connections), values)


def attribute(folded: str) -> Counter[str]:
    """Samples by part, from stacks as py-spy writes them: `outer (file:line);inner ... count`."""
    found: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        found[part_of(stack)] += int(count)
    return found


def part_of(stack: str) -> str:
    """Whose work a stack is: the listener's, the router's, or the scheduler's own."""
    for frame in reversed(stack.split(";")):
        if any(mark in frame for mark in _LISTENER):
            return "listener"
        if any(mark in frame for mark in _OURS) and not any(mark in frame for mark in _SHARED):
            return "router"
    return "scheduler"


def rest(found: Counter[str]) -> float:
    """The share of everything but the listener.

    The scheduler works for both; it is split between them as their samples are.
    """
    return found["router"] / (found["router"] + found["listener"])


def _round(
    context: Context,
    subject: Subject,
    spy: str,
    file: Path,
    *,
    connections: int,
    kind: str = "raw",
) -> Outcome:
    """Loads a router twice; the second time the spy looks on, which slows the router down."""
    seconds = max(context.seconds, 3.0)
    with upstream() as server, running(subject, server.port) as started:
        sessions = open_sessions(started.port, subject.path, connections)
        outcome = _load(started, subject, sessions, seconds)
        command = [spy, "record", "--pid", str(started.process.pid), "--output", str(file)]
        command += ["--format", kind, "--rate", str(_RATE), "--duration", str(round(seconds))]
        with subprocess.Popen(
            [*command, "--full-filenames"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as recorder:
            _load(started, subject, sessions, seconds + 2)
            if recorder.wait(60):
                raise BenchError("py-spy cannot look into processes here; it needs ptrace")
    return outcome


def _load(program: Program, subject: Subject, sessions: list[str], seconds: float) -> Outcome:
    return load(
        program,
        subject.path,
        sessions,
        tool="json_128",
        connections=len(sessions),
        seconds=seconds,
    )
