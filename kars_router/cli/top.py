"""`kars top`: the sessions of a running router, refreshed."""

from __future__ import annotations

import sys
import time

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text

from kars_router.cli.admin import admin_option, ask
from kars_router.cli.examples import examples
from kars_router.cli.sessions import PATH, as_tables


@click.command(
    "top",
    epilog=examples(
        ("Look every second", "kars top"),
        ("Look every five", "kars top --interval 5"),
    ),
)
@admin_option
@click.option(
    "--interval",
    type=click.FloatRange(0.1, 3600),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
def command(*, admin: str | None, interval: float) -> None:
    """Watch the sessions of a running router; ends with Ctrl-C."""
    if not sys.stdout.isatty():
        raise click.UsageError("kars top needs a terminal; use kars sessions instead")
    text = Text.from_ansi(as_tables(ask(admin, PATH)))
    try:
        with Live(text, console=Console(), screen=True, auto_refresh=False) as live:
            while True:
                live.update(Text.from_ansi(as_tables(ask(admin, PATH))), refresh=True)
                time.sleep(interval)  # noqa: TID251 - no event loop here
    except KeyboardInterrupt:
        return
