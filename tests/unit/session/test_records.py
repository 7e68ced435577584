from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from attrs import define
from hypothesis import given
from hypothesis import strategies as st

from kars_router.session.ended import new_names
from kars_router.session.records import FILE, Records

DAY = 86_400.0


@define
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def reopened(directory: Path, clock: Clock | None = None) -> Records:
    return Records(directory, DAY, clock or Clock())


def test_what_was_noted_is_there_after_a_restart(tmp_path: Path) -> None:
    records = reopened(tmp_path)
    records.note_use("a", "s", 3)
    records.note_use("b", "s", 2)
    records.note_use("a", "t", 1)
    records.note_end("b")
    assert records.used("b", "s") is None
    records.close()
    again = reopened(tmp_path)
    assert (again.used("a", "s"), again.used("a", "t"), again.used("b", "s")) == (3, 1, None)
    assert (again.latest("s"), again.latest("t"), again.latest("x")) == (3, 1, 0)
    assert again.has_ended("b")
    assert not again.has_ended("a")
    again.close()


def test_a_repeated_note_writes_nothing(tmp_path: Path) -> None:
    records = reopened(tmp_path)
    for _ in range(5):
        records.note_use("a", "s", 1)
    assert len((tmp_path / FILE).read_bytes().splitlines()) == 1
    records.close()


