"""`kars demo` as its users meet it: piped, as JSON, on a terminal, interrupted, and gone wrong."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from attrs import frozen
from peers import log_events
from rich.console import Console

from kars_router.cli.demo_story import State, Step, Story, Timing, Track, play
from kars_router.cli.demo_view import render
from kars_router.config.schema import Listener
from kars_router.errors import UserError
from kars_router.telemetry import configure_logging

KARS = (sys.executable, "-m", "kars_router", "demo")
LONGEST = 30.0  # seconds, what `kars demo` promises


@frozen
class Run:
    """A finished process. On a terminal, `err` is part of `out`."""

    status: int
    out: str
    err: str
    seconds: float
    home: Path


def run(home: Path, *options: str, **environ: str) -> Run:
    home.mkdir()
    began = time.monotonic()
    done = subprocess.run(
        [*KARS, *options],
        env=environment(home, **environ),
        cwd=home,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    return Run(done.returncode, done.stdout, done.stderr, time.monotonic() - began, home)


def run_on_terminal(home: Path, *options: str, interrupt_at: str = "", **environ: str) -> Run:
    """Run on a pseudo-terminal; interrupt twice in a row once `interrupt_at` matches there."""
    home.mkdir()
    began = time.monotonic()
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*KARS, *options],
        env=environment(home, TERM="xterm", COLUMNS="100", LINES="30", **environ),
        cwd=home,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    ) as process:
        os.close(slave)
        try:
            out = ""
            with contextlib.suppress(OSError):  # what Linux gives at the end of a terminal
                while part := os.read(master, 65536):
                    out += part.decode()
                    if interrupt_at and re.search(interrupt_at, out):
                        interrupt_at = ""
                        process.send_signal(signal.SIGINT)
                        process.send_signal(signal.SIGINT)
            status = process.wait(LONGEST)
        finally:
            process.kill()
            os.close(master)
    return Run(status, out, "", time.monotonic() - began, home)


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("KARS_", "NO_COLOR", "TERM", "COLUMNS", "LINES"))
    }
    return {**kept, "HOME": str(home), "TMPDIR": str(home), **more}


@pytest.fixture(scope="module", params=[*Listener], ids=str)
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Run]]:
    """All long runs with one listener side by side: they mostly wait."""
    home, with_it = tmp_path_factory.mktemp("demo"), ("--listener", request.param)
    with ThreadPoolExecutor(4) as pool:
        started = {
            "piped": pool.submit(run, home / "piped", *with_it),
            "json": pool.submit(run, home / "json", "-o", "json", *with_it),
            "terminal": pool.submit(run_on_terminal, home / "terminal", *with_it),
            "no colour": pool.submit(run_on_terminal, home / "no-colour", *with_it, NO_COLOR="1"),
        }
        yield {name: future.result() for name, future in started.items()}


@pytest.mark.parametrize("name", ["piped", "json", "terminal", "no colour"])
def test_it_works_quickly_and_leaves_nothing(runs: dict[str, Run], name: str) -> None:
    one = runs[name]
    assert one.status == 0, one.out + one.err
    assert one.err == ""
    assert one.seconds < LONGEST
    assert "session_opened" not in one.out  # no log line
    assert list(one.home.rglob("*")) == []


@pytest.mark.parametrize("options", [(), ("--listener", "hypercorn"), ("--listener", "lean")])
def test_the_router_listens_as_it_was_told(tmp_path: Path, options: tuple[str, ...]) -> None:
    log = tmp_path / "log"
    one = run_on_terminal(
        tmp_path / "home", "--log", str(log), *options, interrupt_at=r"1\.\d of 6 s"
    )
    assert one.status == 130
    [line] = [line for line in log_events(log.read_text()) if line["event"] == "listening"]
    assert line["listener"] == (options or ("hypercorn",))[-1]


def test_piped_it_is_plain_lines(runs: dict[str, Run]) -> None:
    out = runs["piped"].out
    assert "\x1b" not in out
    said = [re.sub(r"^ *[\d.]+ s  ", "", line) for line in out.splitlines()]
    for who, last in (("direct", "counter: 0"), ("routed", "counter: 3")):
        mine = [" ".join(line.split()[1:]) for line in said if line.startswith(who)]
        assert mine[:4] == [*(f"increment: counter: {n}" for n in (1, 2, 3)), "thinks for 6 s"]
        assert mine[-1] == f"read: {last}"
    lost = "server  destroys the direct agent's session: a ping was not answered"
    assert said.count(lost) == 1
    refused = "direct  read: 404 Session not found; begins a new session, as MCP says"
    assert said.index(lost) < said.index(refused)


def test_json_is_one_summary(runs: dict[str, Run]) -> None:
    summary: Any = msgspec.json.decode(runs["json"].out)
    assert summary["ok"] is True
    assert summary["problems"] == []
    timing = summary["timing"]
    reaped = timing["pingEverySeconds"] + timing["pingDeadlineSeconds"]
    assert timing["thinkingSeconds"] >= 3 * reaped
    direct, routed = summary["agents"]
    assert (direct["agent"], direct["state"], direct["read"]) == ("direct", "lost", "counter: 0")
    assert (direct["pings"], direct["answered"]) == (1, 0)
    assert direct["refused"] == "404 Session not found"
    assert direct["destroyedAfterSeconds"] < timing["thinkingSeconds"]
    assert (routed["agent"], routed["state"], routed["read"]) == ("routed", "kept", "counter: 3")
    assert routed["answered"] >= timing["thinkingSeconds"] / reaped
    assert routed["destroyedAfterSeconds"] is None


def test_on_a_terminal_it_is_a_live_table(runs: dict[str, Run]) -> None:
    out = runs["terminal"].out
    frames = re.findall(r"(\d\.\d) of 6 s", out)
    assert len(set(frames)) > 10
    assert "\x1b[31m" in out
    assert "LOST" in out
    assert "KEPT" in out
    assert out.rindex("\x1b[?25h") > out.rindex("\x1b[?25l")  # the cursor is shown again
    assert "increment: counter" not in out  # no plain line either


def test_no_color_is_honoured(runs: dict[str, Run]) -> None:
    out = runs["no colour"].out
    assert "KEPT" in out
    assert not re.search(r"\x1b\[[\d;]*3\dm", out)


@pytest.mark.parametrize("listener", [*Listener])
def test_control_c_ends_it_in_order(tmp_path: Path, listener: Listener) -> None:
    one = run_on_terminal(
        tmp_path / "home", "--listener", listener.value, interrupt_at=r"1\.\d of 6 s"
    )
    assert one.status == 130
    assert one.seconds < LONGEST / 2
    assert "Traceback" not in one.out
    assert "KEPT" not in one.out
    assert one.out.rindex("\x1b[?25h") > one.out.rindex("\x1b[?25l")


def test_a_reader_that_leaves_ends_it(tmp_path: Path) -> None:
    with subprocess.Popen(
        KARS, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.wait(LONGEST) == 1
            assert process.stderr.read() == ""
        finally:
            process.kill()


# A demo that does not show what it is for


@pytest.fixture(autouse=True)
def _quiet() -> None:
    configure_logging(stream=io.StringIO())


async def test_a_direct_agent_that_keeps_its_state_is_a_problem() -> None:
    story = Story(Timing(thinking=0.1, deadline=5.0), lambda *_: None)
    await play(story)
    assert story.routed.state is State.KEPT
    [problem] = story.problems()
    assert problem == (
        "the direct agent's counter should have been lost, but after counter: 1, counter: 2,"
        " counter: 3 it read 'counter: 3'"
    )
    assert story.summary(1.0)["ok"] is False


async def test_a_routed_agent_that_loses_its_state_is_a_problem() -> None:
    def tell(who: str, sentence: str) -> None:
        if who == "routed" and sentence.startswith("thinks"):
            assert story.server is not None
            story.server.forget(story.routed.session)

    story = Story(Timing(thinking=2.0, deadline=0.6), tell)
    await play(story)
    assert story.direct.state is State.LOST
    assert story.routed.state is State.LOST
    [problem] = story.problems()
    assert problem.startswith(
        "the routed agent's counter should have been kept, but the router reported a reset: "
    )


async def test_a_server_that_fails_is_a_problem() -> None:
    def tell(who: str, sentence: str) -> None:
        if who == "direct" and sentence.startswith("thinks"):
            assert story.server is not None
            story.server.remove_tool("read")

    story = Story(Timing(thinking=0.1), tell)
    await play(story)
    assert "while reading it met RpcError: -32602" in story.problems()[0]
    assert len(story.problems()) == 2


async def test_taking_too_long_is_a_problem() -> None:
    story = Story(Timing(limit=1.0), lambda *_: None)
    began = trio.current_time()
    await play(story)
    assert trio.current_time() - began < 8
    assert [problem.split(", but ")[1] for problem in story.problems()] == [
        "it was still thinking",
        "it was still thinking",
    ]


def test_a_problem_is_a_sentence_and_status_1(tmp_path: Path) -> None:
    code = (
        "import sys; from kars_router.cli import demo; from kars_router.cli.main import main;"
        "demo.Timing = lambda t=demo.Timing: t(thinking=0.1);"
        "sys.exit(main(['demo', '-o', 'json']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("kars: the direct agent's counter should have been lost, but ")
    assert msgspec.json.decode(done.stdout)["ok"] is False


@pytest.mark.parametrize(
    ("track", "state"),
    [
        ({"final": "counter: 3"}, State.KEPT),
        ({"final": "counter: 0", "refused": "404"}, State.LOST),
        ({"final": "counter: 0", "told": "restart"}, State.LOST),
        ({"final": "counter: 0"}, State.UNCLEAR),  # nobody was told: not what is to be shown
        ({"final": "counter: 3", "refused": "404"}, State.UNCLEAR),
        ({"final": "counter: 3", "told": "restart"}, State.UNCLEAR),
        ({"final": "counter: 2"}, State.UNCLEAR),
        ({"final": "counter: 3", "trouble": "x"}, State.UNCLEAR),
        ({"final": "counter: 3", "counted": ["counter: 1"]}, State.UNCLEAR),
        ({}, State.UNCLEAR),
    ],
)
def test_state(track: dict[str, Any], state: State) -> None:
    counted = [f"counter: {n}" for n in (1, 2, 3)]
    assert Track("direct", **{"counted": counted, **track}).state is state


@pytest.mark.parametrize("width", [20, 50, 200])
def test_the_table_fits_and_cannot_be_garbled(width: int) -> None:
    track = Track("direct", Step.DONE, trouble="bad \x1b[2J\r thing")
    other = Track("routed", Step.DONE, final="KEPT-IT")
    story = Story(Timing(), lambda *_: None, direct=track, routed=other)
    console = Console(width=width, file=io.StringIO(), force_terminal=False)
    console.print(render(story, width))
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().splitlines()
    assert width < 50 or any("KEPT-IT" in line for line in lines)
    assert max(map(len, lines)) <= width
    assert not re.search(r"[\x1b\r]", "".join(lines))


async def test_an_address_that_is_taken_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise UserError("cannot listen")

    monkeypatch.setattr("kars_router.front.listen.bind", refuse)
    story = Story(Timing(), lambda *_: None)
    with pytest.raises(UserError, match="cannot listen"):
        await play(story)
