"""The audit journal: what is written when, and what happens when it cannot be written.

Owns the order of records, the state of health, and the calls that are open. Records are written
before what they speak of is done: `accepted` before anything is sent, `sent` before a call is sent.
What has already happened (`ended`, notes) is kept until it can be written. Must not know who
decides on calls, nor what becomes of them when nothing can be recorded.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import trio
from attrs import evolve

from kars_router._version import __version__
from kars_router.audit import chain, checkpoints, records, recovery, storage
from kars_router.audit.sinks import QUEUE, Feed
from kars_router.audit.writer import Record, Writer
from kars_router.config.schema import Audit, Fsync
from kars_router.errors import JournalError
from kars_router.hookspecs import AuditSink
from kars_router.model import CallEnd, Decision, Fate, GovernedCall, Ruling
from kars_router.telemetry import Metrics, log

CHECKPOINT_SECONDS: Final = 60.0
RETRY_SECONDS: Final = 1.0


class Journal:
    """The journal of one router; use `open`.

    Attributes:
        recovered: calls of earlier processes that got their fate when this was opened.
    """

    def __init__(
        self,
        settings: Audit,
        *,
        place: Path,
        signer: checkpoints.Signer,
        found: recovery.Found,
        lock: int,
        metrics: Metrics | None,
        clock: Callable[[], float],
    ) -> None:
        self._settings = settings
        self._place = place
        self._signer = signer
        self._clerk = records.Clerk(signer.digest_key, settings.content)
        self._lock = lock
        self._metrics = (metrics or Metrics()).audit
        self._journal = found.journal or secrets.token_hex(16)
        boot = recovery.boot_id()
        self._run = chain.Run(
            secrets.token_hex(8), boot, str(settings.fsync), str(settings.on_failure)
        )
        self._closed = False
        self._feeds: tuple[Feed, ...] = ()
        self._backlog: deque[bytes] | None = deque(maxlen=QUEUE)
        self.recovered: Mapping[str, Fate] = found.fates(boot)
        self._writer = Writer(
            settings=settings,
            storage=storage.Storage(place),
            signer=signer,
            metrics=self._metrics,
            clock=clock,
            began=self._began,
            passed_on=self._pass_on,
            head=found.head,
            open=dict(found.calls),
            unsigned=found.unsigned,
        )
        self._metrics.healthy.set(1)

    @property
    def healthy(self) -> bool:
        """Whether the last record could be written."""
        return self._writer.healthy

    @property
    def error(self) -> str:
        """Why it could not, in one clause; "" if it could."""
        return self._writer.error

    @classmethod
    def open(
        cls,
        settings: Audit,
        *,
        state: Path | None,
        metrics: Metrics | None,
        clock: Callable[[], float] = time.time,
    ) -> Self:
        """Opens a journal, mends what a crash has left, and gives every open call its fate.

        Reads the whole current file, and blocks meanwhile: about a second for 64 MiB. On a full
        disk the journal opens all the same, and is not healthy.

        Args:
            settings: where and how; its paths are used as they are.
            state: the state directory, for the signing key; None if there is none.
            metrics: where records and failures are counted.
            clock: the wall clock, in seconds of Unix time.

        Raises:
            UserError: the file cannot be used at all: something else than a file stands there, it
                may not be read or written, another process writes to it, its chain is broken, or
                the signing key is unusable.
        """
        place = storage.settle_place(settings.path)
        lock = storage.lock(place)
        try:
            signer = checkpoints.load_signer(settings.signing_key, state)
            found = _prepare(place)
            journal = cls(
                settings,
                place=place,
                signer=signer,
                found=found,
                lock=lock,
                metrics=metrics,
                clock=clock,
            )
        except OSError as error:
            os.close(lock)
            raise storage.unusable(settings.path, error) from error
        except BaseException:
            os.close(lock)
            raise
        journal._begin(found)
        return journal

    def _begin(self, found: recovery.Found) -> None:
        if not self._signer.kept:
            log().warning("audit_key_not_kept", reason="neither state nor audit.signingKey is set")
        try:
            checkpoints.publish(self._signer, self._place.with_name(self._place.name + ".pub"))
        except OSError as error:
            log().warning("audit_key_not_published", error=str(error))
        fates, writer = self.recovered, self._writer
        if found.head.seq and not self._writer.storage.size:
            # Nobody who reads on from here knows which process the open calls belong to, so they
            # are listed by what is known of them.
            unknown = tuple((call, fate is Fate.UNKNOWN) for call, fate in fates.items())
            writer.keep("continued", self._began("restarted", unknown))
        if not found.head.seq:
            writer.keep("opened", self._began())
        if found.cut or fates:
            fields = records.encode(records.Recovered(cut=found.cut, calls=len(fates)))
            writer.keep("recovered", fields)
            log().info("audit_recovered", calls=len(fates), cut=found.cut)
        # Before `opened`: calls after that belong to this process. But that one begins a chain.
        for call, fate in fates.items():
            ended = records.Ended(call=call, fate=fate, code="interrupted", recovered=True)
            writer.keep("ended", records.encode(ended), call)
        if found.head.seq:
            writer.keep("opened", self._began())
        self.checkpoint()

    def _began(self, reason: str = "", unended: tuple[tuple[str, bool], ...] = ()) -> bytes:
        return records.encode(
            records.Began(
                format=records.FORMAT,
                journal=self._journal,
                key=self._signer.fingerprint,
                content=self._settings.content,
                checkpoint=self._settings.checkpoint,
                version=__version__,
                run=self._run,
                reason=reason,
                open=unended,
            )
        )

    # What the router has to say.

    def accepted(
        self,
        call: GovernedCall,
        decision: Decision,
        visible: Callable[[], bytes | None] | None = None,
    ) -> None:
        """Records a call and what was decided of it, before anything is done.

        Args:
            call: the call.
            decision: what all governors together said.
            visible: makes what may be shown of its params; None if that cannot be said. Only
                called if arguments are to be shown; without it they are shown as they are.

        Raises:
            JournalError: it could not be written.
        """
        self._insist("accepted", self._clerk.accepted(call, decision, visible), call.id)

    def held(self, call_id: str, approval: str) -> None:
        """Records that a call waits for a person; kept if it cannot be written.

        Args:
            call_id: the call.
            approval: identifier of what is to be decided.
        """
        fields = records.Held(call=call_id, approval=approval)
        self._offer(
            "held", lambda at: records.encode(msgspec.structs.replace(fields, at=at)), call_id
        )

    def decided(self, call_id: str, approval: str, ruling: Ruling, by: str) -> None:
        """Records what a person has decided of a held call; kept if it cannot be written.

        Args:
            call_id: the call.
            approval: identifier of what was decided.
            ruling: allow or deny.
            by: who or what has decided.
        """
        fields = records.Decided(
            call=call_id, approval=approval, ruling=str(ruling), by=records.safe(by)
        )
        self._offer(
            "decided", lambda at: records.encode(msgspec.structs.replace(fields, at=at)), call_id
        )

    def sent(self, call_id: str, generation: int) -> None:
        """Records that a call is about to be sent; again for each time that it is sent.

        Args:
            call_id: the call.
            generation: of the upstream session.

        Raises:
            JournalError: it could not be written.
        """
        fields = records.Sent(call=call_id, generation=generation)
        self._insist("sent", records.encode(fields), call_id)

    def ended(self, call_id: str, end: CallEnd) -> None:
        """Records a call's fate; kept if it cannot be written, without its content.

        Args:
            call_id: the call.
            end: how it ended.
        """
        self._offer("ended", lambda at: self._clerk.ended(call_id, end, at), call_id)

    def note(self, event: str, /, **fields: Any) -> None:
        """Records something else that happened; kept for some time if it cannot be written.

        Args:
            event: what it was, as a stable name.
            **fields: more about it; what is not JSON is written as text.
        """
        self._offer("note", lambda at: records.note(event, fields, at))

    def checkpoint(self) -> None:
        """Signs what is not signed yet; if that fails, it is tried again later."""
        with contextlib.suppress(JournalError):
            if not self._closed:
                self._writer.checkpoint()

    def close(self) -> None:
        """Ends the journal with a checkpoint, and gives the file back. Idempotent."""
        if self._closed:
            return
        fields = records.Closed(unended=len(self._writer.open))
        with contextlib.suppress(JournalError):
            self._writer.checkpoint(Record("closed", records.encode(fields)))
        self._closed = True
        self._writer.close()
        os.close(self._lock)

    async def run(
        self,
        sinks: Sequence[tuple[str, AuditSink]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Does what has to be done in time: the disk, checkpoints, sinks. Until cancelled.

        What is recorded before is passed to the sinks as well. On cancellation everything is signed
        once more, and the sinks get two seconds, all at the same time, to take what is left.

        Args:
            sinks: each with its name; closed here.
            task_status: told once records are passed on.
        """
        feeds = tuple(Feed(name, sink, self._metrics) for name, sink in sinks)
        backlog, self._backlog = self._backlog or (), None
        for line in backlog:
            for feed in feeds:
                feed.put(line)
        self._feeds = feeds
        async with trio.open_nursery() as nursery:
            for feed in feeds:
                nursery.start_soon(feed.run)
            try:
                async with trio.open_nursery() as regular:
                    regular.start_soon(self._force_regularly)
                    regular.start_soon(self._sign_regularly)
                    regular.start_soon(self._retry_regularly)
                    task_status.started()
            finally:
                self.checkpoint()
                self._feeds = ()
                for feed in feeds:
                    feed.finish()

    async def _force_regularly(self) -> None:
        writer = self._writer
        while self._settings.fsync is Fsync.INTERVAL:
            await trio.sleep(self._settings.fsync_interval)
            if not writer.dirty:
                continue
            writer.dirty = False
            try:
                await trio.to_thread.run_sync(writer.storage.forcing(), abandon_on_cancel=True)
            except OSError as error:
                writer.fail(error, forcing=True)

    async def _sign_regularly(self) -> None:
        while True:
            await trio.sleep(CHECKPOINT_SECONDS)
            self.checkpoint()

    async def _retry_regularly(self) -> None:
        while True:
            await trio.sleep(RETRY_SECONDS)
            if not self._closed and not self.healthy:
                with contextlib.suppress(JournalError):
                    self._writer.write()

    def _insist(self, event: records.Event, fields: bytes, call: str) -> None:
        if self._closed:
            raise JournalError("the audit journal is closed")
        self._writer.insist(event, fields, call)

    def _offer(self, event: records.Event, make: Callable[[str], bytes], call: str = "") -> None:
        if self._closed:
            log().error("audit_record_after_close", kind=event, call=call)
        else:
            self._writer.offer(event, make, call)

    def _pass_on(self, data: bytes) -> None:
        if not self._feeds and self._backlog is None:
            return
        for line in data.splitlines():
            if self._backlog is not None:
                self._backlog.append(line)
            for feed in self._feeds:
                feed.put(line)


def _prepare(place: Path) -> recovery.Found:
    """Reads what an earlier process has left, and cuts off what it had not written whole.

    Raises:
        UserError: the chain is broken.
        OSError: a file cannot be read or mended.
    """
    storage.Storage.fresh(place).unlink(missing_ok=True)
    found = recovery.find(place)
    if found.cut and found.file is not None:
        os.truncate(found.file, found.size)
        if not found.size:  # nothing is left of it, so the one before it counts
            return evolve(recovery.find(place), cut=found.cut)
    return found
