"""What verifying notices: every change of a byte, every line removed, swapped or added."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.audit.audit_kit import ALLOW, call, checked, lines, opened, whole_call

from kars_router.audit.chain import Head, Walk, begin, finish
from kars_router.audit.checkpoints import load_signer
from kars_router.audit.verify import Report, verify
from kars_router.config.schema import AuditContent


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The lines of a journal with a bit of everything, line feeds included."""
    directory = tmp_path_factory.mktemp("whole")
    journal = opened(directory, content=AuditContent.ALL, checkpoint=6)
    for number in range(4):
        whole_call(journal, f"c{number}")
    journal.accepted(call("h"), ALLOW)
    journal.note("something", number=1)
    journal.close()
    return (directory / "audit.jsonl").read_bytes().splitlines(keepends=True)


def report_on(data: bytes, expected: str = "") -> Report:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "audit.jsonl"
        path.write_bytes(data)
        return verify([path], expected=expected)


def first_bad(parts: Sequence[bytes]) -> int | None:
    fault = report_on(b"".join(parts)).fault
    return None if fault is None else fault.line


def test_the_sample_is_whole(whole: list[bytes]) -> None:
    assert first_bad(whole) is None
    assert len(whole) > 15


@given(data=st.data())
def test_a_changed_byte_is_found_in_its_line(whole: list[bytes], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(whole) - 1), label="line")
    line = bytearray(whole[number])
    place = data.draw(st.integers(0, len(line) - 1), label="place")
    line[place] ^= data.draw(st.integers(1, 255), label="change")
    changed = [*whole[:number], bytes(line), *whole[number + 1 :]]
    assert first_bad(changed) == number + 1


def test_every_line_end_counts(whole: list[bytes]) -> None:
    for number, line in enumerate(whole):
        for end in (b"\r", b"\x0b", b" ", b"}"):
            changed = [*whole[:number], line[:-1] + end, *whole[number + 1 :]]
            assert first_bad(changed) == number + 1


def test_a_removed_line_is_found_where_it_stood(whole: list[bytes]) -> None:
    for number in range(len(whole) - 1):
        assert first_bad([*whole[:number], *whole[number + 1 :]]) == number + 1


def test_lines_removed_at_the_end_are_known_by_a_hash_from_elsewhere(whole: list[bytes]) -> None:
    head = report_on(b"".join(whole)).head
    assert report_on(b"".join(whole), expected=head).fault is None
    for number in range(1, len(whole)):
        shorter = b"".join(whole[:number])
        # The chain alone cannot know; docs/audit.md says so.
        assert report_on(shorter).fault is None
        fault = report_on(shorter, expected=head).fault
        assert fault is not None
        assert fault.reason == f"the record with the hash {head} is not there"


@given(data=st.data())
def test_swapped_lines_are_found_at_the_first_of_them(
    whole: list[bytes], data: st.DataObject
) -> None:
    one, other = sorted(
        data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=2, max_size=2, unique=True))
    )
    changed = [*whole]
    changed[one], changed[other] = changed[other], changed[one]
    assert first_bad(changed) == one + 1


@given(data=st.data(), extra=st.binary(max_size=40).map(lambda text: text + b"\n"))
def test_an_added_line_is_found(whole: list[bytes], data: st.DataObject, extra: bytes) -> None:
    number = data.draw(st.integers(0, len(whole)), label="before")
    added = data.draw(st.sampled_from([*whole, extra]), label="added")
    changed = [*whole[:number], added, *whole[number:]]
    # A copy put next to its original cannot be told from it.
    twin = number < len(whole) and added == whole[number]
    assert first_bad(changed) == number + 1 + twin


def test_a_line_of_another_chain_is_found_though_it_has_the_right_number(
    whole: list[bytes], tmp_path: Path
) -> None:
    journal = opened(tmp_path)
    for number in range(8):
        journal.note(f"n{number}")
    journal.close()
    other = [line + b"\n" for line in lines(tmp_path)]
    for number in range(1, 8):
        assert first_bad([*whole[:number], other[number], *whole[number + 1 :]]) == number + 1


