"""`kars demo`: how a session is lost without the router, and kept with it, live."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import TextIO

import click
import trio

from kars_router.cli.demo_story import Story, Timing, play
from kars_router.cli.demo_view import LiveView, PlainView, conclusion, introduction
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, emit, output_option
from kars_router.config.schema import Listener
from kars_router.errors import UserError
from kars_router.telemetry import configure_logging


@click.command(
    "demo",
    epilog=examples(
        ("Watch it", "kars demo"),
        ("Keep what the router says meanwhile", "kars demo --log router.log"),
    ),
)
@output_option
@click.option(
    "--listener",
    type=click.Choice([choice.value for choice in Listener]),
    default=Listener.HYPERCORN.value,
    show_default=True,
    help="What speaks HTTP at the router, as with `kars run`.",
)
@click.option(
    "--log",
    "log_file",
    type=click.File("w", encoding="utf-8", lazy=False),
    help="Write the router's log lines to this file; otherwise there are none.",
)
def command(*, output: Output, listener: str, log_file: TextIO | None) -> None:
    """Show live how a session is lost without the router and kept with it.

    Starts a stateful MCP server that pings, the router, and two agents that think longer than
    such a server waits: one talks to the server, the other to the router. Needs nothing and
    leaves nothing behind; takes about eight seconds, all of it on loopback.

    The exit code is 0 only if the first agent lost its counter and the second kept it.
    """
    configure_logging(style="json", stream=log_file or io.StringIO())
    trio.run(_main, output, Listener(listener))


async def _main(output: Output, listener: Listener) -> None:
    timing = Timing()
    live = LiveView() if output == "table" and _can_redraw() else None
    if output == "table":
        click.echo(introduction(timing) + "\n")
    plain = PlainView()
    tell = plain.tell if output == "table" and live is None else _ignore
    story = Story(timing, tell, listener)
    began = trio.current_time()
    interrupted = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch_signals() -> None:
                nonlocal interrupted
                async for _ in signals:
                    interrupted = True
                    nursery.cancel_scope.cancel()

            nursery.start_soon(watch_signals)
            if live is not None:
                nursery.start_soon(live.run, story)
            await play(story)
            nursery.cancel_scope.cancel()
    if interrupted:
        raise click.Abort
    problems = story.problems()
    emit(story.summary(trio.current_time() - began), output, lambda: _ending(story))
    if problems:
        raise UserError("; ".join(problems))


def _ending(story: Story) -> str:
    return "" if story.problems() else "\n" + conclusion(story)


def _ignore(who: str, sentence: str) -> None:
    """For views that look for themselves."""


def _can_redraw() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
