"""What must be known of agent sessions after a restart of the router.

A file of JSON lines, appended to, and rewritten at each start and when it has grown fourfold: which
upstream sessions an agent session has used (so that it can be told that they are gone), and which
agent sessions have ended (so that their ids stay dead). A flood of short sessions fills neither
memory nor disk, since ended ones are kept as ranges (`session/ended.py`). Holds no ids of upstream
sessions and no secrets. Without a directory everything is kept in memory only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from kars_router.session.ended import Ended
from kars_router.telemetry import log

FILE: Final = "sessions.jsonl"
_SMALL: Final = 1 << 20  # bytes; what is smaller is not worth rewriting
_GROWTH: Final = 4


class Records:
    """The records of one router.

    Args:
        directory: where the file is kept, or None.
        lifetime: seconds after which a record is of no use any more (an agent session's longest
            life).
        clock: the wall clock, in seconds.
    """

    def __init__(
        self, directory: Path | None, lifetime: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._lifetime = lifetime
        self._clock = clock
        self._used: dict[tuple[str, str], tuple[int, float]] = {}
        self._ended = Ended(lifetime)
        self._file: int | None = None
        self._size = 0
        self._most = 0
        if directory is not None:
            self._path = path = directory / FILE
            try:
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._load(path)
                self._rewrite(path)
            except OSError as error:
                log().warning("records_in_memory_only", path=str(path), error=str(error))

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def used(self, agent: str, server: str) -> int | None:
        """The generation of a server's session that an agent session used last, or None."""
        found = self._used.get((agent, server))
        return found[0] if found else None

    def latest(self, server: str) -> int:
        """The highest generation on record for a server; 0 if there is none."""
        return max((g for (_, s), (g, _) in self._used.items() if s == server), default=0)

    def note_use(self, agent: str, server: str, generation: int) -> None:
        """Records that an agent session uses a generation; repeated calls write nothing."""
        found = self._used.get((agent, server))
        if found is not None and found[0] == generation:
            return
        now = self._clock()
        self._used[agent, server] = (generation, now)
        self._append({"agent": agent, "server": server, "generation": generation, "at": now})

    def forget_use(self, agent: str, server: str) -> None:
        """Takes back a use that came to nothing; the file keeps it, to be on the safe side."""
        self._used.pop((agent, server), None)

    def note_end(self, agent: str) -> None:
        """Records that an agent session has ended."""
        now = self._clock()
        self._ended.add(agent, now)
        self._forget_uses(agent)
        self._append({"agent": agent, "ended": True, "at": now})
        self._ended.forget(now)

    def has_ended(self, agent: str) -> bool:
        """Whether an agent session has ended."""
        return agent in self._ended

    def _forget_uses(self, agent: str) -> None:
        for key in [key for key in self._used if key[0] == agent]:
            del self._used[key]

    def _load(self, path: Path) -> None:
        horizon = self._clock() - self._lifetime
        for row in _rows(path):
            agent, at = row.get("agent"), row.get("at")
            if not isinstance(at, int | float) or at < horizon:
                continue
            server, generation = row.get("server"), row.get("generation")
            if self._ended.take(row):
                self._forget_uses(str(agent))
            elif isinstance(agent, str) and isinstance(server, str) and type(generation) is int:
                self._used[agent, server] = (generation, at)
        self._ended.forget(self._clock())

    def _rewrite(self, path: Path) -> None:
        fresh = path.with_suffix(f".{os.getpid()}.new")
        handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        rows = list(self._ended.rows())
        rows += [
            {"agent": agent, "server": server, "generation": generation, "at": at}
            for (agent, server), (generation, at) in self._used.items()
        ]
        try:
            size = _write(handle, rows)
            fresh.replace(path)
        except OSError:
            os.close(handle)
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        if self._file is not None:
            os.close(self._file)
        self._file = handle
        self._size, self._most = size, max(_SMALL, _GROWTH * size)

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._size += _write(self._file, [row])
        except OSError as error:
            log().warning("records_write_failed", error=str(error))
            return
        if self._size > self._most:
            self._compact()

    def _compact(self) -> None:
        # Rewriting costs milliseconds for each megabyte, and each time as much again has to be
        # appended first: rare enough not to go to a thread, where it would need a lock.
        try:
            self._rewrite(self._path)
        except OSError as error:
            self._most = _GROWTH * self._size
            log().warning("records_not_compacted", path=str(self._path), error=str(error))


def _write(handle: int, rows: list[dict[str, Any]]) -> int:
    # One row has some hundred bytes, appended in one call: short enough not to go to a thread.
    data = memoryview(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    size = len(data)
    while data:
        data = data[os.write(handle, data) :]
    return size


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:  # one at a time: what is read at once is never given back
            try:
                row = msgspec.json.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                log().warning("record_unreadable", path=str(path))  # a torn last line, usually
                continue
            if isinstance(row, dict):
                yield row
