"""How `kars demo` looks: a live table on a terminal, plain lines elsewhere.

Must not know how things come about; it reads a `Story`.
"""

from __future__ import annotations

import time
from functools import partial

import click
import trio
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from kars_router.cli.demo_story import COUNT, State, Step, Story, Timing, Track
from kars_router.cli.output import clean

_FRAMES_PER_SECOND = 8
_WIDEST = 88
_STYLES = {State.KEPT: "bold green", State.LOST: "bold red", State.UNCLEAR: "bold yellow"}


def introduction(timing: Timing) -> str:
    """What is about to happen, in three sentences."""
    times = round(timing.thinking / timing.reaped_after)
    return (
        f"A server keeps a counter for each session, pings its clients every"
        f" {timing.ping_every:g} s, and destroys\n"
        f"a session {timing.deadline:g} s after a ping that nobody answered."
        " (@playwright/mcp: every 3 s, after 5 s.)\n"
        f"Two agents with the same script count to {COUNT}, think for {timing.thinking:g} s,"
        f" {times} times as long as a silent\n"
        "session can live, and read the counter. Neither listens or answers pings."
    )


def conclusion(story: Story) -> str:
    """What it came to, for a story without problems."""
    sent, answered = story.pings(story.routed)
    return (
        "Straight to the server, the state was gone: the next call worked on a blank session.\n"
        f"Through kars-router it was kept: {answered} of {sent} pings were answered for the agent."
    )


class PlainView:
    """Prints a line for each thing that happens."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def tell(self, who: str, sentence: str) -> None:
        """Print a sentence with its time."""
        click.echo(f"{time.monotonic() - self._began:5.1f} s  {who:<6}  {clean(sentence)}")


class LiveView:
    """A table on a terminal that is drawn anew several times a second."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)

    async def run(self, story: Story) -> None:
        """Draw until cancelled, and once more then."""
        with Live(
            console=self._console, auto_refresh=False, get_renderable=partial(self._draw, story)
        ) as live:
            while True:
                live.refresh()
                await trio.sleep(1 / _FRAMES_PER_SECOND)

    def _draw(self, story: Story) -> Table:
        return render(story, self._console.width)


def render(story: Story, width: int) -> Table:
    """The table as it is now, for a terminal of so many columns."""
    # A fixed width: columns that follow their contents would jump about.
    table = Table(box=box.SIMPLE_HEAD, width=min(width, _WIDEST), pad_edge=False)
    table.add_column("")
    table.add_column("straight to the server", ratio=1)
    table.add_column("through kars-router", ratio=1)
    table.add_row("counts", *(_counts(track) for track in story.tracks))
    table.add_row("thinks", *(_thinks(story, track) for track in story.tracks))
    table.add_row("pings", *(_pings(story, track) for track in story.tracks))
    table.add_row("reads", *(_reads(track) for track in story.tracks))
    table.add_row("so its state was", *(_verdict(track) for track in story.tracks))
    return table


def _counts(track: Track) -> Text:
    numbers = [said.removeprefix("counter: ") for said in track.counted]
    return Text(clean(", ".join(numbers)))


def _thinks(story: Story, track: Track) -> Text:
    if track.thinking_since is None:
        return Text("")
    total = story.timing.thinking
    spent = min(trio.current_time() - track.thinking_since, total)
    if track.step is not Step.THINKING:
        return Text(f"{total:g} s")
    return Text(f"{spent:.1f} of {total:g} s", style="cyan")


def _pings(story: Story, track: Track) -> Text:
    sent, answered = story.pings(track)
    if not sent:
        return Text("")
    text = Text(f"{answered} of {sent} answered")
    destroyed = story.destroyed(track)
    if destroyed is not None:
        text.append(f"\nsession destroyed after {destroyed:.1f} s", style="red")
    return text


def _reads(track: Track) -> Text:
    said = [f"{track.refused};\nnew session;" if track.refused else "", track.final]
    return Text(clean_lines(track.trouble or "\n".join(part for part in said if part)))


def _verdict(track: Track) -> Text:
    if track.step is not Step.DONE and not track.trouble:
        return Text("")
    return Text(track.state.value.upper(), style=_STYLES[track.state])


def clean_lines(text: str) -> str:
    """`clean`, but with line feeds kept."""
    return "\n".join(clean(line) for line in text.split("\n"))
