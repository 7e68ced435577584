"""Processes: started, asked what they use, and ended. Linux only, from /proc.

Owns every process of a run. The subject gets a processor of its own, if there are two; load and
upstream share what is left.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

from attrs import define, frozen

_START_SECONDS: Final = 60.0
_END_SECONDS: Final = 10.0
PROGRAMS: Final = Path(__file__).resolve().parent / "programs"


class BenchError(Exception):
    """Something cannot be measured; one sentence that says why."""


@frozen(kw_only=True)
class Usage:
    """What a process, and those that it started, have used up to now.

    Attributes:
        cpu: seconds of processor time, of user and system.
        rss: bytes of resident memory. What several processes share counts for each of them.
        files: open file descriptors.
        switches: how often it began to wait: voluntary context switches.
    """

    cpu: float
    rss: int
    files: int
    switches: int


@define
class Program:
    """A running process.

    Attributes:
        process: it.
        port: where it listens; 0 if it has not said.
        leave_out: processes that it started and that are not counted: a server behind it.
    """

    process: subprocess.Popen[bytes]
    port: int = 0
    leave_out: str = ""

    def usage(self) -> Usage:
        """What it has used up to now.

        Raises:
            BenchError: it has ended.
        """
        if self.process.poll() is not None:
            raise BenchError(f"{self.process.args!r} ended by itself")
        total = [0.0, 0, 0, 0]
        for pid in tree(self.process.pid):
            if pid != self.process.pid and self.leave_out and self.leave_out in _command(pid):
                continue
            with suppress(FileNotFoundError, ProcessLookupError):
                for index, value in enumerate(_usage(pid)):
                    total[index] += value
        cpu, rss, files, switches = total
        return Usage(cpu=cpu, rss=int(rss), files=int(files), switches=int(switches))


def cores() -> tuple[set[int], set[int]]:
    """The processors of the subject, and those of everything else."""
    mine = sorted(os.sched_getaffinity(0))
    return ({mine[-1]}, set(mine[:-1])) if len(mine) > 1 else (set(mine), set(mine))


@contextmanager
def start(
    command: Sequence[str],
    *,
    on: set[int],
    port: int = 0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    leave_out: str = "",
) -> Iterator[Program]:
    """Runs a command while the block lasts.

    Args:
        command: the program and its arguments.
        on: the processors that it may use.
        port: where it is going to listen. 0: it prints `ready PORT` as its first line.
        env: variables on top of ours.
        cwd: where it runs.
        leave_out: part of the command line of children that are not counted.

    Raises:
        BenchError: it did not start.
    """
    announces = port == 0
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # open and silent: some end when theirs does
        stdout=subprocess.PIPE if announces else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL if "BENCH_VERBOSE" not in os.environ else None,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, on),
    )
    try:
        yield Program(process, port or _announced(process, command), leave_out)
    finally:
        _end(process)


def program(name: str, *arguments: str) -> list[str]:
    """The command of one of our own programs."""
    return [sys.executable, str(PROGRAMS / f"{name}.py"), *arguments]


def tree(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    children: dict[int, list[int]] = {}
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((directory / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(directory.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def heed_signals() -> None:
    """Has SIGTERM and SIGHUP end this process in an orderly way, so that it can call `end_all`."""
    for sign in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(sign, _leave)


def _leave(sign: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + sign)  # by way of every block that ends what it has started


def end_all() -> None:
    """Kills whatever this process has started, directly or not, and that is still there."""
    mine = os.getpid()
    for pid in tree(mine):
        if pid != mine:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def _usage(pid: int) -> tuple[float, int, int, int]:
    place = Path("/proc", str(pid))
    cpu = 0
    switches = 0
    for task in (place / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            cpu += int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text()
            switches += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    pages = int((place / "statm").read_text().split()[1])
    files = len(list((place / "fd").iterdir()))
    return cpu / 1e9, pages * os.sysconf("SC_PAGE_SIZE"), files, switches


def _command(pid: int) -> str:
    try:
        return Path("/proc", str(pid), "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _announced(process: subprocess.Popen[bytes], command: Sequence[str]) -> int:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], _START_SECONDS)
    line = process.stdout.readline() if ready else b""
    if not line.startswith(b"ready "):
        raise BenchError(f"{' '.join(command)} did not start; BENCH_VERBOSE=1 shows what it says")
    return int(line.split()[1])


def _end(process: subprocess.Popen[bytes]) -> None:
    pids = tree(process.pid)
    process.terminate()
    deadline = time.monotonic() + _END_SECONDS
    with suppress(subprocess.TimeoutExpired):
        process.wait(_END_SECONDS)
    # Whatever it had started and left behind: they are ours as well.
    for pid in pids:
        if pid != process.pid or process.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
    process.wait(max(deadline - time.monotonic(), 1.0))
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def wait_for(started: Program) -> None:
    """Waits until a program accepts connections.

    Raises:
        BenchError: it does not within a minute, or it has ended.
    """
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        started.usage()
        with suppress(OSError), socket.create_connection(("127.0.0.1", started.port), 1):
            return
        select.select([], [], [], 0.02)
    raise BenchError(f"{started.process.args!r} does not listen")
