"""From the start of the process to the first list of tools, and what is installed for it."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from bench.agent import Agent
from bench.context import Context
from bench.model import Figure, figures
from bench.processes import BenchError, cores, start
from bench.subjects import Subject, free_port, routers, upstream

SUITE = "start"
WORK = "to the first tools/list"
IMPORTS = "import trio, httpx, hypercorn"
_LEAST_ROUNDS = 7
_START_SECONDS = 30.0


def run(context: Context) -> Iterator[Figure]:
    """Every router that we have, in turns with the imports that none can do without."""
    rounds = max(context.rounds, _LEAST_ROUNDS)
    found: dict[str, list[float]] = {}
    with upstream() as server:
        for _ in range(rounds):
            found.setdefault(IMPORTS, []).append(_imports())
            for subject in routers(context.subjects):
                found.setdefault(subject.name, []).append(_first_list(subject, server.port))
    for name, seconds in found.items():
        values = {("time", "ms"): [value * 1e3 for value in seconds]}
        yield from figures(SUITE, name, WORK, values)
    for name, size in sorted(sizes().items(), key=lambda pair: -pair[1]):
        yield from figures(SUITE, name, "installed", {("size", "KiB"): [size / 1024]})


def _imports() -> float:
    begin = time.monotonic()
    with start([sys.executable, "-c", IMPORTS], on=cores()[0], port=1) as program:
        if program.process.wait(_START_SECONDS):
            raise BenchError(f"{IMPORTS} failed")
        return time.monotonic() - begin


def _first_list(subject: Subject, upstream_port: int) -> float:
    port = free_port()
    command = subject.command(upstream_port, port)
    with tempfile.TemporaryDirectory(prefix="kars-bench-") as home:
        begin = time.monotonic()
        with start(command, on=cores()[0], port=port, env={"HOME": home}) as program:
            while time.monotonic() < begin + _START_SECONDS:
                agent = Agent(port, subject.path)
                with suppress(BenchError):
                    tools, _ = agent.tools(agent.open())
                    if tools:
                        return time.monotonic() - begin
                agent.close()
                program.usage()  # it must not have ended
                time.sleep(0.002)
    raise BenchError(f"{subject.name} lists no tools within {_START_SECONDS:g} s")


def sizes(distribution: str = "kars-router") -> dict[str, int]:
    """Bytes of what is installed for a distribution, by distribution, itself and `all` included.

    What is compiled when it is first imported counts as well, if that has happened.
    """
    found: dict[str, int] = {}
    wanted = [distribution]
    for name in wanted:
        if (key := re.sub(r"[-_.]+", "-", name).lower()) in found:
            continue
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # a requirement of another platform, or of an extra
        found[key] = _size(installed)
        wanted += [
            re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
            for requirement in installed.requires or ()
            if "extra ==" not in requirement
        ]
    return {**found, "all": sum(found.values())}


def _size(installed: metadata.Distribution) -> int:
    size = 0
    for file in installed.files or ():
        path = Path(str(installed.locate_file(file)))
        with suppress(OSError):
            size += path.stat().st_size
        if path.suffix == ".py":
            for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
                size += compiled.stat().st_size
    return size
