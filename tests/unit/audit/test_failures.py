"""Disks that are full, and files that somebody else changes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from unit.audit.audit_kit import (
    ALLOW,
    DONE,
    NOT_SENT,
    call,
    checked,
    events,
    fates,
    lines,
    opened,
    rows,
    whole_call,
)

from kars_router.audit import Journal, JournalError
from kars_router.audit.storage import Storage, numbered
from kars_router.audit.verify import verify
from kars_router.config.schema import AuditContent, Fsync


@contextmanager
def full_disk(journal: Journal) -> Iterator[None]:
    """Has every write fail for want of space: the descriptor leads to /dev/full meanwhile."""
    fd = journal._writer.storage._fd
    aside = os.dup(fd)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, fd)
    os.close(full)
    try:
        yield
    finally:
        os.dup2(aside, fd)
        os.close(aside)


def test_a_full_disk_is_an_error_until_there_is_space(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    with full_disk(journal):
        with pytest.raises(JournalError, match="No space left on device"):
            journal.sent("c1", 1)
        assert (journal.healthy, journal.error) == (False, "No space left on device")
        journal.ended("c1", NOT_SENT)
        with pytest.raises(JournalError):
            journal.accepted(call("c2"), ALLOW)
        journal.note("something")
    before = len(lines(tmp_path))
    journal.accepted(call("c3"), ALLOW)
    assert (journal.healthy, journal.error) == (True, "")
    new = rows(tmp_path)[before:]
    # First what has happened meanwhile, with the time when it did.
    assert [row["event"] for row in new] == ["ended", "note", "resumed", "accepted"]
    assert (new[0]["fate"], new[0]["at"]) == ("not_executed", new[0]["time"])
    assert (new[2]["error"], new[2]["lost"]) == ("No space left on device", 2)
    journal.ended("c3", DONE)
    journal.close()
    report = checked(tmp_path)
    assert (report.fault, report.unended) == (None, [])


def test_a_fate_is_kept_without_its_content(tmp_path: Path) -> None:
    journal = opened(tmp_path, content=AuditContent.ALL)
    journal.accepted(call("c1"), ALLOW)
    with full_disk(journal):
        journal.ended("c1", DONE)
    journal.close()
    (ended,) = [row for row in rows(tmp_path) if row["event"] == "ended"]
    assert sorted(ended["result"]) == ["bytes", "digest"]


def test_what_cannot_be_cut_off_at_once_is_cut_off_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, left = os.write, [10]

    def takes_a_part(fd: int, data: bytes) -> int:
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data[: left.pop()])

    def refuse(_: int, __: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(tmp_path)
    before = (tmp_path / "audit.jsonl").stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", takes_a_part)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(JournalError):
            journal.accepted(call("c1"), ALLOW)
        assert (tmp_path / "audit.jsonl").stat().st_size == before + 10
        with pytest.raises(JournalError, match="Input/output error"):
            journal.accepted(call("c2"), ALLOW)
    whole_call(journal, "c3")
    journal.close()
    report = checked(tmp_path)
    assert (report.fault, report.unended) == (None, [])
    assert numbered(tmp_path / "audit.jsonl") == []


def test_what_is_kept_is_bounded_and_what_is_lost_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kars_router.audit.writer.MOST_KEPT", 100)
    monkeypatch.setattr("kars_router.audit.writer.MOST_OTHERS", 10)
    journal = opened(tmp_path)
    for number in range(120):
        journal.accepted(call(f"c{number}"), ALLOW)
    with full_disk(journal):
        for number in range(20):
            journal.note(f"n{number}")
        # Calls that were denied because nothing can be recorded must not push out the others.
        for number in range(20):
            journal.ended(f"denied{number}", NOT_SENT)
        for number in range(120):
            journal.ended(f"c{number}", DONE)
    journal.close()
    found = events(tmp_path)
    assert (found.count("note"), found.count("ended")) == (10, 90)
    (resumed,) = [row for row in rows(tmp_path) if row["event"] == "resumed"]
    assert resumed["lost"] == 10 + 20 + 30
    report = checked(tmp_path)
    assert (report.fault, len(report.unended)) == (None, 30)


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Storage, __: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    os.close(journal._lock)
    journal._writer.storage.close()
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "append", refuse)
        again = opened(tmp_path)
        assert not again.healthy
        with pytest.raises(JournalError):
            again.accepted(call("c2"), ALLOW)
    again.accepted(call("c3"), ALLOW)
    again.ended("c3", DONE)
    again.close()
    assert fates(tmp_path) == {"c1": "not_executed", "c3": "executed"}
    assert checked(tmp_path).fault is None


def test_a_disk_that_does_not_take_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Storage) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(tmp_path, fsync=Fsync.ALWAYS)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "force", refuse)
        with pytest.raises(JournalError, match="Input/output error"):
            journal.accepted(call("c1"), ALLOW)
        journal.ended("c1", NOT_SENT)
    assert journal.error == "Input/output error"
    journal.accepted(call("c2"), ALLOW)
    assert journal.healthy
    journal.ended("c2", DONE)
    journal.close()
    # In the file once, although its writer was told that it might not last.
    accepted = [row["call"] for row in rows(tmp_path) if row["event"] == "accepted"]
    assert accepted == ["c1", "c2"]
    assert fates(tmp_path) == {"c1": "not_executed", "c2": "executed"}
    assert checked(tmp_path).fault is None


def test_a_fate_that_the_disk_may_not_have_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Storage) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    journal = opened(tmp_path, fsync=Fsync.ALWAYS)
    journal.accepted(call("c1"), ALLOW)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "force", refuse)
        journal.ended("c1", DONE)
        assert journal.error == "Input/output error"
    journal.close()
    assert fates(tmp_path) == {"c1": "executed"}
    assert events(tmp_path)[-3:] == ["resumed", "closed", "checkpoint"]


_LIMITED = """
import resource, sys
from pathlib import Path
from unit.audit.audit_kit import ALLOW, DONE, call, opened
from kars_router.audit import JournalError


