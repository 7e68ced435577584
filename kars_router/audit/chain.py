"""The chain: how a record becomes a line, and how lines are checked against each other.

A line is a JSON object in UTF-8. Its last member is `hash`, the SHA-256 of all bytes of the line
before the comma in front of it; `prev`, among those bytes, is the `hash` of the line before. So the
canonical form is the line itself, and nobody has to spell JSON in the same way twice. Pure: knows
neither files nor clocks nor keys. The format is in docs/audit.md.
"""

from __future__ import annotations

import hashlib
from typing import Final

import msgspec
from attrs import define, field, frozen

from kars_router.errors import KarsError

ZERO: Final = "0" * 64
LONGEST: Final = 1 << 20  # bytes of a line; what makes a longer one is cut before it gets here
_HASH: Final = b',"hash":"'
_END: Final = b'"}'
_TAIL: Final = len(_HASH) + 64 + len(_END)


class BrokenError(KarsError):
    """A line that does not belong where it stands; the message is one clause."""


@frozen
class Head:
    """Where a chain has got to.

    Attributes:
        seq: number of the last record; 0 before the first one.
        hash: its hash; zeros before the first one.
    """

    seq: int = 0
    hash: str = ZERO


def begin(head: Head, time: str, event: str, fields: bytes) -> bytes:
    """The bytes of a line that are hashed, or signed.

    Args:
        head: the record before it.
        time: RFC 3339, UTC.
        event: what is recorded.
        fields: its other members, as a JSON object without line feeds.
    """
    comma = b"," if len(fields) > 2 else b""
    return b'{"seq":%d,"time":"%b","event":"%b","prev":"%b"%b%b' % (
        head.seq + 1,
        time.encode(),
        event.encode(),
        head.hash.encode(),
        comma,
        fields[1:-1],
    )


def finish(head: Head, body: bytes) -> tuple[bytes, Head]:
    """The whole line that `begin` began, its line feed included, and the head after it."""
    digest = hashlib.sha256(body).hexdigest()
    return b"%b%b%b%b\n" % (body, _HASH, digest.encode(), _END), Head(head.seq + 1, digest)


def body_of(line: bytes) -> bytes:
    """The hashed bytes of a line without its line feed; empty if there can be none."""
    return line[:-_TAIL]


def is_whole(line: bytes) -> bool:
    """Whether a line without its line feed ends in its own right hash."""
    tail = line[-_TAIL:]
    return (
        len(line) > _TAIL
        and tail.startswith(_HASH)
        and tail.endswith(_END)
        and tail[len(_HASH) : -len(_END)] == hashlib.sha256(line[:-_TAIL]).hexdigest().encode()
    )


def is_torn(rest: bytes, head: Head | None) -> bool:
    """Whether what follows the last line feed of a file was merely cut off while being written.

    Then it begins as the next record does. A whole line that is followed by something else than a
    line feed was not cut off.

    Args:
        rest: what follows. A machine that was switched off can leave zeros at its end.
        head: the record before it; None if there is none.
    """
    begun = rest.rstrip(b"\0")
    start = b'{"seq":' if head is None else b'{"seq":%d,"time":"' % (head.seq + 1)
    return not is_whole(rest[:-1]) and (begun.startswith(start) or start.startswith(begun))


class Run(msgspec.Struct, rename="camel", frozen=True):
    """What `opened` and `continued` say of the process that wrote what follows.

    Attributes:
        run: unique for each opening of the journal.
        boot: changes when the machine is started; "" if it cannot be known.
        fsync: the fsync policy.
        on_failure: what becomes of calls that cannot be recorded.
    """

    run: str = ""
    boot: str = ""
    fsync: str = ""
    on_failure: str = ""


class Entry(msgspec.Struct, rename="camel", frozen=True):
    """What checking needs of a record.

    Attributes:
        seq: its number.
        time: when it was written.
        event: its kind.
        prev: hash of the record before it.
        call: the call that it is about.
        journal: the chain's identity, in `opened` and `continued`.
        reason: why a file was begun, in `continued`.
        open: calls without an end and whether they were sent, in `continued`.
        run: the process, in `opened` and `continued`.
    """

    seq: int
    time: str
    event: str
    prev: str
    call: str = ""
    journal: str = ""
    reason: str = ""
    open: tuple[tuple[str, bool], ...] = ()
    run: Run | None = None


_NOBODY: Final = Run()
_decoder = msgspec.json.Decoder(Entry)


def read(line: bytes) -> Entry:
    """The members of a line that checking needs.

    Args:
        line: without its line feed.

    Raises:
        BrokenError: it is not a record, or its hash is not that of its bytes.
    """
    if not is_whole(line):
        raise BrokenError("its bytes do not have the hash that it ends in")
    try:
        return _decoder.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BrokenError(f"it is not a record: {error}") from None


@define
class Walk:
    """Follows a chain from record to record.

    Attributes:
        head: the last record that was taken; None before the first one.
        first: number of the first one.
        journal: identity of the chain.
        run: the process that wrote last.
        calls: calls without an end so far, and whether they were sent.
    """

    head: Head | None = None
    first: int = 0
    journal: str = ""
    run: Run = _NOBODY
    calls: dict[str, bool] = field(factory=dict)

    def take(self, line: bytes, *, begins: bool) -> Entry:
        """Takes the next line.

        Args:
            line: without its line feed.
            begins: whether it is the first one of a file.

        Raises:
            BrokenError: it does not follow; nothing was taken.
        """
        entry = read(line)
        if begins and not (
            entry.event == "continued" or (entry.event == "opened" and entry.seq == 1)
        ):
            raise BrokenError("a file begins with `continued`, or with `opened` and number 1")
        self._check_place(entry)
        if self.head is None:
            self.first = entry.seq
        self.head = Head(entry.seq, line[-_TAIL + len(_HASH) : -len(_END)].decode())
        self._note(entry)
        return entry

    def _check_place(self, entry: Entry) -> None:
        head = self.head
        if head is None:
            if entry.seq < 1 or (entry.seq == 1) != (entry.prev == ZERO):
                raise BrokenError(f"number {entry.seq} does not go with its `prev`")
            return
        if entry.seq != head.seq + 1:
            raise BrokenError(f"it has number {entry.seq} where {head.seq + 1} should stand")
        if entry.prev != head.hash:
            raise BrokenError(f"its `prev` is not the hash of record {head.seq}")

    def _note(self, entry: Entry) -> None:
        match entry.event:
            case "opened" | "continued":
                self.run = entry.run or _NOBODY
                self.journal = entry.journal
                if entry.event == "continued":
                    self.calls = dict(entry.open)
            case "accepted":
                self.calls[entry.call] = False
            case "sent":
                # Where calls may pass unrecorded, this can be the first that is heard of one.
                self.calls[entry.call] = True
            case "ended":
                self.calls.pop(entry.call, None)
            case _:
                pass
