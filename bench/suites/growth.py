"""What stays behind: 100,000 sessions opened and abandoned; and 20 servers with 200 tools each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from bench.agent import Agent
from bench.context import Context
from bench.model import Figure, figures
from bench.subjects import SERVER, Subject, configured, routers, running, upstream

SUITE = "growth"
LISTED = "20 servers × 200 tools"
_SERVERS = 20
_TOOLS = 200
_OWN_TOOLS = 8  # those that the upstream has in any case
_STEPS = 20
# Short enough for some thousand to be there at a time, and for the others to have ended.
_IDLE = "2s"
_EVERY_CALLS = 10
# So that about as many are alive at any time, however fast the machine is at the moment.
_EACH_SECOND = 600


def run(context: Context) -> Iterator[Figure]:
    """Every router that we have."""
    for subject in routers(context.subjects):
        context.say(f"{SUITE}: {subject.name}, {LISTED}")
        yield from _catalogue(context, subject)
        sessions = 10_000 if context.quick else 100_000
        context.say(f"{SUITE}: {subject.name}, {sessions:,} abandoned sessions")
        yield from _abandoned(subject, sessions)


def work_of(sessions: int) -> str:
    """What the work is called in figures."""
    return f"{sessions:,} abandoned sessions"


def slope(memory: tuple[float, ...], sessions: int) -> float:
    """Bytes for each session over the second half, by least squares.

    Args:
        memory: MiB after each equal share of the sessions.
        sessions: all of them.
    """
    late = memory[len(memory) // 2 :]
    xs = [index * sessions / len(memory) for index in range(len(late))]
    middle, mean = sum(xs) / len(xs), sum(late) / len(late)
    over = sum((x - middle) ** 2 for x in xs)
    return sum((x - middle) * (y - mean) for x, y in zip(xs, late, strict=True)) / over * 2**20


def _abandoned(subject: Subject, sessions: int) -> Iterator[Figure]:
    roomy = configured(subject, limits={"agentSessions": 50_000}, sessions={"idle": _IDLE})
    memory: list[float] = []
    with upstream("--ping", "3") as server, running(roomy, server.port) as router:
        due = time.monotonic()
        for _ in range(_STEPS):
            agent = Agent(router.port, subject.path)
            for number in range(sessions // _STEPS):
                due = max(due + 1 / _EACH_SECOND, time.monotonic())
                time.sleep(max(due - time.monotonic(), 0.0))
                session = agent.open()
                if number % _EVERY_CALLS == 0:
                    agent.call(session, "json_128")
            agent.close()
            memory.append(router.usage().rss / 2**20)
    values = {("memory", "MiB"): memory, ("slope", "B/session"): [slope(tuple(memory), sessions)]}
    yield from figures(SUITE, subject.name, work_of(sessions), values)


def _catalogue(context: Context, subject: Subject) -> Iterator[Figure]:
    milliseconds: list[float] = []
    cpu: list[float] = []
    size = 0
    with ExitStack() as stack:
        server = stack.enter_context(upstream("--tools", str(_TOOLS - _OWN_TOOLS)))
        url = f"http://127.0.0.1:{server.port}/mcp"
        servers = {
            f"s{number:02}": {"url": url, "allowedTools": ["*"]} for number in range(_SERVERS)
        }
        many = configured(subject, servers=servers, limits={"tools": 10_000})
        router = stack.enter_context(running(many, server.port))
        agent = Agent(router.port, subject.path.removesuffix(f"/{SERVER}"))
        session = agent.open()
        while len(agent.tools(session)[0]) < _SERVERS * _TOOLS:
            time.sleep(0.1)
        for _ in range(max(context.rounds, 5)):
            before, begin = router.usage().cpu, time.monotonic()
            _, size = agent.tools(session)
            milliseconds.append((time.monotonic() - begin) * 1e3)
            cpu.append((router.usage().cpu - before) * 1e3)
        agent.close()
    values = {
        ("list time", "ms"): milliseconds,
        ("list cpu", "ms"): cpu,
        ("list size", "KiB"): [size / 1024],
    }
    yield from figures(SUITE, subject.name, LISTED, values)
