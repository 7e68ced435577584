"""Approvals that outlive the process: which calls wait for a person, and what was said of them.

An approval is used once, and that is on the disk before the call is sent, so no decision can make a
call twice. One whose agent has gone away, or whose router was killed, stays open until it expires;
the same call of the same agent then finds it again. Owns the file. Must not know who waits.

Blocks for as long as the disk takes; called from worker threads, several at a time.
"""

from __future__ import annotations

import enum
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
import msgspec
from attrs import evolve, field, frozen

from kars_router.errors import StoreError, UserError

if TYPE_CHECKING:
    import sqlite3

FILE: Final = "approvals.sqlite3"
_KEPT_SECONDS: Final = 7 * 86_400.0
_MOST_KEPT: Final = 1000
_SWEEP_SECONDS: Final = 60.0


class ApprovalState(enum.StrEnum):
    """What became of an approval."""

    PENDING = "pending"
    APPROVED = "approved"  # and not used yet
    DENIED = "denied"
    EXPIRED = "expired"
    USED = "used"


@frozen(kw_only=True)
class Approval:
    """One call that a person is to decide on.

    Attributes:
        id: short random name.
        digest: what the call is: agent, server, method, name and params.
        call: the call's id in the record.
        agent: opaque identifier of the agent.
        client: what its client calls itself; untrusted.
        subject: who the agent proved to be; "" if it had to prove nothing.
        server: the server.
        method: the request's method.
        name: the tool, prompt or URI.
        arguments: the arguments as JSON, after transformers, cut to 16 KiB.
        reason: why it is held.
        rule: the rule that says so.
        source: the plugin that says so.
        created: seconds of Unix time.
        expires: seconds of Unix time; then the answer is no.
        operator: whether it may be decided at the admin address.
        state: what became of it.
        by: who decided; "" if nobody has.
        comment: what that person said.
        decided: seconds of Unix time, or None.
    """

    id: str
    digest: str
    call: str
    agent: str
    server: str
    method: str
    name: str
    arguments: str = field(default="", repr=False)
    client: str = ""
    subject: str = ""
    reason: str = ""
    rule: str = ""
    source: str = ""
    created: float
    expires: float
    operator: bool = True
    state: ApprovalState = ApprovalState.PENDING
    by: str = ""
    comment: str = ""
    decided: float | None = None


