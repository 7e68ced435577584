"""What an earlier process has left: where the chain stands, what is torn, which calls have no fate.

Reads and judges; what is then written is the journal's business.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from attrs import field, frozen

from kars_router.audit import storage
from kars_router.audit.chain import LONGEST, BrokenError, Head, Run, Walk, is_torn
from kars_router.errors import UserError
from kars_router.model import Fate

_BOOT = Path("/proc/sys/kernel/random/boot_id")


@frozen(kw_only=True)
class Found:
    """The newest file of a journal.

    Attributes:
        file: where it is; None if there is none with a record in it.
        head: the last record.
        journal: identity of the chain; "" if there is none.
        run: the process that wrote it.
        calls: calls without an end, and whether they were sent.
        size: bytes of its whole lines.
        cut: bytes after them: a line that was cut off while it was written.
        unsigned: records since the last checkpoint.
    """

    file: Path | None = None
    head: Head = field(factory=Head)
    journal: str = ""
    run: Run = field(factory=Run)
    calls: Mapping[str, bool] = field(factory=dict)
    size: int = 0
    cut: int = 0
    unsigned: int = 0

    def fates(self, boot: str) -> dict[str, Fate]:
        """What is known of the calls without an end; nothing better than that.

        Args:
            boot: the machine's current start, from `boot_id`.
        """
        return {call: self._fate(boot, sent=sent) for call, sent in self.calls.items()}

    def _fate(self, boot: str, *, sent: bool) -> Fate:
        # `sent` is written before a call is sent. It can be missing all the same where calls may
        # pass unrecorded, or where the machine has lost what it had not yet put on the disk.
        lost = self.run.fsync != "always" and (not boot or self.run.boot != boot)
        if sent or lost or self.run.on_failure != "deny":
            return Fate.UNKNOWN
        return Fate.NOT_EXECUTED


def boot_id() -> str:
    """What changes with each start of the machine; "" if it does not say."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _BOOT.read_text("ascii").strip()
    return ""


def find(path: Path) -> Found:
    """Reads the newest file of a journal with a record in it.

    Args:
        path: the journal's place. An older file is read if nothing stands there, as it is when a
            process is killed between putting one file aside and beginning the next.

    Raises:
        UserError: the chain in it is broken.
        OSError: it cannot be read.
    """
    for place in (path, *reversed(storage.numbered(path))):
        with contextlib.suppress(FileNotFoundError):
            found = _scan(place)
            if found.size or found.cut:
                return found
    return Found()


def _scan(path: Path) -> Found:
    walk, size, cut, signed = Walk(), 0, 0, 0
    with path.open("rb") as file:
        for count, (line, whole) in enumerate(storage.read_lines(file, LONGEST), 1):
            try:
                if not whole:
                    if len(line) >= LONGEST or not is_torn(line, walk.head):
                        raise BrokenError("it does not end where it should")
                    cut = len(line)
                    break
                entry = walk.take(line, begins=count == 1)
            except BrokenError as error:
                raise UserError(
                    f"audit.path: the chain in {path} is broken at line {count}: {error}; look at "
                    "it with `kars audit verify`, and move the file away to begin a new chain"
                ) from None
            size += len(line) + 1
            if entry.event == "checkpoint":
                signed = entry.seq
    head = walk.head or Head()
    return Found(
        file=path,
        head=head,
        journal=walk.journal,
        run=walk.run,
        calls=walk.calls,
        size=size,
        cut=cut,
        unsigned=head.seq - max(signed, walk.first - 1),
    )
