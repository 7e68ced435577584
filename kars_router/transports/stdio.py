"""stdio: a server that is a child process, one JSON-RPC message a line.

Owns the process, its pipes, its environment and its end. Must not know which message answers
which.

Source: MCP 2025-11-25 "Transports / stdio", "Lifecycle / Shutdown".
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import select
import signal
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import trio

from kars_router.model import Phase, Sent
from kars_router.telemetry import log
from kars_router.transports.base import Deliver, Delivery
from kars_router.transports.channel import ChannelEnded, StreamChannel
from kars_router.transports.child import ERRORS, OUTPUT, Child, start_child
from kars_router.transports.lines import Line, LineDecoder
from kars_router.transports.redaction import redact

# What a program needs to find itself at home. Nothing else of the router's environment: that
# holds the tokens of other servers.
INHERITED: Final = (
    "HOME",
    "LANG",
    "LANGUAGE",
    "LC_ALL",
    "LC_CTYPE",
    "LC_MESSAGES",
    "LOGNAME",
    "PATH",
    "SHELL",
    "TERM",
    "TMPDIR",
    "TZ",
    "USER",
)

# A pipe takes that much whole or not at all (POSIX, PIPE_BUF), so what was accepted is known.
_ATOMIC: Final = 4096
# The most that a pipe holds on Linux, unless somebody with privileges has made it larger.
_PIPE: Final = 1024 * 1024
# For what a process that has ended, or an orphan of it, still has in its pipes.
_LAST_WORDS_SECONDS: Final = 0.5
_STEP_SECONDS: Final = 1.0
_STDERR_LINE: Final = 2000
_STDERR_BURST: Final = 100
_STDERR_SECONDS: Final = 10.0
_SHORTEST_SECRET: Final = 8


def environment(given: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: what is given, over the few variables that are inherited.

    Args:
        given: the variables of its configuration.
        own: the router's environment.
    """
    return {**{name: own[name] for name in INHERITED if name in own}, **given}


