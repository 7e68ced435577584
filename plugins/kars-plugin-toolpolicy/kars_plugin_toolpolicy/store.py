"""Counters that outlive the process.

Owns the file and the memory of what limits have counted. Reads are from memory; a thread of its
own writes what has changed, at most half a second later, so that no call waits for a disk. Must
not know what is counted.

What is lost: nothing on `close`; at most the last half second when the process is killed; on a
power failure also what the operating system had not written yet. The file is SQLite with a
write-ahead log, so it is whole in each of these cases.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, Self

import msgspec
from attrs import frozen

from kars_plugin_toolpolicy.concurrency import Key, Rounds, Slots
from kars_router.errors import PluginError

# The most counters that agents can bring about by opening sessions; some 10 MB.
MOST_MINTED: Final = 20_000
WRITE_DELAY: Final = 0.5

_SWEEP_EVERY: Final = 2048
_TABLE: Final = (
    "CREATE TABLE IF NOT EXISTS counters (key BLOB PRIMARY KEY, value REAL NOT NULL,"
    " at REAL NOT NULL, expires REAL NOT NULL, minted INTEGER NOT NULL) WITHOUT ROWID"
)
_SELECT: Final = "SELECT key, value, at, expires, minted FROM counters ORDER BY expires"

# What reading a damaged file, or one of another program, raises.
_DAMAGE: Final = (sqlite3.DatabaseError, msgspec.MsgspecError, TypeError, ValueError)

_log = logging.getLogger(__name__)
_key = msgspec.json.Decoder(tuple[str, ...])


@frozen
class Counter:
    """One counter.

    Attributes:
        value: how much.
        at: when, or for which day; whatever its owner needs beside the value.
        expires: Unix time from which on it is worth nothing.
        minted: whether an agent gets a new one by opening a session. Only such are given up for
            want of room: whoever could bring that about gains nothing by it.
    """

    value: float
    at: float
    expires: float
    minted: bool = False


class Store:
    """Counters by key, and what else outlives a policy.

    One for the process, so that a new policy goes on from what the old one has counted. All but
    the writing is for one thread.

    Attributes:
        slots: calls in flight; not written to the file.
        rounds: calls that will go on; not written to the file.
        failure: why the file could not be written the last time, or "". Limits go on from memory.
    """

    def __init__(self, path: Path | None = None, *, delay: float = WRITE_DELAY) -> None:
        self.slots = Slots()
        self.rounds = Rounds()
        self.failure = ""
        self._path = path
        self._delay = delay
        self._counters: OrderedDict[Key, Counter] = OrderedDict()
        self._sweep_at = _SWEEP_EVERY
        self._changed: set[Key] = set()
        self._lock = threading.Lock()  # held for `_changed`, and never while anything is written
        self._writing = threading.Lock()  # held for the connection
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._connection: sqlite3.Connection | None = None
        self._thread: threading.Thread | None = None

    @classmethod
    def open(cls, path: Path | None, *, delay: float = WRITE_DELAY) -> Self:
        """Reads what was counted before, and begins to write.

        A file that is damaged is moved aside, and everything counts from zero: an agent cannot
        damage it, and a router that refused all calls would only make someone remove the file.

        Args:
            path: the file, made with its directory if need be; None for nowhere.
            delay: seconds until a change is written.

        Raises:
            PluginError: the file cannot be opened.
        """
        store = cls(path, delay=delay)
        if path is None:
            return store
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                store._connection = _connect(path)
                store._load()
            except _DAMAGE as error:
                if not _is_damage(error):
                    raise
                store._counters.clear()
                store._begin_anew(path, error)
        except (sqlite3.Error, OSError) as error:
            store.close()
            raise PluginError(f"cannot keep the counters of limits in {path}: {error}") from error
        store._thread = threading.Thread(target=store._write_behind, name="limits", daemon=True)
        store._thread.start()
        return store

    def get(self, key: Key) -> Counter | None:
        """What was put there last, unless it has been given up."""
        return self._counters.get(key)

    def put(self, key: Key, counter: Counter, now: float) -> None:
        """Keeps a counter.

        Args:
            key: whose it is.
            counter: what to keep.
            now: Unix time, to tell what has expired.
        """
        self._counters[key] = counter
        self._counters.move_to_end(key)
        self._touch((key,))
        if len(self._counters) > self._sweep_at:
            self._sweep(now)

    def save(self) -> None:
        """Writes what has changed, now.

        A failure is logged and kept in `failure`; what could not be written is tried again.
        """
        with self._writing:
            if self._connection is None or self._path is None:
                return
            with self._lock:
                keys, self._changed = self._changed, set()
            try:
                try:
                    self._write(self._connection, keys)
                except sqlite3.DatabaseError as error:
                    if not _is_damage(error):
                        raise
                    self._begin_anew(self._path, error)
                    keys = set(self._counters.copy())
                    self._write(self._connection, keys)
            except (sqlite3.Error, OSError) as error:
                if not self.failure:
                    _log.error("the counters of limits cannot be written: %s", error)
                self.failure = str(error)
                with self._lock:
                    self._changed |= keys
            else:
                if self.failure:
                    _log.warning("the counters of limits are written again")
                self.failure = ""

    def close(self) -> None:
        """Writes what has changed and closes the file; nothing the second time."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.save()
        with self._writing:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __len__(self) -> int:
        return len(self._counters)

    def _touch(self, keys: Iterable[Key]) -> None:
        if self._path is not None:
            with self._lock:
                self._changed.update(keys)
            self._wake.set()

    def _sweep(self, now: float) -> None:
        """Forgets what has expired, then the oldest of what agents can mint."""
        gone = [key for key, counter in self._counters.items() if counter.expires <= now]
        for key in gone:
            del self._counters[key]
        minted = [key for key, counter in self._counters.items() if counter.minted]
        given_up = minted[: max(0, len(minted) - MOST_MINTED)]
        for key in given_up:
            del self._counters[key]
        self._touch([*gone, *given_up])
        self._sweep_at = len(self._counters) + _SWEEP_EVERY

    def _write_behind(self) -> None:
        while not self._stop.is_set():
            self._wake.wait()
            self._wake.clear()
            self._stop.wait(self._delay)  # gathers what else changes meanwhile
            self.save()
            if self.failure:
                self._stop.wait(10 * self._delay)
                self._wake.set()

    def _load(self) -> None:
        assert self._connection is not None
        for raw, value, at, expires, minted in self._connection.execute(_SELECT):
            if not all(map(math.isfinite, (value, at, expires))):
                raise ValueError("a counter that is no number")
            self._counters[_key.decode(raw)] = Counter(value, at, expires, bool(minted))
        self._sweep_at = len(self._counters) + _SWEEP_EVERY

    def _write(self, connection: sqlite3.Connection, keys: set[Key]) -> None:
        kept: list[tuple[bytes, float, float, float, bool]] = []
        gone: list[tuple[bytes]] = []
        for key in keys:
            counter, name = self._counters.get(key), msgspec.json.encode(key)
            if counter is None:
                gone.append((name,))
            else:
                kept.append((name, counter.value, counter.at, counter.expires, counter.minted))
        with _transaction(connection):
            connection.executemany("DELETE FROM counters WHERE key = ?", gone)
            connection.executemany("INSERT OR REPLACE INTO counters VALUES (?, ?, ?, ?, ?)", kept)

    def _begin_anew(self, path: Path, error: Exception) -> None:
        """Moves a damaged file aside and opens an empty one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        aside = path.with_name(f"{path.name}.damaged")  # one is kept: the last
        path.replace(aside)
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        _log.error(
            "%s is damaged (%s); moved to %s, counters go on from memory or zero",
            path,
            error,
            aside.name,
        )
        self._connection = _connect(path)


def _is_damage(error: Exception) -> bool:
    # An operational error is a locked file, no permission or no room, unless it is about SQL: then
    # the table is that of another program.
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode == sqlite3.SQLITE_ERROR
    return True


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=2.0, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(_TABLE)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except sqlite3.Error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