def test_a_torn_last_line_costs_that_line_only(tmp_path: Path) -> None:
    records = reopened(tmp_path)
    records.note_use("a", "s", 1)
    records.note_use("b", "s", 1)
    records.close()
    whole = (tmp_path / FILE).read_bytes()
    for size in range(len(whole)):
        (tmp_path / FILE).write_bytes(whole[:size])
        again = reopened(tmp_path)
        assert again.used("b", "s") in (None, 1)
        assert again.used("a", "s") == (1 if size >= len(whole) // 2 - 1 else None)
        again.note_use("c", "s", 1)
        again.close()
        last = reopened(tmp_path)
        assert last.used("c", "s") == 1
        last.close()


def test_records_are_forgotten_after_the_lifetime(tmp_path: Path) -> None:
    clock = Clock()
    records = Records(tmp_path, DAY, clock)
    records.note_use("a", "s", 1)
    records.note_end("old")
    clock.now += DAY + 1
    records.note_end("new")
    assert not records.has_ended("old")
    assert records.has_ended("new")
    records.close()
    again = Records(tmp_path, DAY, clock)
    assert again.used("a", "s") is None
    again.close()
    assert len((tmp_path / FILE).read_bytes().splitlines()) == 1


ROW = st.fixed_dictionaries(
    {},
    optional={
        "agent": st.sampled_from(["a", "", 5, None]),
        "server": st.sampled_from(["s", 5, None]),
        "generation": st.sampled_from([1, -1, 2**70, 1.5, True, "1", None]),
        "ended": st.sampled_from([True, False, 1, "yes"]),
        "at": st.sampled_from([1_000_000, 1e300, -1, True, "now", None]),
    },
)
LINE = st.binary(max_size=40) | ROW.map(msgspec.json.encode) | st.just(b"[" * 5000)


@given(st.lists(LINE, max_size=8))
def test_a_hostile_file_brings_nothing_down(lines: list[bytes]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder)
        (path / FILE).write_bytes(b"\n".join(lines))
        records = reopened(path)
        assert isinstance(records.latest("s"), int)
        before = records.used("a", "s")
        assert before is None or type(before) is int
        records.note_use("z", "s", 7)
        records.close()
        again = reopened(path)
        assert again.used("z", "s") == 7
        again.close()


@pytest.mark.parametrize("obstacle", ["file in the way", "directory in the way"])
def test_without_a_usable_directory_it_is_kept_in_memory(tmp_path: Path, obstacle: str) -> None:
    directory = tmp_path / "state"
    if obstacle == "file in the way":
        directory.write_bytes(b"")
    else:
        (directory / FILE).mkdir(parents=True)
    records = reopened(directory)
    records.note_use("a", "s", 1)
    records.note_end("b")
    assert records.used("a", "s") == 1
    assert records.has_ended("b")
    records.close()


def test_a_full_disk_is_survived(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    records = reopened(tmp_path)
    handle = records._file
    assert handle is not None
    import os

    with full.open("wb", buffering=0) as device:
        os.dup2(device.fileno(), handle)
    records.note_use("a", "s", 1)
    assert records.used("a", "s") == 1
    records.close()


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    records = reopened(tmp_path / "new" / "state")
    records.note_use("a", "s", 1)
    assert (tmp_path / "new" / "state" / FILE).stat().st_mode & 0o077 == 0
    assert (tmp_path / "new" / "state").stat().st_mode & 0o077 == 0
    records.close()


def test_a_use_that_came_to_nothing_is_taken_back() -> None:
    records = Records(None, DAY, Clock())
    records.note_use("a", "s", 1)
    records.forget_use("a", "s")
    records.forget_use("never", "s")
    assert records.used("a", "s") is None


def test_a_generation_is_a_number(tmp_path: Path) -> None:
    row = {"agent": "a", "server": "s", "generation": True, "at": 1_000_000}
    (tmp_path / FILE).write_bytes(msgspec.json.encode(row))
    records = reopened(tmp_path)
    assert records.used("a", "s") is None
    records.close()


def test_the_file_is_written_anew_when_most_of_it_is_dead(tmp_path: Path) -> None:
    records = reopened(tmp_path)
    records.note_use("kept", "s", 5)
    largest = 0
    for generation in range(60_000):
        records.note_use("a", "s", generation)
        if generation % 1000 == 0:
            largest = max(largest, (tmp_path / FILE).stat().st_size)
    assert 900_000 < largest <= (1 << 20) + 200
    records.note_end("late")
    records.close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    again = reopened(tmp_path)
    assert (again.used("kept", "s"), again.used("a", "s")) == (5, 59_999)
    assert again.has_ended("late")
    again.close()


def test_what_lives_may_take_its_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewritten = 0
    rewrite = Records._rewrite

    def counted(self: Records, path: Path) -> None:
        nonlocal rewritten
        rewritten += 1
        rewrite(self, path)

    monkeypatch.setattr(Records, "_rewrite", counted)
    records = reopened(tmp_path)
    for number in range(60_000):
        records.note_use(f"agent-{number}", "s", 1)
    assert rewritten <= 3  # at the start, at 1 MiB, at 4 MiB
    records.close()


def test_a_file_that_cannot_be_written_anew_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = reopened(tmp_path)
    tries = 0

    def refuse(*_: object) -> None:
        nonlocal tries
        tries += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    for generation in range(30_000):
        records.note_use("a", "s", generation)
    assert tries == 1
    records.close()
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    monkeypatch.undo()
    again = reopened(tmp_path)
    assert again.used("a", "s") == 29_999
    again.close()


def test_of_names_that_are_no_numbers_only_so_many_are_kept(tmp_path: Path) -> None:
    records = reopened(tmp_path)
    for number in range(100_010):
        records.note_end(f"{number}")
    kept = [records.has_ended(f"{number}") for number in (0, 9, 10, 100_009)]
    assert kept == [False, False, True, True]
    records.close()
    again = reopened(tmp_path)
    assert [again.has_ended(f"{number}") for number in (0, 9, 10, 100_009)] == kept
    again.close()


def test_every_ended_session_of_a_long_life_is_remembered_in_next_to_no_room(
    tmp_path: Path,
) -> None:
    records = reopened(tmp_path)
    names = new_names()
    some = [next(names) for _ in range(200_000)]
    living = {some[0], some[7], some[150_000]}
    for name in some:
        if name not in living:
            records.note_end(name)
    records.close()
    again = reopened(tmp_path)  # which writes the file anew
    assert (tmp_path / FILE).stat().st_size < 500
    assert [name for name in some if not again.has_ended(name)] == sorted(living)
    again.note_end(some[7])
    again.close()
    last = reopened(tmp_path)
    assert last.has_ended(some[7])
    assert not last.has_ended(some[0])
    last.close()


@pytest.mark.parametrize(
    "row",
    [
        '{"series": 5, "ended": [[0, 1]], "at": 1e12}',
        '{"series": "abcdefabcdef", "ended": [[0]], "at": 1e12}',
        '{"series": "abcdefabcdef", "ended": [[1, 0]], "at": 1e12}',
        '{"series": "abcdefabcdef", "ended": [["0", 1]], "at": 1e12}',
        '{"series": "abcdefabcdef", "ended": [[0, 1]]}',
        '{"series": "abcdefabcdef", "ended": 7, "at": 1e12}',
    ],
)
def test_ranges_that_make_no_sense_are_left_out(tmp_path: Path, row: str) -> None:
    (tmp_path / FILE).write_text(row + "\n")
    records = reopened(tmp_path)
    assert not records.has_ended("abcdefabcdef00000000")
    records.close()
