"""The process that looks: what it finds, and that nothing makes it last."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from index_kit import Index, Raw, serve_index, serve_raw

from kars_router.update import __main__ as program
from kars_router.update import state
from kars_router.update.ask import ask
from kars_router.update.background import LIMIT, leave_alone
from kars_router.update.state import Seen

WHEEL = "kars_router-99.0-py3-none-any.whl"
# Beyond its limit: for the machine to start and to end a process while other tests run.
SLACK = 1.5


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """An index that the processes started here are set to."""
    with serve_index(WHEEL) as running:
        for name, value in running.environ(HOME=str(tmp_path)).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("KARS_STATE_DIR", str(tmp_path / "state"))
        yield running


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "state"


def look_here(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", f"{url}/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{url}/simple")


def head_by_octets(raw: Raw) -> None:
    raw.request()
    raw.drip(b"H", 0.05)


def headers_by_octets(raw: Raw) -> None:
    raw.request()
    raw.socket.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    raw.drip(b"x", 0.05)


def body_by_octets(raw: Raw) -> None:
    raw.request()
    raw.send("HTTP/1.1 200 OK", "Content-Type: text/html")
    raw.drip(b"<", 0.05)


def endless_informational(raw: Raw) -> None:
    raw.request()
    raw.pour(b"HTTP/1.1 100 Continue\r\n\r\n" * 100)


def never_reads(raw: Raw) -> None:
    raw.stop.wait(30)


SLOW = pytest.mark.parametrize(
    "script",
    [head_by_octets, headers_by_octets, body_by_octets, endless_informational, never_reads],
)


# Waited for


def test_the_answer(index: Index) -> None:
    found = ask(20)
    assert (found.newest, found.newer, found.problem) == ("99.0", ("99.0",), "")


@SLOW
def test_no_server_holds_up_whoever_waits(
    script: Callable[[Raw], None], index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_raw(script) as url:
        look_here(monkeypatch, url)
        began = time.monotonic()
        found = ask(1)
        took = time.monotonic() - began
    assert found.newest == ""
    assert found.problem
    assert took < 1 + SLACK


def test_nor_a_file_that_never_ends(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "netrc")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    began = time.monotonic()
    found = ask(0.5)
    assert found.problem == "there was no answer within 0.5 seconds"
    assert time.monotonic() - began < 0.5 + SLACK


def test_nor_a_timer_that_was_switched_off(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    try:
        with serve_raw(head_by_octets) as url:
            look_here(monkeypatch, url)
            assert ask(0.5).problem == "there was no answer within 0.5 seconds"
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_process_that_fails(
    index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/not/there")
    assert "failed; --debug shows how" in ask(20).problem
    assert capfd.readouterr().err == ""
    ask(20, debug=True)
    assert capfd.readouterr().err != ""


def test_a_process_that_does_not_even_heed_its_timer(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec tail -f /dev/null\n", "utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr("kars_router.update.ask._GRACE", 0.2)
    began = time.monotonic()
    assert ask(0.3).problem == "there was no answer within 0.3 seconds"
    assert time.monotonic() - began < 0.5 + SLACK


def test_an_interrupt_ends_the_waiting_and_the_process(index: Index, tmp_path: Path) -> None:
    arrived = threading.Event()

    def hold(raw: Raw) -> None:
        raw.request()
        arrived.set()
        raw.socket.recv(1)  # until the process is gone
        arrived.clear()

    with serve_raw(hold) as url:
        variables = {"PIP_INDEX_URL": f"{url}/simple", "UV_DEFAULT_INDEX": f"{url}/simple"}
        with subprocess.Popen(
            [sys.executable, "-c", "from kars_router.update.ask import ask; ask(60)"],
            env={**os.environ, **variables},
            stderr=subprocess.PIPE,
        ) as child:
            assert arrived.wait(30)
            began = time.monotonic()
            child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=20)
        assert b"KeyboardInterrupt" in said
        assert time.monotonic() - began < 5
    assert not arrived.is_set()


def test_where_the_user_is_does_not_matter(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("kars_router", "packaging", "pip"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('taken over')", "utf-8")
    (tmp_path / "json.py").write_text("raise SystemExit('taken over')", "utf-8")
    monkeypatch.chdir(tmp_path)
    assert ask(20).newest == "99.0"


# Left alone


def ended(process: int) -> int:
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def test_what_is_found_is_remembered(index: Index, place: Path) -> None:
    began = int(time.time())
    assert ended(leave_alone()) == 0
    seen = state.read(place, time.time())
    assert seen._replace(checked_at=0) == Seen(latest="99.0", prefix=sys.prefix)
    assert seen.checked_at >= began
    assert stat.S_IMODE((place / state.FILE).stat().st_mode) == 0o600


def test_what_else_is_remembered_stays(index: Index, place: Path) -> None:
    now = int(time.time())
    with state.hold(place, wait=False):
        state.write(place, Seen(attempted_at=now - 1, notified_at=now - 2, latest="0.0.1"))
    assert ended(leave_alone()) == 0
    seen = state.read(place, time.time())
    assert (seen.attempted_at, seen.notified_at, seen.latest) == (now - 1, now - 2, "99.0")


def test_it_has_nothing_of_the_command_that_began_it(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "netrc")  # keeps it long enough to be looked at
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with (tmp_path / "open").open("w") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        process = leave_alone()
        files = Path("/proc") / str(process) / "fd"
        if files.is_dir():
            assert {str((files / number).readlink()) for number in "012"} == {"/dev/null"}
            assert not (files / str(inherited.fileno())).exists()
        assert os.getsid(process) == process != os.getsid(0)
    assert ended(process) == -signal.SIGALRM


@SLOW
def test_it_is_gone_in_a_second_and_a_half(
    script: Callable[[Raw], None], index: Index, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve_raw(script) as url:
        look_here(monkeypatch, url)
        began = time.monotonic()
        status = ended(leave_alone())
        took = time.monotonic() - began
    assert status in {0, -signal.SIGALRM}
    assert took < LIMIT + 1
    assert not (place / state.FILE).exists()


def test_nothing_found_is_nothing_remembered(index: Index, place: Path) -> None:
    index.files.clear()
    assert ended(leave_alone()) == 0
    assert not (place / state.FILE).exists()


def test_somebody_who_does_not_let_go(index: Index, place: Path) -> None:
    with state.hold(place, wait=False):
        began = time.monotonic()
        assert ended(leave_alone()) == -signal.SIGALRM
        assert time.monotonic() - began < LIMIT + 1
    assert not (place / state.FILE).exists()


@pytest.mark.parametrize("words", [[], ["note"], ["answer", "1", "2"], ["other"]])
def test_wrong_words(words: list[str]) -> None:
    assert program.main(words) == 2


def test_a_moment_that_has_passed(index: Index) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kars_router.update", "note", "0"],
        capture_output=True,
        check=False,
    )
    assert done.returncode != 0
    assert index.asked == []
