"""How long servers wait for a pong while 64 connections saturate the router."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from bench.agent import Agent
from bench.context import Context
from bench.load import load, open_sessions
from bench.model import Figure, figures
from bench.subjects import Subject, routers, running, upstream

SUITE = "pongs"
WORK = "64 connections"
_SESSIONS = 64
_PING_SECONDS = 1.0


def run(context: Context) -> Iterator[Figure]:
    """Every router that we have; the other subjects hold no streams."""
    found: dict[str, list[list[float]]] = {}
    lost: dict[str, list[float]] = {}
    for _ in range(context.rounds):
        for subject in routers(context.subjects):
            context.say(f"{SUITE}: {subject.name}")
            pongs, gone = _round(context, subject)
            found.setdefault(subject.name, []).append(sorted(pongs))
            lost.setdefault(subject.name, []).append(gone)
    for name, rounds in found.items():
        values = {
            ("p50", "ms"): [statistics.median(pongs) * 1e3 for pongs in rounds],
            ("p99", "ms"): [pongs[int(len(pongs) * 0.99)] * 1e3 for pongs in rounds],
            ("max", "ms"): [pongs[-1] * 1e3 for pongs in rounds],
            ("sessions lost", ""): lost[name],
        }
        yield from figures(SUITE, name, WORK, values)


def _round(context: Context, subject: Subject) -> tuple[list[float], float]:
    with upstream("--ping", str(_PING_SECONDS)) as server, running(subject, server.port) as router:
        sessions = open_sessions(router.port, subject.path, _SESSIONS)
        spy = Agent(server.port, "/mcp")
        spy.get("/stats")
        load(
            router,
            subject.path,
            sessions,
            tool="json_128",
            connections=_SESSIONS,
            seconds=max(context.seconds * 2, 5.0),
        )
        said = spy.get("/stats")
        spy.close()
        # Those that wait still count as lost if they have no stream any more.
        return said["pongs"], said["lost"] + _SESSIONS - min(said["streams"], _SESSIONS)
