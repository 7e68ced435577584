"""The load: wrk, with sessions opened beforehand and every answer checked (load.lua)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from attrs import frozen

from bench.agent import Agent
from bench.processes import BenchError, Program, cores

_SCRIPT: Final = Path(__file__).with_name("load.lua")
_ANSWER_SECONDS: Final = 30


@frozen(kw_only=True)
class Outcome:
    """What a load came to.

    Attributes:
        calls: answered calls.
        seconds: how long it lasted.
        cpu: seconds of processor time that the subject used meanwhile.
        p50: seconds that half of the calls took at most.
        p99: seconds that all but a hundredth took at most.
        longest: seconds that the longest took.
    """

    calls: int
    seconds: float
    cpu: float
    p50: float
    p99: float
    longest: float


def open_sessions(port: int, path: str, count: int, tool: str = "json_128") -> list[str]:
    """Opens as many sessions, each with a call, so that what is behind it is open as well.

    Returns:
        their ids; one empty one if the server has no sessions.

    Raises:
        BenchError: one cannot be opened.
    """
    agent = Agent(port, path)
    try:
        sessions: list[str] = []
        for _ in range(count):
            sessions.append(agent.open())
            agent.call(sessions[-1], tool)
            if not sessions[-1]:
                return [""]
        return sessions
    finally:
        agent.close()


def load(
    subject: Program,
    path: str,
    sessions: list[str],
    *,
    tool: str,
    connections: int,
    seconds: float,
) -> Outcome:
    """Calls a tool over and over, one call after the other on each connection.

    Args:
        subject: what is asked, and whose use of the processor is noted.
        path: what is posted to.
        sessions: in whose names, in turn.
        tool: which is called.
        connections: how many at a time.
        seconds: for how long; whole seconds.

    Raises:
        BenchError: wrk is missing, or any answer is wrong or did not come.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchError("wrk is missing; on Debian: apt-get install wrk")
    with tempfile.TemporaryDirectory() as directory:
        names, report = Path(directory, "sessions"), Path(directory, "report")
        names.write_text("".join(f"{session}\n" for session in sessions))
        command = [wrk, "--threads", "1", "--connections", str(connections)]
        command += ["--duration", f"{max(round(seconds), 1)}s", "--timeout", f"{_ANSWER_SECONDS}s"]
        command += ["--script", str(_SCRIPT), f"http://127.0.0.1:{subject.port}{path}"]
        before = subject.usage()
        done = subprocess.run(
            [*command, "--", tool, str(names)],
            check=False,
            capture_output=True,
            text=True,
            env={**os.environ, "BENCH_REPORT": str(report)},
            preexec_fn=lambda: os.sched_setaffinity(0, cores()[1]),
        )
        after = subject.usage()
        if done.returncode or not report.exists():
            raise BenchError(f"wrk failed: {done.stderr.strip() or done.stdout.strip():.500}")
        said = json.loads(report.read_text())
    if said["wrong"] or said["broken"] or said["timeouts"] or not said["answered"]:
        raise BenchError(f"not every call was answered well: {said} {done.stderr.strip():.500}")
    return Outcome(
        calls=said["answered"],
        seconds=said["microseconds"] / 1e6,
        cpu=after.cpu - before.cpu,
        p50=said["p50"] / 1e6,
        p99=said["p99"] / 1e6,
        longest=said["max"] / 1e6,
    )
