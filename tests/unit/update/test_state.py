"""What is remembered: written whole, read with distrust."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.update import state
from kars_router.update.state import DAY, FILE, Seen
from kars_router.update.versions import is_version

NOW = 2_000_000_000.0
SEEN = Seen(1_999_999_000, 1_999_999_001, 1_999_999_002, "1.2.3", "What is new", "/some/where")
WRITTEN = {
    "attemptedAt": 1_999_999_000,
    "checkedAt": 1_999_999_001,
    "notifiedAt": 1_999_999_002,
    "latest": "1.2.3",
    "summary": "What is new",
    "prefix": "/some/where",
}


def put(place: Path, value: Any) -> Path:
    path = place / FILE
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    path.write_bytes(text)
    path.chmod(0o600)
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        state.write(tmp_path, SEEN)
    finally:
        os.umask(old)
    assert json.loads((tmp_path / FILE).read_text("utf-8")) == WRITTEN
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    assert state.read(tmp_path, NOW) == SEEN
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


def test_nothing_is_there(tmp_path: Path) -> None:
    assert state.read(tmp_path, NOW) == Seen()
    assert state.read(tmp_path / "absent", NOW) == Seen()
    assert state.read(Path("with\0nul"), NOW) == Seen()


def changed(**values: Any) -> dict[str, Any]:
    return {**WRITTEN, **values}


HOSTILE = {
    "empty": b"",
    "half": json.dumps(WRITTEN).encode()[:50],
    "no JSON": b"\x7fELF",
    "no UTF-8": b'{"latest": "\xff\xfe"}',
    "a list": [WRITTEN],
    "null": None,
    "deep": b"[" * 16_000,
    "a large number": b'{"attemptedAt": ' + b"9" * 5000 + b"}",
    "huge": b" " * 20_000 + json.dumps(WRITTEN).encode(),
    "a member missing": {key: WRITTEN[key] for key in list(WRITTEN)[:-1]},
    "a time as text": changed(attemptedAt="1999999000"),
    "a time that is true": changed(notifiedAt=True),
    "a broken time": changed(checkedAt=1.5),
    "a time before all": changed(attemptedAt=-1),
    "a time to come": changed(attemptedAt=int(NOW) + DAY),
    "never again": changed(notifiedAt=10**30),
    "no number": b'{"attemptedAt": NaN}',
    "a version with an escape": changed(latest="1.0\x1b[2J"),
    "a version that is an option": changed(latest="--yes"),
    "a version that is a path": changed(latest="../../x"),
    "a version as a number": changed(latest=1.2),
    "a local version": changed(latest="1.0+x"),
    "a summary as a list": changed(summary=["x"]),
    "no prefix": changed(prefix=None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_was_not_written_here_is_ignored_and_replaced(name: str, tmp_path: Path) -> None:
    put(tmp_path, HOSTILE[name])
    assert state.read(tmp_path, NOW) == Seen()
    state.write(tmp_path, SEEN)
    assert state.read(tmp_path, NOW) == SEEN


def test_a_summary_is_made_harmless(tmp_path: Path) -> None:
    put(tmp_path, changed(summary="\x1b]0;title\x07\N{RIGHT-TO-LEFT OVERRIDE}" + "x" * 1000))
    summary = state.read(tmp_path, NOW).summary
    assert summary.startswith("]0;titlex")
    assert len(summary) == 100
    assert summary.isprintable()


def test_a_little_ahead_is_a_clock_that_was_set_back(tmp_path: Path) -> None:
    put(tmp_path, WRITTEN)
    assert state.read(tmp_path, SEEN.notified_at - 100) == SEEN
    assert state.read(tmp_path, SEEN.notified_at - 1000) == Seen()


# What is no file of ours


def a_link(path: Path) -> None:
    target = path.with_name("target")
    target.write_text(json.dumps(WRITTEN), "utf-8")
    path.symlink_to(target)


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("/not/there")


def a_link_to_itself(path: Path) -> None:
    path.symlink_to(path)


def a_link_to_a_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def writable_by_others(path: Path) -> None:
    put(path.parent, WRITTEN)
    path.chmod(0o666)


def writable_by_the_group(path: Path) -> None:
    put(path.parent, WRITTEN)
    path.chmod(0o620)


def somebody_elses(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    put(path.parent, WRITTEN)
    os.chown(path, 12_345, 12_345)


@pytest.mark.parametrize(
    "make",
    [
        a_link,
        a_link_to_nothing,
        a_link_to_itself,
        a_link_to_a_device,
        os.mkfifo,
        a_socket,
        writable_by_others,
        writable_by_the_group,
        somebody_elses,
    ],
)
def test_what_stands_in_its_place_is_not_read_and_is_replaced(
    make: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / FILE)
    assert state.read(tmp_path, NOW) == Seen()
    state.write(tmp_path, SEEN)
    assert stat.S_ISREG((tmp_path / FILE).lstat().st_mode)
    assert state.read(tmp_path, NOW) == SEEN
    if (tmp_path / "target").exists():
        assert json.loads((tmp_path / "target").read_text("utf-8")) == WRITTEN


def test_a_directory_in_its_place_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    assert state.read(tmp_path, NOW) == Seen()
    with pytest.raises(OSError, match="directory"):
        state.write(tmp_path, SEEN)


def test_a_disk_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    state.write(tmp_path, SEEN)
    monkeypatch.setattr(os, "read", fail)
    assert state.read(tmp_path, NOW) == Seen()


def test_what_an_ended_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / f".{FILE}.new").symlink_to(tmp_path / "target")
    state.write(tmp_path, SEEN)
    assert state.read(tmp_path, NOW) == SEEN
    assert [each.name for each in tmp_path.iterdir()] == [FILE]


@given(
    st.dictionaries(
        st.sampled_from([*WRITTEN, "other"]),
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("1.0"),
    )
)
def test_whatever_is_there_comes_out_fit_for_use(value: dict[str, Any]) -> None:
    seen = state._parse(json.dumps({**WRITTEN, **value}).encode(), NOW)
    assert seen.latest == "" or is_version(seen.latest)
    assert seen.summary.isprintable()
    assert all(0 <= each <= NOW + 300 for each in seen[:3])


# Where it is, when something is due


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        ({"HOME": "/home/x"}, "/home/x/.kars"),
        ({"HOME": "/home/x", "KARS_STATE_DIR": "/var/x"}, "/var/x"),
        ({"HOME": "/home/x", "KARS_STATE_DIR": ""}, "/home/x/.kars"),
        ({}, str(Path.home() / ".kars")),
    ],
)
def test_where_it_is(environ: dict[str, str], place: str) -> None:
    assert state.directory(environ) == Path(place)


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)
    place = state.directory({})
    assert state.read(place, NOW) == Seen()
    with pytest.raises(OSError, match="directory"), state.hold(place, wait=False):
        pytest.fail("held")


def test_once_a_day() -> None:
    assert Seen().wants_check(NOW)
    assert Seen().may_notify(NOW)
    assert not SEEN.wants_check(SEEN.attempted_at + DAY - 1)
    assert SEEN.wants_check(SEEN.attempted_at + DAY)
    assert not SEEN.may_notify(SEEN.notified_at + DAY - 1)
    assert SEEN.may_notify(SEEN.notified_at + DAY)


# Holding it


def test_the_directory_is_made_for_this_user_alone(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    with state.hold(place, wait=False):
        state.write(place, SEEN)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert stat.S_IMODE((place / "update-check.lock").stat().st_mode) == 0o600


def test_one_at_a_time(tmp_path: Path) -> None:
    with (
        state.hold(tmp_path, wait=False),
        pytest.raises(BlockingIOError),
        state.hold(tmp_path, wait=False),
    ):
        pytest.fail("held twice")
    with state.hold(tmp_path, wait=True):
        pass


@pytest.mark.parametrize("make", [a_link, a_link_to_nothing, a_link_to_itself, os.mkfifo])
def test_what_stands_in_the_place_of_the_lock_is_no_obstacle(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "update-check.lock")
    with (
        state.hold(tmp_path, wait=False),
        pytest.raises(BlockingIOError),
        state.hold(tmp_path, wait=False),
    ):
        pytest.fail("held twice")
    if (tmp_path / "target").exists():
        assert json.loads((tmp_path / "target").read_text("utf-8")) == WRITTEN


def test_a_directory_that_cannot_be_had(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(OSError, match=r"exists|directory"),
        state.hold(tmp_path / "file", wait=False),
    ):
        pytest.fail("held")
    (tmp_path / "update-check.lock").mkdir()
    with pytest.raises(OSError, match="directory"), state.hold(tmp_path, wait=False):
        pytest.fail("held")


def test_a_process_that_dies_holds_it_no_longer(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys\n"
        "from kars_router.update import state\n"
        "with state.hold(pathlib.Path(sys.argv[1]), wait=True):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), state.hold(tmp_path, wait=False):
            pytest.fail("held twice")
        child.kill()
        child.wait()
        with state.hold(tmp_path, wait=False):
            pass


def test_reading_is_quick(tmp_path: Path) -> None:
    state.write(tmp_path, SEEN)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        state.read(tmp_path, NOW)
        best = min(best, time.perf_counter() - began)
    assert best < 0.002
