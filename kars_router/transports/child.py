"""A child process with pipes: its start, what it says, its end and that of its group.

Owns the process and every descriptor that leads to it. One task can wait for everything at once: a
session that does nothing costs as little as can be. Must not know what is said.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

import trio

OUTPUT: Final = 1
ERRORS: Final = 2

_CHUNK: Final = 64 * 1024
_MOST_EVENTS: Final = 3
# How often is asked whether a process has ended where the kernel does not say so.
_LOOK_SECONDS: Final = 0.5


class Child:
    """A running process, the leader of a session and process group of its own.

    Whoever has started it calls `close` in the end, whether it has ended or not.

    Attributes:
        status: its exit status, negative for a signal; None until its end was noticed.
        input: the descriptor that it reads from, non-blocking; -1 once it is closed.
        is_open: which of `OUTPUT` and `ERRORS` have not come to their end.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], pipes: Sequence[int], poll: select.epoll
    ) -> None:
        self.status: int | None = None
        self.input, *outputs = pipes
        self.is_open = [OUTPUT, ERRORS]
        self._process = process
        self._outputs = outputs
        self._poll = poll
        self._end = _watch_end(process.pid, poll)

    @property
    def pid(self) -> int:
        """Its number, and its group's."""
        return self._process.pid

    async def hear(self) -> list[tuple[int, bytes]]:
        """Waits until it says something, closes a pipe or ends; `status` is up to date then.

        Returns:
            what it says, each with `OUTPUT` or `ERRORS`; no bytes at the end of one. Empty if
            nothing came but the end of the process.

        Cancellation loses nothing.
        """
        await self._wait_readable(self._poll.fileno())
        heard = []
        ended = self._end < 0
        for descriptor, _ in self._poll.poll(0, _MOST_EVENTS):
            if descriptor == self._end:
                ended = True
            else:
                chunk = os.read(descriptor, _CHUNK)
                source = OUTPUT + self._outputs.index(descriptor)
                if not chunk:
                    self._poll.unregister(descriptor)
                    self.is_open.remove(source)
                heard.append((source, chunk))
        if ended:
            self._look()
        return heard

    async def wait(self) -> int:
        """Waits for its end and returns its status, whatever it says meanwhile."""
        while self._look() is None:
            await self._wait_readable(self._end)
        assert self.status is not None
        return self.status

    def signal_group(self, number: signal.Signals) -> None:
        """Sends a signal to whoever is left of its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close_input(self) -> None:
        """Closes what it reads from; a task that waits to write there is told."""
        descriptor, self.input = self.input, -1
        _close(descriptor)

    def close(self) -> None:
        """Closes every descriptor; idempotent. A process that lives on is left to itself."""
        self.close_input()
        while self._outputs:
            _close(self._outputs.pop())
        if not self._poll.closed:
            trio.lowlevel.notify_closing(self._poll.fileno())
            self._poll.close()
        self._forget_end()

    def _look(self) -> int | None:
        if self.status is None:
            self.status = self._process.poll()
            if self.status is not None:
                # At once, so that the number cannot belong to another group by now.
                self.signal_group(signal.SIGKILL)
                self._forget_end()
        return self.status

    def _forget_end(self) -> None:
        descriptor, self._end = self._end, -1
        if descriptor >= 0 and not self._poll.closed:
            # Closing takes it out only if no process has a copy, as one that is being started may.
            self._poll.unregister(descriptor)
        _close(descriptor)

    async def _wait_readable(self, descriptor: int) -> None:
        if self._end >= 0 or self.status is not None:
            await trio.lowlevel.wait_readable(descriptor)
            return
        with trio.move_on_after(_LOOK_SECONDS):
            if descriptor < 0:
                await trio.sleep_forever()
            await trio.lowlevel.wait_readable(descriptor)


async def start_child(argv: Sequence[str], env: Mapping[str, str]) -> Child:
    """Starts a process.

    Args:
        argv: the program and its arguments; the program is looked for in the PATH of `env`.
        env: its whole environment.

    Raises:
        OSError: it cannot be started.
        ValueError: an argument or a variable holds a NUL.

    Cancellation waits until it is started, or is not.
    """
    return Child(*await trio.to_thread.run_sync(_start, argv, env))


def _start(
    argv: Sequence[str], env: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], list[int], select.epoll]:
    # All that may fail comes first: there is no way back once it runs. The pipes are not those of
    # Popen, since a file object for each would take more than the process's own record.
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        kept, given = [], []
        for mine in (1, 0, 0):
            pipe = os.pipe()
            ours.callback(os.close, pipe[mine])
            theirs.callback(os.close, pipe[1 - mine])
            os.set_blocking(pipe[mine], False)
            kept.append(pipe[mine])
            given.append(pipe[1 - mine])
        # Level-triggered, and itself readable while one of those in it is.
        poll = select.epoll()
        ours.callback(poll.close)
        for descriptor in kept[1:]:
            poll.register(descriptor, select.EPOLLIN)
        stdin, stdout, stderr = given
        process = subprocess.Popen(  # noqa: S603 - what runs is for the configuration to say
            argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, start_new_session=True
        )
        ours.pop_all()
    return process, kept, poll


def _watch_end(pid: int, poll: select.epoll) -> int:
    """A descriptor that gets readable when a process ends, in `poll` as well; -1 if none is had."""
    descriptor = -1
    try:
        descriptor = os.pidfd_open(pid)
        poll.register(descriptor, select.EPOLLIN)
    except OSError:  # an old kernel, a sandbox that has not got it, or too many files
        if descriptor >= 0:
            os.close(descriptor)
        return -1
    return descriptor


def _close(descriptor: int) -> None:
    if descriptor >= 0:
        trio.lowlevel.notify_closing(descriptor)
        os.close(descriptor)
