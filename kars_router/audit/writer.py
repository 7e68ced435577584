"""How records get into the file: framed, signed, all or nothing, and later if not now.

Owns the head of the chain, which calls are open in it, rotation, the state of health, and what is
kept while nothing can be written. Knows members of records only where they are about the file
itself.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from attrs import define, field, frozen

from kars_router.audit import chain, records
from kars_router.audit.checkpoints import Signer
from kars_router.audit.storage import Storage, Touched
from kars_router.config.schema import Audit, Fsync
from kars_router.errors import JournalError
from kars_router.telemetry import AuditMetrics, log

MOST_KEPT: Final = 4096  # records of calls that are open in the file, until they can be written
MOST_OTHERS: Final = 1024  # above that, notes and calls of which the file knows nothing are lost
_CHUNK: Final = 64
_PATIENCE: Final = 1 << 20  # bytes until a rotation that failed is tried again


class UnforcedError(JournalError):
    """A record was written, but the disk did not take it."""


@frozen
class Record:
    """A record without its place in the chain."""

    event: records.Event
    fields: bytes
    call: str = ""


@define(kw_only=True)
class Writer:
    """Writes records to a journal's file.

    Attributes:
        healthy: whether the last record could be written.
        error: why not, in one clause.
        open: calls without an end in the file, and whether they were sent.
        unsigned: records since the last checkpoint.
        dirty: whether something was written that the disk may not have.
        lost: records that were given up since records could last be written.
        kept: records that wait until they can be written.
    """

    settings: Audit
    storage: Storage
    signer: Signer
    metrics: AuditMetrics
    clock: Callable[[], float]
    began: Callable[[str, tuple[tuple[str, bool], ...]], bytes]
    passed_on: Callable[[bytes], None]
    head: chain.Head
    open: dict[str, bool]
    unsigned: int
    healthy: bool = True
    error: str = ""
    dirty: bool = False
    lost: int = 0
    kept: deque[Record] = field(factory=deque)
    _stamp: records.Stamp = field(factory=records.Stamp)
    _since: str = ""
    _unforced: bool = False
    _rotate_at: int = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._rotate_at = self.settings.rotate

    def insist(self, event: records.Event, fields: bytes, call: str) -> None:
        """Writes a record now.

        Raises:
            JournalError: it could not be written, and never will be.
        """
        try:
            self.write(Record(event, fields, call))
        except JournalError:
            self.lost += 1
            self.metrics.unwritten.inc()
            raise

    def offer(self, event: records.Event, make: Callable[[str], bytes], call: str = "") -> None:
        """Writes a record now, or when that is possible again. Never raises.

        Args:
            event: its kind.
            make: makes its members, given when it happened if that is not when it is written.
            call: the call that it is about.
        """
        try:
            self.write(Record(event, make(""), call))
        except UnforcedError:
            return
        except JournalError:
            self.metrics.unwritten.inc()
            if len(self.kept) < (MOST_KEPT if call in self.open else MOST_OTHERS):
                self.keep(event, make(self._now()), call)
            else:
                self.lost += 1

    def keep(self, event: records.Event, fields: bytes, call: str = "") -> None:
        """Has a record written before all that follows."""
        self.kept.append(Record(event, fields, call))

    def checkpoint(self, *before: Record) -> None:
        """Signs what is not signed yet, and what is given here.

        Raises:
            JournalError: it could not be written.
        """
        if before or self.unsigned or self.kept:
            self.write(*before, self._checkpoint())

    def write(self, *wanted: Record) -> None:
        """Writes what was kept, and then all of `wanted` or nothing of it.

        Raises:
            JournalError: it could not be written.
        """
        try:
            self._make_ready()
            while self.kept:
                chunk = tuple(islice(self.kept, _CHUNK))
                self._append(chunk)
                for _ in chunk:
                    self.kept.popleft()
            if not self.healthy:
                self._append((self._resumed(), *wanted))
                self._recover()
            elif wanted:
                self._append(wanted)
        except OSError as error:
            self.fail(error)
            raise JournalError(f"the audit journal cannot be written: {self.error}") from error
        if self.settings.fsync is Fsync.ALWAYS:
            self._force()

    def fail(self, error: OSError, *, forcing: bool = False) -> None:
        """Notes that writing failed, or that forcing what was written to the disk did."""
        self._unforced = self._unforced or forcing
        self.error = error.strerror or str(error)
        if self.healthy:
            self.healthy = False
            self._since = self._now()
            self.metrics.healthy.set(0)
            log().error("audit_unwritable", path=str(self.storage.path), error=self.error)

    def _force(self) -> None:
        try:
            self.storage.force()
        except OSError as error:
            self.fail(error, forcing=True)
            raise UnforcedError(f"the disk does not take the journal: {self.error}") from error

    def _recover(self) -> None:
        log().info("audit_writable_again", path=str(self.storage.path), lost=self.lost)
        self.healthy, self.error, self.lost = True, "", 0
        self.metrics.healthy.set(1)

    def _resumed(self) -> Record:
        fields = records.Resumed(since=self._since, error=self.error, lost=self.lost)
        return Record("resumed", records.encode(fields))

    def _checkpoint(self) -> Record:
        fields = records.Checkpoint(key=self.signer.fingerprint, public=self.signer.public)
        return Record("checkpoint", records.encode(fields))

    def _make_ready(self) -> None:
        store = self.storage
        store.mend()
        if self._unforced:
            store.force()
            self._unforced = False
        touched = store.touched()
        if touched is not None:
            self._go_on_elsewhere(touched)
        elif store.size >= self._rotate_at and len(self.open) <= records.MOST_OPEN:
            try:
                if self.unsigned:
                    self._append((self._checkpoint(),))
                self._next_file("rotated")
            except OSError as error:
                self._rotate_at = store.size + _PATIENCE
                log().error("audit_not_rotated", path=str(store.path), error=str(error))

    def _go_on_elsewhere(self, touched: Touched) -> None:
        # What stands there is evidence, whatever it is: it is put aside, and the chain goes on in
        # a new file from what this process knows, so that what is missing can be seen.
        log().error("audit_file_touched", path=str(self.storage.path), how=str(touched))
        self.metrics.touched.labels(str(touched)).inc()
        self._next_file(str(touched))

    def _next_file(self, reason: str) -> None:
        unended = tuple(islice(self.open.items(), records.MOST_OPEN))
        first = Record("continued", self.began(reason, unended))
        line, head = self._frame(first, self.head)
        forced = self.settings.fsync is not Fsync.NEVER
        self.storage.next_file(line, force=forced)
        self._advance(line, head, (first,))
        self._rotate_at = self.settings.rotate
        if self.settings.keep is not None:
            self.storage.prune(self.settings.keep)

    def _append(self, batch: tuple[Record, ...]) -> None:
        due = self.unsigned + len(batch) >= self.settings.checkpoint
        if due and batch[-1].event != "checkpoint":
            batch = (*batch, self._checkpoint())
        head = self.head
        lines = []
        for record in batch:
            line, head = self._frame(record, head)
            lines.append(line)
        data = lines[0] if len(lines) == 1 else b"".join(lines)
        self.storage.append(data)
        self._advance(data, head, batch)

    def _frame(self, record: Record, head: chain.Head) -> tuple[bytes, chain.Head]:
        body = chain.begin(head, self._now(), record.event, record.fields)
        if record.event == "checkpoint":
            body = self.signer.sign(body)
        return chain.finish(head, body)

    def _advance(self, data: bytes, head: chain.Head, batch: tuple[Record, ...]) -> None:
        self.head = head
        self.dirty = True
        self.metrics.records.inc(len(batch))
        for record in batch:
            match record.event:
                case "accepted":
                    self.open[record.call] = False
                case "sent":
                    self.open[record.call] = True
                case "ended":
                    self.open.pop(record.call, None)
                case _:
                    pass
            self.unsigned = 0 if record.event == "checkpoint" else self.unsigned + 1
        self.passed_on(data)

    def _now(self) -> str:
        return self._stamp(self.clock())

    def close(self) -> None:
        """Has the disk take everything, and closes the file; what cannot be done is logged."""
        with contextlib.suppress(OSError):
            if self.settings.fsync is not Fsync.NEVER:
                self.storage.force()
        if self.kept or self.lost:
            log().error("audit_records_lost", records=len(self.kept) + self.lost)
        self.storage.close()