class Stdio(StreamChannel):
    """One session with a child process of its own.

    The process leads a session and process group of its own, and the whole group ends with the
    channel: its stdin is closed, a second later it gets SIGTERM, another second later SIGKILL.
    What put itself into another group is not found.

    Args:
        argv: the program and its arguments, at least the program; looked for in the PATH of `env`.
        env: its whole environment; see `environment`.
        server: the server's configured name.
        deliver: takes every message that arrives, at once and without waiting.
        connect_timeout: seconds for starting it, and for writing one message.
        event_limit: most bytes of one message.
        secrets: what must not appear in failures and in the log.
    """

    # A server that works on a call may read nothing else meanwhile; that is no reason to end it.
    droppable = True

    def __init__(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        server: str,
        deliver: Deliver,
        connect_timeout: float = 5.0,
        event_limit: int = 16 * 1024 * 1024,
        secrets: Sequence[str] = (),
    ) -> None:
        long_enough = [secret for secret in secrets if len(secret) >= _SHORTEST_SECRET]
        super().__init__(
            server=server, deliver=deliver, connect_timeout=connect_timeout, secrets=long_enough
        )
        self._argv = list(argv)
        self._env = dict(env)
        self._limit = event_limit
        self._child: Child | None = None
        self._stopped = False
        self._written = 0
        # Messages and where in all that was written they end, as far as they may still be unread
        # and somebody asks; not those of `send_now`, of which an idle session has thousands.
        self._ends: list[tuple[int, Delivery]] = []
        self._last_line = ""
        self._allowed = _STDERR_BURST
        self._dropped = 0
        self._since = -math.inf

    @property
    def pid(self) -> int | None:
        """The process's number, and its group's; None before it was started."""
        return self._child.pid if self._child is not None else None

    async def _run(self, opened: Callable[[], None]) -> str:
        env, self._env = self._env, {}  # it is not needed again
        try:
            child = await start_child(self._argv, env)
        except (OSError, ValueError) as error:  # the latter for a NUL in an argument
            reason = getattr(error, "strerror", None) or str(error)
            text = f"the command {self._argv[0]!r} cannot be started: {reason}"
            raise self.failed(Phase.CONNECT, text, code="connect") from error
        self._child = child
        log().info("process_started", server=self._server, pid=child.pid)
        opened()
        output, errors = LineDecoder(self._limit), LineDecoder(_STDERR_LINE)
        while child.status is None and OUTPUT in child.is_open:
            self._hear(await child.hear(), output, errors)
        self._note_end()
        # Another process may hold the pipes open, and the server is gone all the same.
        with trio.move_on_after(_LAST_WORDS_SECONDS):
            while child.status is None or child.is_open:
                self._hear(await child.hear(), output, errors)
        self._log_lines(errors.rest())
        self._note_end()
        self._take_back_unread()
        return self._reason(child.status)

    @property
    def _input(self) -> int:
        assert self._child is not None
        return self._child.input

    def _write_now(self, payload: bytes, delivery: Delivery | None) -> bool:
        line = _as_line(payload)
        if len(line) > _ATOMIC:
            return False
        try:
            os.write(self._input, line)
        except OSError:  # it has no room, or no reader any more; `_write` finds out
            return False
        if delivery is None:
            self._written += len(line)
        else:
            self._note_written(len(line), delivery)
        return True

    async def _write(self, payload: bytes, delivery: Delivery) -> None:
        rest = memoryview(_as_line(payload))
        try:
            while True:
                try:
                    taken = os.write(self._input, rest)
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._input)
                    continue
                rest = rest[taken:]
                if not rest:
                    break
                self._written += taken
                delivery.sent = Sent.PARTLY
        except (OSError, trio.ClosedResourceError) as error:
            raise ChannelEnded("the process takes no more input") from error
        self._note_written(taken, delivery)

    def _note_written(self, count: int, delivery: Delivery) -> None:
        self._written += count
        delivery.sent = Sent.YES
        ends = self._ends
        # What was answered was read, and all that was written before it.
        if ends and ends[-1][1].heard:
            ends.clear()
        ends.append((self._written, delivery))
        while ends and (ends[0][1].heard or ends[0][0] <= self._written - _PIPE):
            ends.pop(0)

    def _take_back_unread(self) -> None:
        """Notes which messages a process that has ended has left in its pipe, not wholly read.

        Nobody has acted on those, and nobody will, once the pipe has no reader any more.
        """
        descriptor = self._input
        poll = select.poll()
        poll.register(descriptor, 0)
        if not any(state & select.POLLERR for _, state in poll.poll(0)):
            return
        count = fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4))
        read = self._written - int.from_bytes(count, sys.byteorder)
        for end, delivery in self._ends:
            if end > read:
                delivery.sent = Sent.PARTLY

    async def _release(self) -> None:
        child = self._child
        if child is None:
            return
        child.close_input()
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if child.status is not None:
                break
            if number is not None:
                child.signal_group(number)
            with trio.move_on_after(_STEP_SECONDS, shield=True):
                await child.wait()
        self._note_end()
        if child.status is None:
            log().error("process_stays", server=self._server, pid=child.pid)
        self._note_dropped()
        child.close()

    def _note_end(self) -> None:
        """Logs the end of the process, once there is one; once."""
        child = self._child
        if child is not None and child.status is not None and not self._stopped:
            self._stopped = True
            log().info("process_ended", server=self._server, pid=child.pid, status=child.status)

    def _hear(
        self, heard: Sequence[tuple[int, bytes]], output: LineDecoder, errors: LineDecoder
    ) -> None:
        for source, chunk in heard:
            if source == ERRORS:
                self._log_lines(errors.feed(chunk))
                continue
            if chunk:
                self.hear()
            for line in output.feed(chunk):
                if line.cut:
                    self.refuse(line.first, line.last, self._limit)
                elif line.first.strip():
                    self.take(line.first)

    def _log_lines(self, lines: Sequence[Line]) -> None:
        now = trio.current_time()
        if now - self._since >= _STDERR_SECONDS:
            self._note_dropped()
            self._since, self._allowed = now, _STDERR_BURST
        for line in lines:
            text = self._printable(line.first)
            if not text:
                continue
            self._last_line = text
            if self._allowed:
                self._allowed -= 1
                log().info("server_stderr", server=self._server, line=text)
            else:
                self._dropped += 1

    def _note_dropped(self) -> None:
        if self._dropped:
            log().warning("server_stderr_dropped", server=self._server, lines=self._dropped)
            self._dropped = 0

    def _printable(self, line: bytes) -> str:
        # Whatever a terminal would obey is taken out; a log line is one line.
        text = line.decode("utf-8", "replace").expandtabs().strip()
        return redact("".join(c if c.isprintable() else "\ufffd" for c in text), self._secrets())

    def _reason(self, status: int | None) -> str:
        if status is None:
            reason = "its process closed its output"
        elif status < 0:
            with contextlib.suppress(ValueError):  # a real-time signal has no name
                return f"its process was ended by {signal.Signals(-status).name}"
            return f"its process was ended by signal {-status}"
        else:
            reason = f"its process exited with status {status}"
        return f"{reason}; its last line: {self._last_line[:160]}" if self._last_line else reason


def _as_line(payload: bytes) -> bytes:
    # Between the tokens of JSON a line break means nothing; here it would end the message.
    return payload.replace(b"\n", b" ").replace(b"\r", b" ") + b"\n"