def test_a_last_line_that_was_cut_off_is_no_fault(whole: list[bytes]) -> None:
    before, last = b"".join(whole[:-1]), whole[-1]
    for size in range(1, len(last)):
        report = report_on(before + last[:size])
        assert (report.fault, report.torn, report.records) == (None, size, len(whole) - 1)


def test_only_the_last_file_may_end_in_a_torn_line(tmp_path: Path) -> None:
    journal = opened(tmp_path, rotate=4096)
    for number in range(20):
        whole_call(journal, f"c{number}")
    journal.close()
    older = tmp_path / "audit.jsonl.000001"
    older.write_bytes(older.read_bytes() + b'{"seq":')
    fault = checked(tmp_path).fault
    assert fault is not None
    assert (fault.file, fault.line) == (str(older), len(older.read_bytes().splitlines()))


def rewritten(whole: list[bytes], number: int, old: bytes, new: bytes) -> list[bytes]:
    """The lines after somebody has changed one and computed all hashes anew."""
    found: list[bytes] = []
    head = Head()
    for index, line in enumerate(whole):
        body = line[: line.rindex(b',"hash":"')]
        body = body.replace(old, new) if index == number else body
        start = body.index(b'"prev":"') + 8
        body = body[:start] + head.hash.encode() + body[start + 64 :]
        made, head = finish(head, body)
        found.append(made)
    return found


def test_a_chain_that_was_computed_anew_fails_at_the_next_signature(whole: list[bytes]) -> None:
    number = next(i for i, line in enumerate(whole) if b'"fate":"executed"' in line)
    forged = rewritten(whole, number, b'"fate":"executed"', b'"fate":"unknown"')
    signed = [i for i, line in enumerate(whole) if b'"event":"checkpoint"' in line and i > number]
    assert first_bad(rewritten(whole, number, b"", b"")) is None
    assert first_bad(forged) == signed[0] + 1


def test_a_signature_by_another_key_is_only_good_for_those_who_trust_it(tmp_path: Path) -> None:
    signer = load_signer(None, tmp_path)
    head, found = Head(), []
    body = begin(head, "t", "opened", b"{}")
    line, head = finish(head, body)
    found.append(line)
    fields = b'{"key":"%b","public":"%b"}' % (b"0" * 64, signer.public.encode())
    line, head = finish(head, signer.sign(begin(head, "t", "checkpoint", fields)))
    found.append(line)
    fault = report_on(b"".join(found)).fault
    assert fault is not None
    assert "does not have the fingerprint" in fault.reason


def test_a_file_without_any_signature_is_not_trusted(tmp_path: Path) -> None:
    line, _ = finish(Head(), begin(Head(), "t", "opened", b"{}"))
    path = tmp_path / "audit.jsonl"
    path.write_bytes(line)
    assert verify([path]).fault is None
    fault = verify([path], trusted={}).fault
    assert fault is not None
    assert "nothing is signed" in fault.reason


def test_a_walk_takes_nothing_that_does_not_follow(whole: list[bytes]) -> None:
    walk = Walk()
    for number, line in enumerate(whole):
        walk.take(line[:-1], begins=number == 0)
    assert walk.head is not None
    assert walk.head.seq == len(whole)
    assert walk.calls == {"h": False}


def test_an_endless_line_is_refused_without_reading_it_all(tmp_path: Path) -> None:
    fault = report_on(b"x" * (3 << 20)).fault
    assert fault is not None
    assert (fault.line, len(fault.excerpt)) == (1, 160)


def test_no_records_are_no_fault() -> None:
    report = report_on(b"")
    assert (report.fault, report.records, report.first, report.last) == (None, 0, 0, 0)


def test_all_lines_are_compact_and_in_one_spelling(whole: list[bytes], tmp_path: Path) -> None:
    for number, line in enumerate(whole, 1):
        assert line.startswith(b'{"seq":%d,"time":"2023-' % number)
        assert line.isascii()
    assert lines(tmp_path) == []
