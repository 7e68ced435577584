"""Checks files of records: the chain, its signatures, where it begins and what it leaves open.

Reads files only, and changes nothing; a running router may write to them meanwhile.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import define, field, frozen
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from kars_router.audit import checkpoints
from kars_router.audit.chain import LONGEST, ZERO, BrokenError, Walk, is_torn
from kars_router.audit.storage import numbered, read_lines

_EXCERPT = 160
_ATTEMPTS = 5


@frozen(kw_only=True)
class Fault:
    """The first line that is wrong.

    Attributes:
        file: where.
        line: its number, from 1.
        reason: one clause.
        excerpt: its beginning; untrusted.
    """

    file: str
    line: int
    reason: str
    excerpt: str = ""


@define(kw_only=True)
class Report:
    """What a check has found.

    Attributes:
        files: the files that were read.
        fault: the first thing that is wrong; None if nothing is.
        records: records in order before that.
        first: number of the first one; more than 1 if what came before is not there.
        last: number of the last one.
        head: its hash.
        journal: identity of the chain.
        begins: why the first file was begun, if the chain did not begin there.
        checkpoints: how many there are.
        signed: number of the last record that a checkpoint covers.
        keys: fingerprints of the keys that signed.
        trusted: whether all of them were given as trusted.
        torn: bytes after the last whole line: one that was cut off while it was written.
        unended: calls without a fate: under way, or the router was killed and not started again.
    """

    files: list[str] = field(factory=list)
    fault: Fault | None = None
    records: int = 0
    first: int = 0
    last: int = 0
    head: str = ZERO
    journal: str = ""
    begins: str = ""
    checkpoints: int = 0
    signed: int = 0
    keys: list[str] = field(factory=list)
    trusted: bool = False
    torn: int = 0
    unended: list[str] = field(factory=list)


def with_older(path: Path) -> list[Path]:
    """A journal's files in their order: the older ones beside it, then itself.

    The last one is not there if the router was killed between putting one file aside and beginning
    the next.
    """
    older = numbered(path)
    return older if older and not path.exists() else [*older, path]


def verify(
    paths: Sequence[Path],
    *,
    trusted: Mapping[str, Ed25519PublicKey] | None = None,
    expected: str = "",
) -> Report:
    """Checks files as one chain.

    Args:
        paths: the files, in their order; at least one.
        trusted: keys that checkpoints must be signed by, by their fingerprints; None if any will
            do, so that only what the files say of themselves is checked.
        expected: hash of a record that must be there; known from elsewhere, it proves that nothing
            up to that record was taken away.

    Raises:
        OSError: a file cannot be read.
    """
    check = _Check(trusted=trusted, expected=expected)
    for number, path in enumerate(paths):
        check.report.files.append(str(path))
        if not check.read(path, last=number == len(paths) - 1):
            break
    return check.finish()


def verify_journal(
    path: Path,
    *,
    trusted: Mapping[str, Ed25519PublicKey] | None = None,
    expected: str = "",
) -> Report:
    """Checks a journal with its older files; a router may begin new ones meanwhile.

    Args:
        path: the current file.
        trusted: as for `verify`.
        expected: as for `verify`.

    Raises:
        OSError: a file cannot be read.
    """
    for _ in range(_ATTEMPTS):
        paths = with_older(path)
        # What was the current file may be an older one by the time that it is read.
        with contextlib.suppress(FileNotFoundError):
            report = verify(paths, trusted=trusted, expected=expected)
            if with_older(path) == paths:
                return report
    return verify(with_older(path), trusted=trusted, expected=expected)


@define(kw_only=True)
class _Check:
    trusted: Mapping[str, Ed25519PublicKey] | None
    expected: str
    report: Report = field(factory=Report)
    walk: Walk = field(factory=Walk)
    _place: tuple[str, int] = ("", 0)
    _seen: bool = False

    def read(self, path: Path, *, last: bool) -> bool:
        """Checks one file; False if something is wrong."""
        with path.open("rb") as file:
            for count, (line, whole) in enumerate(read_lines(file, LONGEST), 1):
                self._place = (str(path), count)
                try:
                    if whole:
                        self._take(line, begins=count == 1)
                    else:
                        self._take_rest(line, last=last)
                except BrokenError as error:
                    excerpt = line[:_EXCERPT].decode("utf-8", "replace")
                    self._fault(str(error), excerpt)
                    return False
        return True

    def finish(self) -> Report:
        """What was found."""
        report, head = self.report, self.walk.head
        if head is not None:
            report.first, report.last, report.head = self.walk.first, head.seq, head.hash
        report.journal = self.walk.journal
        report.unended = list(self.walk.calls)
        report.trusted = self.trusted is not None
        if report.fault is None and self.trusted is not None and not report.checkpoints:
            self._fault("there is no checkpoint, so that nothing is signed by a trusted key")
        if report.fault is None and self.expected and not self._seen:
            self._fault(f"the record with the hash {self.expected} is not there")
        return report

    def _take(self, line: bytes, *, begins: bool) -> None:
        report = self.report
        entry = self.walk.take(line, begins=begins)
        if begins and not report.records and entry.event == "continued":
            report.begins = entry.reason
        if entry.event == "checkpoint":
            key = checkpoints.check(line, self.trusted)
            report.checkpoints += 1
            report.signed = entry.seq
            if key not in report.keys:
                report.keys.append(key)
        report.records += 1
        if self.walk.head is not None and self.walk.head.hash == self.expected:
            self._seen = True

    def _take_rest(self, rest: bytes, *, last: bool) -> None:
        if len(rest) >= LONGEST or not is_torn(rest, self.walk.head):
            raise BrokenError("it does not end where it should")
        if not last:
            raise BrokenError("it is cut off, and the next file follows")
        self.report.torn = len(rest)

    def _fault(self, reason: str, excerpt: str = "") -> None:
        file, line = self._place
        self.report.fault = Fault(file=file, line=line, reason=reason, excerpt=excerpt)
