"""Ratios, bars and reports, on figures that were made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import plots, report
from bench.bars import Bar, Verdict, judge, verdicts
from bench.model import Figure, Figures, ratio
from bench.suites.growth import slope
from bench.suites.profile import attribute, part_of, rest


def figure(subject: str, *rounds: float, **more: str) -> Figure:
    known = {"suite": "calls", "work": "16 connections", "metric": "throughput", "unit": "calls/s"}
    return Figure(subject=subject, rounds=rounds, **{**known, **more})


def bar(**more: object) -> Bar:
    known: dict[str, object] = {
        "name": "throughput",
        "suite": "calls",
        "subject": "kars",
        "work": "16 connections",
        "metric": "throughput",
        "over": "floor",
        "direction": "at least",
        "limit": 0.75,
    }
    return Bar(**{**known, **more})  # type: ignore[arg-type]


def test_a_ratio_is_taken_round_by_round() -> None:
    # The machine got slower with each round; the ratio did not change.
    found = ratio(figure("kars", 80.0, 40.0, 20.0), figure("floor", 100.0, 50.0, 25.0))
    assert (found.median, found.least, found.most) == (0.8, 0.8, 0.8)


@pytest.mark.parametrize("over", [(1.0,), (1.0, 0.0)])
def test_what_was_not_taken_in_turns_is_not_compared(over: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        ratio(figure("kars", 1.0, 2.0), figure("floor", *over))


@pytest.mark.parametrize(
    ("rounds", "more", "met"),
    [
        ((80.0, 80.0, 10.0), {}, True),
        ((80.0, 80.0, 10.0), {"each": True}, False),
        ((70.0, 70.0, 90.0), {}, False),
        ((70.0, 70.0, 90.0), {"direction": "at most"}, True),
        ((70.0, 70.0, 90.0), {"direction": "at most", "each": True}, False),
        ((70.0, 70.0, 90.0), {"over": "", "limit": 70.0}, True),
        ((70.0, 70.0, 90.0), {"over": "peer"}, None),
        ((70.0, 70.0, 90.0), {"subject": "kars-lean"}, None),
    ],
)
def test_a_bar_is_held_against_its_figures(
    rounds: tuple[float, ...], more: dict[str, object], met: bool | None
) -> None:
    figures = Figures((figure("kars", *rounds), figure("floor", 100.0, 100.0, 100.0)))
    assert judge(bar(**more), figures).met is met


def test_every_peer_has_its_bars_with_our_router_on_the_same_work() -> None:
    work = {"suite": "peers", "work": "stdio, 16 connections"}
    figures = Figures(
        (
            figure("kars", 1000.0, **work),
            figure("other", 700.0, **work),
            figure("kars", 600.0, metric="cpu per call", **work),
            figure("other", 500.0, metric="cpu per call", **work),
        )
    )
    found = {v.bar.name: v.met for v in verdicts(figures, ())}
    assert found == {
        "throughput, to that of other": True,
        "processor time of a call, to that of other": False,
    }


def test_a_report_says_what_was_missed_and_can_be_read_again(tmp_path: Path) -> None:
    figures = Figures((figure("kars", 50.0, 60.0), figure("floor", 100.0, 100.0)))
    judged = verdicts(figures, (bar(), bar(subject="kars-lean")))
    report.write(tmp_path, figures, judged, ["peers: none is installed"])
    assert report.read(tmp_path / report.JSON) == figures
    assert [each["met"] for each in json.loads((tmp_path / report.JSON).read_text())["bars"]] == [
        False,
        None,
    ]
    page = (tmp_path / report.MARKDOWN).read_text()
    assert "| at least 0.75 | 0.55 (0.50 to 0.60) × | **missed** |" in page
    assert "| kars | 55.0 (50.0 to 60.0) |" in page
    assert "Not measured: peers: none is installed" in page


def test_plots_are_drawn_for_what_was_measured(tmp_path: Path) -> None:
    figures = Figures(
        (
            figure("kars", 50.0, 60.0),
            figure("floor", 1.0, 1.0),
            figure("kars", 40.0, 41.0, suite="growth", metric="memory", unit="MiB"),
        )
    )
    files = plots.draw(figures, tmp_path)
    assert sorted(file.name for file in files) == [
        "calls-throughput.png",
        "calls-throughput.svg",
        "growth-memory.png",
        "growth-memory.svg",
    ]
    assert all(file.stat().st_size > 1000 for file in files)


def test_an_unmeasured_bar_is_neither_met_nor_missed() -> None:
    assert Verdict(bar=bar()).met is None


def test_a_slope_is_that_of_the_second_half() -> None:
    # It grows while it fills, then by 0.1 MiB for each tenth of 1,000 sessions.
    memory = (10.0, 20.0, 30.0, 35.0, 40.0, 40.0, 40.1, 40.2, 40.3, 40.4)
    assert slope(memory, 1000) == pytest.approx(0.001 * 2**20)


SOCKET = "b (kars_router/transports/counted_stream.py:1)"


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        ("run (trio/_core/_run.py:1)", "scheduler"),
        ("command (kars_router/cli/run.py:76);run (trio/_core/_run.py:1)", "scheduler"),
        ("a (hypercorn/trio/tcp_server.py:1);send_all (trio/_highlevel_socket.py:2)", "listener"),
        ("a (hypercorn/x.py:1);b (kars_router/front/asgi.py:1)", "router"),
        ("a (kars_router/front/asgi.py:1);b (kars_router/front/listen.py:1)", "listener"),
        ("a (kars_router/front/lean.py:1);b (trio/_core/_run.py:1)", "listener"),
        (f"a (kars_router/front/ordinary.py:1);{SOCKET}", "listener"),
        (f"a (kars_router/transports/http.py:1);{SOCKET}", "router"),
        ("a (hypercorn/x.py:1);b (kars_router/session/x.py:1);c (httpx/_client.py:1)", "router"),
    ],
)
def test_a_sample_is_the_work_of_its_innermost_part(stack: str, part: str) -> None:
    assert part_of(stack) == part


def test_the_schedulers_share_is_split_as_the_samples_are() -> None:
    found = attribute("run (trio/x.py:1) 40\na (h11/x.py:1) 20\nb (kars_router/x.py:1) 40\n")
    assert rest(found) == pytest.approx(40 / 60)
