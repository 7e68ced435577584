"""Other programs that do the same, side by side: small calls, and what an idle session costs.

Those that can stand before an HTTP server stand before ours; the others start our stdio server.
The router is measured in both places. A peer that cannot be installed or started, or that gives a
wrong answer, is named and left out.
"""

from __future__ import annotations

import select
from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from attrs import define, evolve, field, frozen

from bench.context import Context
from bench.load import Outcome, load, open_sessions
from bench.loads import came_to
from bench.model import Figure, figures
from bench.peers import STDIO_SERVER, directory, found, stdio_server
from bench.processes import BenchError, Program
from bench.subjects import SERVER, Subject, configured, routers, running, upstream

SUITE = "peers"
HTTP, STDIO = "HTTP", "stdio"
CONNECTIONS = (1, 16, 64)
IDLE = "idle session"
_ROUNDS = 3
_TOOL = "json_128"
_WARM_SECONDS = 1.0
_LONGEST_SECONDS = 15.0
_FIRST_SESSIONS = 10
# Few would fit into memory that a start left free. With a stdio server, most start a process each.
_IDLE_SESSIONS = {HTTP: 300, STDIO: 50}
_SETTLE_SECONDS = 2.0


_skipped: list[str] = []


def skipped() -> list[str]:
    """What was not measured in the last run, and why."""
    return _skipped


@frozen(kw_only=True)
class _Entrant:
    subject: Subject
    tool: str = _TOOL
    sessions: bool = True


@define
class _Runner:
    """One that is running, and what has been measured of it."""

    entrant: _Entrant
    program: Program
    sessions: list[str]
    rate: float = 0.0
    outcomes: list[Outcome] = field(factory=list)


def work_of(kind: str, connections: int) -> str:
    """What the work is called in figures.

    Args:
        kind: of server behind it: `HTTP` or `stdio`.
        connections: how many agents at a time.
    """
    return f"{kind} server, {connections} connection{'s' if connections > 1 else ''}"


def run(context: Context) -> Iterator[Figure]:
    """The router and every peer, in turns."""
    _skipped.clear()
    where = directory()
    there, missing = found(where)
    for source in missing:
        _leave_out(context, source.requirement, "not installed (python -m bench.peers.install)")
    for kind in (HTTP, STDIO):
        peers = [peer for peer in there if peer.stdio == (kind == STDIO)]
        entrants = [*_ours(context, kind)]
        entrants += [
            _Entrant(
                subject=peer.subject(where),
                tool=peer.prefix + _TOOL,
                sessions=peer.sessions,
            )
            for peer in peers
        ]
        if peers:
            yield from _calls(context, kind, entrants)
            yield from _idle(context, kind, entrants)


def _leave_out(context: Context, name: str, why: object) -> None:
    text = f"{SUITE}: without {name}: {why}"
    _skipped.append(text)
    context.say(text)


def _ours(context: Context, kind: str) -> Iterator[_Entrant]:
    for subject in routers(context.subjects):
        if kind == HTTP:
            roomy = {"agentSessions": 2 * _IDLE_SESSIONS[HTTP]}
            yield _Entrant(subject=configured(subject, plain=True, limits=roomy))
            continue
        server = {"command": stdio_server(), "allowedTools": ["*"]}
        behind = evolve(subject, leave_out=STDIO_SERVER)
        yield _Entrant(subject=configured(behind, plain=True, servers={SERVER: server}))
        # As some peers do: one server for all agents.
        shared = evolve(behind, name=f"{subject.name}, shared server")
        servers = {SERVER: {**server, "sessionScope": "shared"}}
        yield _Entrant(subject=configured(shared, plain=True, servers=servers))


def _calls(context: Context, kind: str, entrants: Sequence[_Entrant]) -> Iterator[Figure]:
    with ExitStack() as stack:
        server = stack.enter_context(upstream())
        runners: list[_Runner] = []
        for entrant in entrants:
            context.say(f"{SUITE}: starting {entrant.subject.name}")
            try:
                program = stack.enter_context(running(entrant.subject, server.port))
                sessions = _open(entrant, program, max(CONNECTIONS))
            except BenchError as error:
                _leave_out(context, entrant.subject.name, error)
            else:
                runners.append(_Runner(entrant, program, sessions))
        for connections in CONNECTIONS if not context.quick else (16,):
            work = work_of(kind, connections)
            context.say(f"{SUITE}: {work}")
            for number in range(-1, min(context.rounds, _ROUNDS)):
                for runner in list(runners):
                    seconds = _WARM_SECONDS if number < 0 else context.seconds
                    try:
                        outcome = _load(runner, connections, seconds)
                    except BenchError as error:
                        runners.remove(runner)
                        _leave_out(context, runner.entrant.subject.name, error)
                        continue
                    if number >= 0:
                        runner.outcomes.append(outcome)
            for runner in runners:
                name = runner.entrant.subject.name
                yield from figures(SUITE, name, work, came_to(runner.outcomes))
                runner.outcomes.clear()


def _load(runner: _Runner, connections: int, seconds: float) -> Outcome:
    """One load. What is slow gets time for some calls on each connection, not for one."""
    if runner.rate:
        seconds = min(max(seconds, 6 * connections / runner.rate), _LONGEST_SECONDS)
    outcome = load(
        runner.program,
        runner.entrant.subject.path,
        runner.sessions[:connections],
        tool=runner.entrant.tool,
        connections=connections,
        seconds=seconds,
    )
    runner.rate = outcome.calls / outcome.seconds
    return outcome


def _open(entrant: _Entrant, program: Program, count: int) -> list[str]:
    return open_sessions(program.port, entrant.subject.path, count, entrant.tool)


def _idle(context: Context, kind: str, entrants: Sequence[_Entrant]) -> Iterator[Figure]:
    for entrant in entrants:
        if not entrant.sessions:
            continue
        name, count = entrant.subject.name, _IDLE_SESSIONS[kind]
        context.say(f"{SUITE}: {name}, {count} idle sessions")
        with ExitStack() as stack:
            server = stack.enter_context(upstream())
            try:
                program = stack.enter_context(running(entrant.subject, server.port))
                _open(entrant, program, _FIRST_SESSIONS)
                own, everything = _memory(program)
                _open(entrant, program, count)
                own_later, everything_later = _memory(program)
            except BenchError as error:
                _leave_out(context, name, error)
                continue
        values = {
            ("memory", "MiB"): [own / 2**20],
            ("memory per session", "KiB"): [(own_later - own) / count / 1024],
        }
        if kind == STDIO:
            more = (everything_later - everything) / count / 1024
            values["memory per session, servers included", "KiB"] = [more]
        yield from figures(SUITE, name, f"{kind} server, {IDLE}", values)


def _memory(program: Program) -> tuple[int, int]:
    """Bytes, after a while: its own, and those of the servers that it started as well."""
    select.select([], [], [], _SETTLE_SECONDS)
    return program.usage().rss, evolve(program, leave_out="").usage().rss
