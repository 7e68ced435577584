"""What upstream sessions cost that nobody uses: 1, 10, 100 and 1,000, each pinged every 3 s."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench.agent import Agent
from bench.context import Context
from bench.load import open_sessions
from bench.model import Figure, figures
from bench.processes import BenchError, Usage
from bench.subjects import Subject, configured, routers, running, upstream

SUITE = "idle"
_PING_SECONDS = 3.0
_WINDOW_SECONDS = 15.0
_SHORT_WINDOW_SECONDS = 6.0  # for what is measured for its memory
_SETTLE_SECONDS = 4.0


def counts(context: Context) -> tuple[int, ...]:
    """How many sessions are opened."""
    return (1, 100) if context.quick else (1, 10, 100, 1000)


FILE = "1 session, kars.yaml"
PLAIN = "1 session, kars.yaml in JSON"


def work_of(sessions: int) -> str:
    """What the work is called in figures."""
    return "1 session" if sessions == 1 else f"{sessions:,} sessions"


def run(context: Context) -> Iterator[Figure]:
    """Every router that we have, each number of sessions in a process of its own."""
    for subject in routers(context.subjects):
        first: list[Usage] = []
        # More than a hundred sessions take a file that allows them. What a parser of YAML leaves
        # behind, the first of them would use.
        works = [(1, work_of(1)), (1, FILE), (1, PLAIN)]
        works += [(count, work_of(count)) for count in counts(context) if count > 1]
        for count, work in works:
            context.say(f"{SUITE}: {subject.name}, {work}")
            limits = {"agentSessions": 2 * count + 10}
            roomy = configured(subject, plain=work != FILE, limits=limits)
            started = subject if work == work_of(1) else roomy
            # Memory does not vary from round to round as time does.
            rounds = [
                _round(started, subject.path, count, short=context.quick and count == 1)
                for _ in range(1 if context.quick else min(context.rounds, 2))
            ]
            if work == PLAIN:
                first = [after for _, after, _ in rounds]
            values = {
                ("memory", "MiB"): [after.rss / 2**20 for _, after, _ in rounds],
                ("cpu", "% of a core"): [
                    (after.cpu - before.cpu) / seconds * 100 for before, after, seconds in rounds
                ],
                ("wake-ups", "1/s"): [
                    (after.switches - before.switches) / seconds
                    for before, after, seconds in rounds
                ],
                ("file descriptors", ""): [float(after.files) for _, after, _ in rounds],
            }
            if count > 1:
                values["memory per further session", "KiB"] = [
                    (after.rss - alone.rss) / 1024 / (count - 1)
                    for (_, after, _), alone in zip(rounds, first, strict=True)
                ]
            yield from figures(SUITE, subject.name, work, values)


def _round(subject: Subject, path: str, count: int, *, short: bool) -> tuple[Usage, Usage, float]:
    window = _SHORT_WINDOW_SECONDS if short else _WINDOW_SECONDS
    with ExitStack() as stack:
        server = stack.enter_context(upstream("--ping", str(_PING_SECONDS)))
        router = stack.enter_context(running(subject, server.port))
        open_sessions(router.port, path, count)
        spy = Agent(server.port, "/mcp")
        time.sleep(_SETTLE_SECONDS)
        spy.get("/stats")
        before, begin = router.usage(), time.monotonic()
        time.sleep(window)
        after, seconds = router.usage(), time.monotonic() - begin
        said = spy.get("/stats")
        spy.close()
        due = int(count * (window / _PING_SECONDS - 1))
        if said["lost"] or len(said["pongs"]) < due:
            pongs, lost = len(said["pongs"]), said["lost"]
            raise BenchError(f"{count} sessions: {pongs} pongs, not {due}, and {lost} were lost")
        return before, after, seconds
