"""The line about a newer release, on a terminal, and what it costs."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from index_kit import Raw, serve_raw

from update import terminal
from update.conftest import Shelf
from update.copies import NEW, OLD, Copy

LINE = f"kars {NEW} is out, this is {OLD}; 'kars update' installs it. New: Faster starts."
# A command that does next to nothing, and succeeds.
COMMAND = ("egress", "explain", "http://10.0.0.1/")


def checked(copy: Copy, summary: bool = True) -> None:
    """Waits until a check has ended that found something."""
    terminal.wait_true(lambda: bool(copy.state().get("summary" if summary else "latest")))


def told(shown: terminal.Shown) -> int:
    return shown.lines.count(LINE)


def pages(shelf: Shelf) -> int:
    return shelf.index.pages().count("/simple/kars-router/")


def test_one_check_one_notice(copy: Copy, shelf: Shelf) -> None:
    first = copy.show(*COMMAND)
    assert (first.status, told(first)) == (0, 0)
    checked(copy)
    second = copy.show(*COMMAND)
    assert second.status == 0
    assert second.lines[-1] == LINE
    third = copy.show(*COMMAND)
    assert third.text == first.text
    assert pages(shelf) == 1
    state = copy.home / ".kars" / "update-check.json"
    assert state.stat().st_mode & 0o777 == 0o600
    assert state.parent.stat().st_mode & 0o777 == 0o700


def test_of_many_commands_at_once_one_checks_and_one_tells(copy: Copy, shelf: Shelf) -> None:
    with ThreadPoolExecutor(8) as threads:
        # One that begins late may already tell of what the check of an early one has found.
        shown = list(threads.map(lambda _: copy.show(*COMMAND), range(12)))
        checked(copy)
        assert pages(shelf) == 1
        shown += threads.map(lambda _: copy.show(*COMMAND), range(12))
    assert sum(map(told, shown)) == 1
    assert pages(shelf) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("CI", "true"), ("KARS_NO_UPDATE_CHECK", "1"), ("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
)
def test_silence(name: str, value: str, copy: Copy, shelf: Shelf) -> None:
    copy.given(**{name: value}).show(*COMMAND)
    assert copy.state() == {}
    copy.show(*COMMAND)
    checked(copy)
    assert told(copy.given(**{name: value}).show(*COMMAND)) == 0
    assert told(copy.show(*COMMAND)) == 1
    assert pages(shelf) == 1


@pytest.mark.parametrize("redirect", ["2>/dev/null", "2>&1 | cat", "2>err"])
def test_silence_without_a_terminal(redirect: str, copy: Copy, shelf: Shelf) -> None:
    script = f'"$0" {" ".join(COMMAND)} {redirect}'
    terminal.run(["bash", "-c", script, copy.kars], copy.variables, cwd=copy.home)
    assert copy.state() == {}
    copy.show(*COMMAND)
    checked(copy)
    shown = terminal.run(["bash", "-c", script, copy.kars], copy.variables, cwd=copy.home)
    assert told(shown) == 0
    assert not (copy.home / "err").exists() or (copy.home / "err").read_text("utf-8") == ""
    assert pages(shelf) == 1


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_silence_for_programs(form: str, copy: Copy) -> None:
    copy.show(*COMMAND, "-o", form)
    assert copy.state() == {}


@pytest.mark.parametrize(
    "args", [["--help"], ["--version"], ["egress", "--help"], ["run", "-c", "x"]]
)
def test_silence_of_these(args: list[str], copy: Copy) -> None:
    copy.show(*args)
    assert copy.state() == {}


def test_after_an_update_there_is_nothing_to_tell(copy: Copy, shelf: Shelf) -> None:
    assert copy.run("update", "--yes").returncode == 0
    shown = copy.show(*COMMAND)
    assert NEW not in shown.text
    assert pages(shelf) == 2  # by `kars update` and by pip


def test_nor_after_somebody_was_told_by_the_command(copy: Copy) -> None:
    assert copy.show("update", "--check").status == 1
    assert told(copy.show(*COMMAND)) == 0


def test_a_program_that_was_told_does_not_count(copy: Copy, shelf: Shelf) -> None:
    assert copy.run("update", "--check", "-o", "json").returncode == 1
    assert told(copy.show(*COMMAND)) == 1
    assert pages(shelf) == 1


def test_a_hostile_file_is_replaced(copy: Copy, tmp_path: Path) -> None:
    (tmp_path / ".kars").mkdir()
    target = tmp_path / "precious"
    target.write_text("precious", "utf-8")
    (tmp_path / ".kars" / "update-check.json").symlink_to(target)
    copy.show(*COMMAND)
    checked(copy)
    assert target.read_text("utf-8") == "precious"
    assert told(copy.show(*COMMAND)) == 1


def test_another_place_for_what_is_remembered(copy: Copy, tmp_path: Path) -> None:
    place = tmp_path / "state"
    copy.given(KARS_STATE_DIR="state").show(*COMMAND)
    terminal.wait_true(lambda: NEW in (place / "update-check.json").read_text("utf-8"))
    assert not (tmp_path / ".kars").exists()


def test_a_home_that_cannot_be_written(copy: Copy, shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / ".kars").write_text("in the way", "utf-8")
    for _ in range(2):
        shown = copy.show(*COMMAND)
        assert (shown.status, told(shown)) == (0, 0)
    assert pages(shelf) == 0


# What it costs


def slow(raw: Raw) -> None:
    raw.request()
    raw.drip(b"H", 0.05)


def test_a_server_that_dribbles_holds_up_nobody(copy: Copy, shelf: Shelf) -> None:
    with serve_raw(slow) as url:
        copy.variables["PIP_INDEX_URL"] = f"{url}/simple"
        quiet = [_timed(copy, KARS_NO_UPDATE_CHECK="1") for _ in range(5)]
        began = time.monotonic()
        took = _timed(copy)
        terminal.wait_true(lambda: not _checks(copy))
        lived = time.monotonic() - began
        print(f"\nwith a check begun {took:.3f} s, without {statistics.median(quiet):.3f} s;")
        print(f"the check was gone after {lived:.2f} s")
    assert took < statistics.median(quiet) + 0.5
    assert lived < 1.5 + took + 0.5
    assert copy.state()["checkedAt"] == 0
    assert copy.state()["attemptedAt"] > 0


def test_what_a_command_pays_for_it(copy: Copy) -> None:
    """The machinery of every command on a terminal, on a day on which nothing is due."""
    copy.show(*COMMAND)
    checked(copy)
    copy.show(*COMMAND)
    with_it, without = [], []
    for _ in range(6):
        with_it.append(_timed(copy))
        without.append(_timed(copy, KARS_NO_UPDATE_CHECK="1"))
    # The best of each: what else the machine does only ever adds to it.
    extra = min(with_it) - min(without)
    print(f"\nwith {min(with_it) * 1000:.1f} ms, of which {extra * 1000:.1f} ms are for it")
    assert extra < 0.05
    program = (
        "import sys, time\n"
        "import kars_router.cli.main, kars_router.cli.egress, os\n"
        "began = time.perf_counter()\n"
        "from kars_router.cli.notice import after_command\n"
        "after_command(os.environ)\n"
        "print(time.perf_counter() - began)\n"
    )
    costs = [float(copy.do(copy.kars.with_name("python"), "-P", "-c", program)) for _ in range(10)]
    print(f"in the process: {min(costs) * 1000:.2f} to {max(costs) * 1000:.2f} ms")
    assert min(costs) < 0.01


def _timed(copy: Copy, **variables: str) -> float:
    began = time.monotonic()
    assert copy.given(**variables).show(*COMMAND).status == 0
    return time.monotonic() - began


def _checks(copy: Copy) -> list[int]:
    """The processes that look for a newer release on behalf of a copy."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if b"kars_router.update" in words and f"HOME={copy.home}".encode() in variables:
            found.append(int(path.name))
    return found
