"""What is made of a journal that nobody had closed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from unit.audit.audit_kit import (
    ALLOW,
    DONE,
    call,
    checked,
    events,
    fates,
    lines,
    opened,
    rows,
    whole_call,
)

from kars_router.audit import Journal, recovery
from kars_router.audit.storage import numbered
from kars_router.config.schema import Fsync, OnAuditFailure
from kars_router.errors import UserError
from kars_router.model import Fate


def killed(journal: Journal) -> None:
    """Leaves a journal as SIGKILL does: nothing more is written, the lock is gone."""
    os.close(journal._lock)
    journal._writer.storage.close()


def test_calls_without_an_end_get_the_fate_that_is_known(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    whole_call(journal, "done")
    journal.accepted(call("accepted"), ALLOW)
    journal.accepted(call("sent"), ALLOW)
    journal.sent("sent", 1)
    journal.accepted(call("held"), ALLOW)
    journal.held("held", "ap1")
    killed(journal)
    assert checked(tmp_path).unended == ["accepted", "sent", "held"]
    again = opened(tmp_path)
    assert again.recovered == {
        "accepted": Fate.NOT_EXECUTED,
        "sent": Fate.UNKNOWN,
        "held": Fate.NOT_EXECUTED,
    }
    again.close()
    report = checked(tmp_path)
    assert (report.fault, report.unended) == (None, [])
    assert fates(tmp_path) == {"done": "executed", **again.recovered}
    late = [row for row in rows(tmp_path) if row.get("recovered")]
    assert {row["code"] for row in late} == {"interrupted"}
    found = [row for row in rows(tmp_path) if row["event"] == "recovered"]
    assert [(row["cut"], row["calls"]) for row in found] == [(0, 3)]
    # Once is enough.
    third = opened(tmp_path)
    assert third.recovered == {}
    third.close()


@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_torn_line_is_cut_off_and_that_is_recorded(tmp_path: Path, before: int) -> None:
    journal = opened(tmp_path, checkpoint=1000)
    for number in range(before):
        journal.note(f"n{number}")
    journal.accepted(call("c1"), ALLOW)
    killed(journal)
    path = tmp_path / "audit.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for size in range(1, len(last), 23):
        path.write_bytes(whole[: -len(last)] + last[:size])
        assert checked(tmp_path).torn == size
        again = opened(tmp_path, checkpoint=1000)
        # Whoever wrote that line was never told that it was written.
        assert again.recovered == {}
        again.close()
        report = checked(tmp_path)
        assert (report.fault, report.torn) == (None, 0)
        assert [row["cut"] for row in rows(tmp_path) if row["event"] == "recovered"] == [size]


@pytest.mark.parametrize("rest", [b"\x1b[31m\xff", b'{"seq":1,"time":"', b"{}", b"\0 \0"])
def test_what_is_not_the_beginning_of_the_next_record_was_not_torn(
    tmp_path: Path, rest: bytes
) -> None:
    journal = opened(tmp_path)
    whole_call(journal, "c1")
    journal.close()
    path = tmp_path / "audit.jsonl"
    before = path.read_bytes() + rest
    path.write_bytes(before)
    fault = checked(tmp_path).fault
    assert fault is not None
    assert fault.line == before.count(b"\n") + 1
    # It is evidence of something, so it is not removed.
    with pytest.raises(UserError, match=f"broken at line {fault.line}"):
        opened(tmp_path)
    assert path.read_bytes() == before


def test_zeros_at_the_end_are_what_a_machine_leaves_that_was_switched_off(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    killed(journal)
    path = tmp_path / "audit.jsonl"
    whole = path.read_bytes()
    last = whole.splitlines(keepends=True)[-1]
    for left in (whole + bytes(1000), whole[: 30 - len(last)] + bytes(500)):
        path.write_bytes(left)
        assert (checked(tmp_path).fault, checked(tmp_path).torn >= 500) == (None, True)
        opened(tmp_path).close()
        assert (checked(tmp_path).fault, checked(tmp_path).torn) == (None, 0)


def test_a_first_line_that_is_torn_begins_a_new_chain(tmp_path: Path) -> None:
    opened(tmp_path).close()
    path = tmp_path / "audit.jsonl"
    first = path.read_bytes().splitlines()[0]
    path.write_bytes(first[:50])
    opened(tmp_path).close()
    report = checked(tmp_path)
    assert (report.fault, report.first) == (None, 1)
    assert events(tmp_path)[:3] == ["opened", "recovered", "checkpoint"]


def test_a_file_with_nothing_but_a_torn_line_is_not_the_end_of_the_chain(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotate=4096)
    journal.accepted(call("c1"), ALLOW)
    journal.close()
    path = tmp_path / "audit.jsonl"
    path.rename(tmp_path / "audit.jsonl.000001")
    path.write_bytes(b'{"seq":')
    again = opened(tmp_path, rotate=4096)
    assert again.recovered == {"c1": Fate.NOT_EXECUTED}
    again.close()
    assert (checked(tmp_path).fault, checked(tmp_path).first) == (None, 1)


@pytest.mark.parametrize(
    "harm",
    [
        lambda found: [found[0], *found[2:]],
        lambda found: [found[0].replace(b"2023", b"2024"), *found[1:]],
        lambda found: [*found[:-1], found[-1] + b"\n\n"],
        lambda found: [*found[:-1], found[-1] + b" "],
    ],
)
def test_a_broken_chain_is_not_written_to(
    tmp_path: Path, harm: Callable[[list[bytes]], list[bytes]]
) -> None:
    journal = opened(tmp_path)
    whole_call(journal, "c1")
    journal.close()
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b"\n".join(harm(lines(tmp_path))) + b"")
    before = path.read_bytes()
    with pytest.raises(
        UserError, match=r"audit\.path: the chain in .* is broken at line \d+: .*move"
    ):
        opened(tmp_path)
    assert path.read_bytes() == before
    # The lock is given back, so that the advice can be followed.
    path.rename(tmp_path / "kept")
    opened(tmp_path).close()


def test_where_calls_may_pass_unrecorded_nothing_is_known_not_to_be_executed(
    tmp_path: Path,
) -> None:
    journal = opened(tmp_path, on_failure=OnAuditFailure.ALLOW)
    journal.accepted(call("c1"), ALLOW)
    killed(journal)
    again = opened(tmp_path)
    assert again.recovered == {"c1": Fate.UNKNOWN}
    again.accepted(call("c2"), ALLOW)
    killed(again)
    third = opened(tmp_path)
    assert third.recovered == {"c2": Fate.NOT_EXECUTED}
    third.close()


@pytest.mark.parametrize(
    ("fsync", "boot", "fate"),
    [
        (Fsync.ALWAYS, "other", Fate.NOT_EXECUTED),
        (Fsync.ALWAYS, "same", Fate.NOT_EXECUTED),
        (Fsync.INTERVAL, "same", Fate.NOT_EXECUTED),
        (Fsync.INTERVAL, "other", Fate.UNKNOWN),
        (Fsync.INTERVAL, "", Fate.UNKNOWN),
        (Fsync.NEVER, "other", Fate.UNKNOWN),
    ],
)
def test_a_machine_that_was_restarted_may_have_lost_the_newest_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fsync: Fsync, boot: str, fate: Fate
) -> None:
    monkeypatch.setattr(recovery, "boot_id", lambda: "same")
    journal = opened(tmp_path, fsync=fsync)
    journal.accepted(call("c1"), ALLOW)
    killed(journal)
    monkeypatch.setattr(recovery, "boot_id", lambda: boot)
    again = opened(tmp_path, fsync=fsync)
    assert again.recovered == {"c1": fate}
    again.close()


def test_killed_between_two_files(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotate=4096)
    journal.accepted(call("c1"), ALLOW)
    journal.accepted(call("c2"), ALLOW)
    journal.sent("c2", 1)
    killed(journal)
    path = tmp_path / "audit.jsonl"
    path.rename(tmp_path / "audit.jsonl.000001")
    (tmp_path / "audit.jsonl.new").write_bytes(b"half a li")
    assert checked(tmp_path).unended == ["c1", "c2"]
    again = opened(tmp_path, rotate=4096)
    assert again.recovered == {"c1": Fate.NOT_EXECUTED, "c2": Fate.UNKNOWN}
    again.close()
    report = checked(tmp_path)
    assert (report.fault, report.first, report.unended) == (None, 1, [])
    first = msgspec.json.decode(path.read_bytes().splitlines()[0])
    assert (first["event"], first["reason"]) == ("continued", "restarted")
    assert first["open"] == [["c1", False], ["c2", True]]
    assert not (tmp_path / "audit.jsonl.new").exists()
    assert numbered(path) == [tmp_path / "audit.jsonl.000001"]


def test_a_call_that_ended_late_is_not_open(tmp_path: Path) -> None:
    journal = opened(tmp_path)
    journal.accepted(call("c1"), ALLOW)
    journal.sent("c1", 1)
    journal.sent("c1", 2)
    journal.ended("c1", DONE)
    killed(journal)
    again = opened(tmp_path)
    assert again.recovered == {}
    again.close()
