"""What has to hold, as ratios of figures of one run, and a few plain sizes.

Pure. A bar whose figures were not taken is not judged, and the report says so.
"""

from __future__ import annotations

from typing import Final, Literal

from attrs import field, frozen

from bench.model import Figure, Figures, ratio

Direction = Literal["at most", "at least"]


@frozen(kw_only=True)
class Bar:
    """One thing that has to hold.

    Attributes:
        name: in one clause.
        suite: where the figures come from.
        subject: whose figure it is.
        work: for which work.
        metric: which figure.
        direction: of the limit.
        limit: the ratio's, or the figure's if there is nothing to compare it with.
        over: the subject whose figure it is divided by; "" for none.
        over_metric: the other figure's metric, if it is not the same one.
        over_suite: the other figure's suite and work, if they are not the same ones.
        each: judge the worst round rather than the middle one.
    """

    name: str
    suite: str
    subject: str
    work: str
    metric: str
    direction: Direction = "at most"
    limit: float
    over: str = ""
    over_metric: str = ""
    over_suite: tuple[str, str] = ("", "")
    each: bool = False


@frozen(kw_only=True)
class Verdict:
    """How a bar was met.

    Attributes:
        bar: it.
        value: the ratio or the figure; None if it was not measured.
        least: the smallest of the rounds.
        most: the largest.
        unit: of the value; "×" for a ratio.
    """

    bar: Bar
    value: float | None = None
    least: float = 0.0
    most: float = 0.0
    unit: str = field(default="×")

    @property
    def met(self) -> bool | None:
        """Whether it holds; None if it was not measured."""
        if self.value is None:
            return None
        if self.bar.direction == "at most":
            return (self.most if self.bar.each else self.value) <= self.bar.limit
        return (self.least if self.bar.each else self.value) >= self.bar.limit


def judge(bar: Bar, figures: Figures) -> Verdict:
    """Holds a bar against what was measured."""
    mine = figures.find(bar.suite, bar.subject, bar.work, bar.metric)
    if mine is None:
        return Verdict(bar=bar)
    if not bar.over:
        return Verdict(
            bar=bar,
            value=mine.median,
            least=min(mine.rounds),
            most=max(mine.rounds),
            unit=mine.unit,
        )
    suite, work = bar.over_suite
    theirs = figures.find(
        suite or bar.suite, bar.over, work or bar.work, bar.over_metric or bar.metric
    )
    if theirs is None:
        return Verdict(bar=bar)
    if len(mine.rounds) != len(theirs.rounds):
        # Not taken in turns: one of them is no time.
        value = mine.median / theirs.median
        return Verdict(bar=bar, value=value, least=value, most=value)
    found = ratio(mine, theirs)
    return Verdict(bar=bar, value=found.median, least=found.least, most=found.most)


_SIXTEEN: Final = "16 connections"

BARS: Final = (
    Bar(
        name="processor time of a call, to the floor's",
        suite="calls",
        subject="kars",
        work=_SIXTEEN,
        metric="cpu per call",
        over="floor",
        limit=1.3,
    ),
    Bar(
        name="throughput, to the floor's",
        suite="calls",
        subject="kars",
        work=_SIXTEEN,
        metric="throughput",
        over="floor",
        direction="at least",
        limit=0.75,
    ),
    Bar(
        name="the lean listener's processor time of a call, to plain hypercorn's",
        suite="calls",
        subject="kars-lean",
        work=_SIXTEEN,
        metric="cpu per call",
        over="hypercorn",
        limit=0.5,
    ),
    Bar(
        name="everything but the listener, to all of the limit program",
        suite="profile",
        subject="kars",
        work=_SIXTEEN,
        metric="cpu per call without the listener",
        over="limit",
        over_metric="cpu per call",
        limit=2.0,
    ),
    *(
        bar
        for subject in ("kars", "kars-lean")
        for bar in (
            Bar(
                name="p99 of pongs under saturation",
                suite="pongs",
                subject=subject,
                work="64 connections",
                metric="p99",
                limit=250.0,
                each=True,
            ),
            Bar(
                name="sessions lost under saturation",
                suite="pongs",
                subject=subject,
                work="64 connections",
                metric="sessions lost",
                limit=0.0,
                each=True,
            ),
            Bar(
                name="memory with one session",
                suite="idle",
                subject=subject,
                work="1 session",
                metric="memory",
                limit=45.0,
            ),
            Bar(
                name="memory of each further session",
                suite="idle",
                subject=subject,
                work="100 sessions",
                metric="memory per further session",
                limit=60.0,
            ),
            Bar(
                name="memory of each further session",
                suite="idle",
                subject=subject,
                work="1,000 sessions",
                metric="memory per further session",
                limit=60.0,
            ),
            Bar(
                name="a core's share for 100 idle sessions",
                suite="idle",
                subject=subject,
                work="100 sessions",
                metric="cpu",
                limit=1.0,
            ),
            Bar(
                name="a core's share for 1,000 idle sessions",
                suite="idle",
                subject=subject,
                work="1,000 sessions",
                metric="cpu",
                limit=10.0,
            ),
            Bar(
                name="start to the first tools/list, to the imports alone",
                suite="start",
                subject=subject,
                work="to the first tools/list",
                metric="time",
                over="import trio, httpx, hypercorn",
                limit=3.0,
            ),
            # A tenth of what a session takes while it lives would be far more than this.
            Bar(
                name="memory that an abandoned session leaves behind",
                suite="growth",
                subject=subject,
                work="100,000 abandoned sessions",
                metric="slope",
                limit=20.0,
            ),
        )
    ),
)


def verdicts(figures: Figures, bars: tuple[Bar, ...] = BARS) -> list[Verdict]:
    """All bars, and those against each peer that was measured."""
    return [judge(bar, figures) for bar in (*bars, *_against_peers(figures.all))]


def _against_peers(figures: tuple[Figure, ...]) -> list[Bar]:
    """More throughput, less processor time and less memory than every peer with the same work."""
    wanted: dict[str, tuple[Direction, str]] = {
        "throughput": ("at least", "throughput"),
        "cpu per call": ("at most", "processor time of a call"),
        "memory per session": ("at most", "memory of a session"),
    }
    return [
        Bar(
            name=f"{wanted[figure.metric][1]}, to that of {figure.subject}",
            suite=figure.suite,
            subject=ours,
            work=figure.work,
            metric=figure.metric,
            direction=wanted[figure.metric][0],
            over=figure.subject,
            limit=1.0,
        )
        for figure in figures
        if figure.suite == "peers"
        and figure.metric in wanted
        and not figure.subject.startswith(("kars", "direct"))
        for ours in _ours(figures, figure)
    ]


def _ours(figures: tuple[Figure, ...], theirs: Figure) -> list[str]:
    """The routers that did the same work as a peer, with either listener."""
    names = {
        figure.subject
        for figure in figures
        if (figure.suite, figure.work, figure.metric) == ("peers", theirs.work, theirs.metric)
    }
    return [name for name in ("kars", "kars-lean") if name in names]