def fill(directory, limit):
    directory.mkdir()
    journal = opened(directory)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    number = 0
    try:
        while True:
            journal.accepted(call(f"c{number}"), ALLOW)
            journal.sent(f"c{number}", 1)
            journal.ended(f"c{number}", DONE)
            number += 1
    except JournalError:
        pass
    size = (directory / "audit.jsonl").stat().st_size
    assert limit - 1000 < size <= limit, (limit, size)
    assert not journal.healthy and journal.error == "File too large", journal.error
    journal.ended(f"c{number}", DONE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    journal.accepted(call("after"), ALLOW)
    assert journal.healthy
    journal.ended("after", DONE)
    journal.close()


for limit in map(int, sys.argv[2:]):
    fill(Path(sys.argv[1]) / str(limit), limit)
"""


def test_a_write_that_is_taken_in_part_leaves_whole_lines(tmp_path: Path) -> None:
    limits = [str(limit) for limit in range(6000, 6500, 30)]
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path), *limits],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for limit in limits:
        report = checked(tmp_path / limit)
        assert (report.fault, report.torn, report.unended) == (None, 0, [])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_real_disk_that_gets_full(small_disk: Path) -> None:
    journal = opened(small_disk, rotate=16384)
    (small_disk / "ballast").write_bytes(bytes(20_000))
    number = 0
    with pytest.raises(JournalError, match="No space left"):  # noqa: PT012 - it is one of many
        for number in range(1000):
            journal.accepted(call(f"c{number}"), ALLOW)
            journal.sent(f"c{number}", 1)
            journal.ended(f"c{number}", DONE)
    assert number > 10
    assert journal.error == "No space left on device"
    journal.ended(f"c{number}", NOT_SENT)
    assert checked(small_disk).fault is None
    (small_disk / "ballast").unlink()
    journal.accepted(call("after"), ALLOW)
    assert journal.healthy
    journal.ended("after", DONE)
    journal.close()
    report = checked(small_disk)
    assert (report.fault, report.torn, report.unended) == (None, 0, [])


def test_a_file_that_is_taken_away_is_begun_anew(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    path = tmp_path / "audit.jsonl"
    path.rename(tmp_path / "elsewhere")
    journal.sent("c1", 1)
    assert journal.healthy
    journal.ended("c1", DONE)
    journal.close()
    report = checked(tmp_path)
    assert (report.fault, report.begins, report.first) == (None, "missing", 4)
    # Nothing is lost if it was only moved.
    assert verify([tmp_path / "elsewhere", path]).fault is None


def test_a_file_that_is_replaced_is_put_aside(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    path = tmp_path / "audit.jsonl"
    other = tmp_path / "other"
    other.write_bytes(b"something else\n")
    other.rename(path)
    journal.ended("c1", DONE)
    journal.close()
    assert numbered(path)[0].read_bytes() == b"something else\n"
    assert verify([path]).begins == "replaced"
    fault = checked(tmp_path).fault
    assert fault is not None
    assert (fault.file, fault.line) == (str(numbered(path)[0]), 1)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_file_that_is_shortened_shows_what_is_missing(tmp_path: Path, kept: int) -> None:
    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    journal.sent("c1", 1)
    path = tmp_path / "audit.jsonl"
    whole = path.read_bytes().splitlines(keepends=True)
    os.truncate(path, sum(len(line) for line in whole[:kept]))
    journal.note("something")
    assert journal.healthy
    journal.close()
    first = msgspec.json.decode(path.read_bytes().splitlines()[0])
    assert (first["event"], first["reason"], first["seq"]) == ("continued", "altered", 5)
    assert first["open"] == [["c1", True]]
    report = checked(tmp_path)
    if kept:
        assert report.fault is not None
        assert (report.fault.file, report.fault.line) == (str(path), 1)
        assert report.fault.reason == f"it has number 5 where {kept + 1} should stand"
    else:
        assert (report.first, report.begins) == (5, "altered")
    # The chain goes on after a restart, and the call gets a fate.
    again = opened(tmp_path)
    assert list(again.recovered) == ["c1"]
    again.close()


def test_a_line_that_somebody_else_adds(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    path = tmp_path / "audit.jsonl"
    with path.open("ab") as file:
        file.write(b'{"seq":3}\n')
    whole_call(journal, "c1")
    journal.close()
    assert verify([path]).begins == "altered"
    fault = checked(tmp_path).fault
    assert fault is not None
    assert (fault.file, fault.line) == (str(numbered(path)[0]), 3)


def test_a_rotation_that_fails_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    journal = opened(tmp_path, rotate=4096)
    with monkeypatch.context() as patch:
        patch.setattr(Storage, "next_file", refuse)
        for number in range(10):
            whole_call(journal, f"c{number}")
    assert journal.healthy
    assert numbered(tmp_path / "audit.jsonl") == []
    journal.close()
    report = checked(tmp_path)
    assert (report.fault, report.unended) == (None, [])
