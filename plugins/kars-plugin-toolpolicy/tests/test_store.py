from __future__ import annotations

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kars_plugin_toolpolicy.concurrency import Key
from kars_plugin_toolpolicy.store import MOST_MINTED, Counter, Store

from kars_router.errors import PluginError

LATER = 1e12
ONE: Key = ("rate", "p", "r", "", "", "")
TWO: Key = ("rate", "p", "r", 'a"\x1f\n', "s", "")


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        os.sched_yield()


def rows(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM counters").fetchone()[0])
    finally:
        connection.close()


def test_what_was_counted_is_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state" / "limits.sqlite3"
    store = Store.open(path)
    store.put(ONE, Counter(1.5, 2.5, LATER), 0)
    store.put(TWO, Counter(3, 4, LATER, minted=True), 0)
    store.close()
    store.close()
    again = Store.open(path)
    assert again.get(ONE) == Counter(1.5, 2.5, LATER)
    assert again.get(TWO) == Counter(3, 4, LATER, minted=True)
    again.close()


def test_a_store_of_nowhere_keeps_nothing_and_needs_no_file() -> None:
    store = Store.open(None)
    store.put(ONE, Counter(1, 2, LATER), 0)
    assert store.get(ONE) == Counter(1, 2, LATER)
    store.save()
    store.close()


def test_changes_are_written_without_anybody_asking(tmp_path: Path) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path, delay=0.01)
    store.put(ONE, Counter(1, 2, LATER), 0)
    wait_until(lambda: rows(path) == 1)
    store.close()


CHILD = """
import sys, time
from pathlib import Path
from kars_plugin_toolpolicy.store import Counter, Store
store = Store.open(Path(sys.argv[1]))
count = 0
while True:
    count += 1
    store.put(("k",), Counter(count, 0, 1e12), 0)
    print(count, time.monotonic(), flush=True)
"""


def test_a_kill_loses_at_most_the_last_second(tmp_path: Path) -> None:
    path = tmp_path / "limits.sqlite3"
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        begun = time.monotonic()
        counted = [(0, begun)]
        for line in child.stdout:
            count, when = line.split()
            counted.append((int(count), float(when)))
            if counted[-1][1] > counted[1][1] + 2:
                break
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()
        counted += [(int(c), float(w)) for c, w in map(str.split, rest.splitlines()[:-1])]
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()
    store = Store.open(path)
    kept = store.get(("k",))
    store.close()
    killed = counted[-1][1]
    assert kept is not None
    assert kept.value >= max(count for count, when in counted if when < killed - 1)


@pytest.mark.parametrize(
    "content",
    [
        b"no database at all, but long enough to be read as the header of one" * 20,
        None,  # a database with pages overwritten
        "INSERT INTO counters VALUES (x'00', 1, 2, 3, 0)",
        "DROP TABLE counters; CREATE TABLE counters (other TEXT)",
    ],
)
def test_a_damaged_file_is_moved_aside_and_said_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes | str | None
) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path)
    for number in range(500):
        store.put((f"key {number}" * 10,), Counter(number, 0, LATER), 0)
    store.close()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is None:
        whole = path.read_bytes()
        path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    else:
        connection = sqlite3.connect(path)
        connection.executescript(content)
        connection.close()
    with caplog.at_level(logging.ERROR):
        store = Store.open(path)
    assert len(store) == 0
    assert "limits.sqlite3.damaged" in caplog.text
    assert (tmp_path / "limits.sqlite3.damaged").exists()
    store.put(ONE, Counter(1, 2, LATER), 0)
    store.close()
    again = Store.open(path)
    assert again.get(ONE) == Counter(1, 2, LATER)
    again.close()


def test_a_file_that_is_damaged_while_it_is_open_is_written_anew_from_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path, delay=60)
    for number in range(300):
        store.put((f"key {number}" * 10,), Counter(number, 0, LATER), 0)
    store.save()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    (tmp_path / "limits.sqlite3-wal").write_bytes(b"")
    for number in range(300, 2000):  # more than it holds in its own memory
        store.put((f"key {number}" * 100,), Counter(number, 0, LATER), 0)
    store.put(("key 0" * 10,), Counter(7, 0, LATER), 0)
    store.save()
    assert store.failure == ""
    store.close()
    again = Store.open(path)
    assert again.get(("key 0" * 10,)) == Counter(7, 0, LATER)
    assert len(again) == 2000
    again.close()


def test_a_place_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match="file/limits"):
        Store.open(tmp_path / "file" / "limits.sqlite3")
    (tmp_path / "limits.sqlite3").mkdir()
    with pytest.raises(PluginError, match=r"limits\.sqlite3"):
        Store.open(tmp_path / "limits.sqlite3")


def test_what_cannot_be_written_is_said_once_and_written_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path, delay=60)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._connection.execute("PRAGMA busy_timeout=1")  # type: ignore[union-attr]
    store.put(ONE, Counter(1, 2, LATER), 0)
    store.save()
    store.save()
    assert "locked" in store.failure
    assert caplog.text.count("cannot be written") == 1
    assert store.get(ONE) == Counter(1, 2, LATER)
    other.execute("ROLLBACK")
    other.close()
    store.save()
    assert store.failure == ""
    store.close()
    assert rows(path) == 1


def test_agents_come_and_go_and_memory_does_not_grow(tmp_path: Path) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path)
    kept = ("day-calls", "p", "b", "", "", "")
    store.put(kept, Counter(1, 0, LATER), 0)
    most = 0
    for number in range(100_000):
        store.put((f"session:{number}",), Counter(1, 0, LATER, minted=True), 0)
        most = max(most, len(store))
    assert most <= MOST_MINTED + 2100
    # What is not an agent's to multiply is never given up for want of room.
    assert store.get(kept) is not None
    assert store.get(("session:99999",)) is not None
    assert store.get(("session:0",)) is None
    store.close()
    assert rows(path) == len(store)


def test_what_has_expired_is_forgotten_also_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path)
    for number in range(10_000):
        store.put((str(number),), Counter(1, 0, number + 10), number)
    assert len(store) < 2100
    store.close()
    assert rows(path) < 2100


@pytest.mark.parametrize("value", ["9e999", "'much'", "x'00'"])
def test_a_counter_that_is_no_number_is_damage(
    tmp_path: Path, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path)
    store.put(ONE, Counter(1, 2, LATER), 0)
    store.close()
    with sqlite3.connect(path) as other:
        other.execute(f"UPDATE counters SET at = {value}")
    other.close()
    again = Store.open(path)
    assert again.get(ONE) is None
    assert "is damaged" in caplog.text
    again.close()


def test_writing_that_works_again_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "limits.sqlite3"
    store = Store.open(path, delay=60)
    assert store._connection is not None
    # What a full disk does to SQLite: no page more than there are.
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages}")
    for number in range(2000):
        store.put((f"{number}" * 10,), Counter(1, 0, LATER), 0)
    store.save()
    assert "full" in store.failure
    store._connection.execute("PRAGMA max_page_count=100000")
    store.save()
    assert caplog.text.count("written again") == 1
    store.close()
    assert rows(path) == 2000