class ApprovalStore:
    """The approvals of one router.

    A file that is there is opened at once, so that one which cannot be used is no later surprise.
    Otherwise there is nothing to find, and none is made before the first approval: few routers
    hold calls, and the library alone takes more memory than thirty sessions.

    Each method raises StoreError if the disk fails it; then nothing has changed.

    Args:
        directory: where the file is kept; None to keep them in memory only.
        clock: the wall clock, in seconds.

    Attributes:
        blocks: whether there is a disk to wait for.

    Raises:
        UserError: the file that is there cannot be used.
    """

    def __init__(self, directory: Path | None, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._swept = 0.0
        # One connection, and worker threads: a transaction must not take in what another one says.
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._file = None if directory is None else directory / FILE
        self.blocks = directory is not None
        if self._file is not None and os.path.lexists(self._file):
            try:
                self._open()
            except StoreError as error:
                raise UserError(
                    f"state: {self._file} cannot be used: {error}; move it away to begin anew"
                ) from error

    def close(self) -> None:
        """Closes the file."""
        if self._db is not None:
            self._db.close()

    def _open(self) -> None:
        """Opens the file, or the memory in its place; made if there is none. Idempotent."""
        with self._lock:
            if self._db is not None:
                return
            import sqlite3

            place = ":memory:" if self._file is None else str(self._file)
            try:
                if self._file is not None:
                    # It shows what agents ask for. What sqlite puts beside it gets the same rights.
                    os.close(os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                db = sqlite3.connect(
                    place, timeout=5.0, check_same_thread=False, isolation_level=None
                )
            except (sqlite3.Error, OSError) as error:
                raise StoreError(str(error)) from error
            try:
                db.execute("PRAGMA journal_mode=WAL")
                db.execute("PRAGMA synchronous=FULL")
                db.execute(
                    "CREATE TABLE IF NOT EXISTS approvals (id TEXT PRIMARY KEY, digest TEXT NOT "
                    "NULL, state TEXT NOT NULL, expires REAL NOT NULL, body BLOB NOT NULL)"
                )
                db.execute("CREATE INDEX IF NOT EXISTS by_digest ON approvals (digest, state)")
                self._db = db
                self.sweep()
            except (sqlite3.Error, StoreError) as error:
                self._db = None
                db.close()
                raise StoreError(str(error)) from error

    def add(self, approval: Approval) -> None:
        """Keeps a new approval."""
        self._open()
        if self._clock() - self._swept > _SWEEP_SECONDS:
            self.sweep()
        row = approval.id, approval.digest, approval.state.value, approval.expires
        self._rows("INSERT INTO approvals VALUES (?, ?, ?, ?, ?)", (*row, _encode(approval)))

    def get(self, ident: str) -> Approval | None:
        """An approval by its id."""
        rows = self._rows("SELECT body FROM approvals WHERE id = ?", (ident,))
        return _decode(rows[0][0]) if rows else None

    def find(self, digest: str) -> list[Approval]:
        """Approvals for a call that are neither used nor over, the oldest first."""
        rows = self._rows(
            "SELECT body FROM approvals WHERE digest = ? AND expires > ? "
            "AND state IN ('pending', 'approved', 'denied') ORDER BY rowid",
            (digest, self._clock()),
        )
        return [_decode(body) for (body,) in rows]

    def pending(self) -> list[Approval]:
        """Approvals that wait for a decision, the oldest first."""
        rows = self._rows(
            "SELECT body FROM approvals WHERE state = 'pending' AND expires > ? ORDER BY rowid",
            (self._clock(),),
        )
        return [_decode(body) for (body,) in rows]

    def count(self) -> int:
        """How many wait for a decision."""
        rows = self._rows(
            "SELECT count(*) FROM approvals WHERE state = 'pending' AND expires > ?",
            (self._clock(),),
        )
        return int(rows[0][0]) if rows else 0

    def all(self) -> list[Approval]:
        """Every approval that is still known, the oldest first."""
        self.sweep()
        rows = self._rows("SELECT body FROM approvals ORDER BY rowid")
        return [_decode(body) for (body,) in rows]

    def change(self, ident: str, before: ApprovalState, **changes: Any) -> Approval | None:
        """Changes an approval, if it is still in a state; on the disk when this returns.

        Args:
            ident: its id.
            before: the state that it must be in.
            changes: new values of attributes, `state` among them.

        Returns:
            the approval as it is now, or None if it was in another state.
        """
        with self._transaction():
            found = self.get(ident)
            if found is None or found.state is not before:
                return None
            fresh = evolve(found, **changes)
            self._rows(
                "UPDATE approvals SET state = ?, body = ? WHERE id = ?",
                (fresh.state.value, _encode(fresh), ident),
            )
        return fresh

    def sweep(self) -> None:
        """Lets what is over expire, and forgets what is old."""
        now = self._swept = self._clock()
        rows = self._rows(
            "SELECT id, state FROM approvals WHERE state IN ('pending', 'approved') "
            "AND expires <= ?",
            (now,),
        )
        for ident, state in rows:
            self.change(ident, ApprovalState(state), state=ApprovalState.EXPIRED)
        self._rows("DELETE FROM approvals WHERE expires < ?", (now - _KEPT_SECONDS,))
        self._rows(
            "DELETE FROM approvals WHERE state NOT IN ('pending', 'approved') AND rowid NOT IN "
            "(SELECT rowid FROM approvals ORDER BY rowid DESC LIMIT ?)",
            (_MOST_KEPT,),
        )

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All or nothing; one that fails leaves nothing open that the next would stumble over."""
        with self._lock:
            self._rows("BEGIN IMMEDIATE")
            try:
                yield
                self._rows("COMMIT")
            finally:
                if self._db is not None and self._db.in_transaction:
                    self._rows("ROLLBACK")

    def _rows(self, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        db = self._db
        if db is None:
            return []  # nothing was ever kept
        try:
            with self._lock:
                return db.execute(statement, values).fetchall()
        except db.Error as error:
            raise StoreError(f"{FILE}: {error}") from error


def _encode(approval: Approval) -> bytes:
    return msgspec.json.encode(attrs.asdict(approval))


def _decode(body: bytes) -> Approval:
    value = msgspec.json.decode(body)
    return Approval(**{**value, "state": ApprovalState(value["state"])})
