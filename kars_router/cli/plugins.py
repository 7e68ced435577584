"""`kars plugins`: what is loaded, from where, with which hooks, in which order."""

from __future__ import annotations

import os
from pathlib import Path

import attrs
import click

from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, emit, output_option, table
from kars_router.config.load import default_path, load
from kars_router.config.schema import Config
from kars_router.errors import UserError
from kars_router.plugins import Plugins
from kars_router.telemetry import configure_logging


@click.command(
    "plugins",
    epilog=examples(
        ("What is installed, with default options", "kars plugins"),
        ("What a router with this configuration loads", "kars plugins -c kars.yaml"),
    ),
)
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="Show what is loaded under this configuration; without it $KARS_CONFIG or ./kars.yaml.",
)
@output_option
@click.pass_context
def command(context: click.Context, *, file: Path | None, output: Output) -> None:
    """List the plugins, their hooks and their order.

    The first one listed is asked first. Without any configuration, what is installed is listed
    with default options. What cannot be loaded comes last, with the reason, and the exit code is 1
    then.
    """
    configure_logging(level="warning", style="console")
    path = file if file is not None else default_path(os.environ)
    if file is not None and not file.exists():
        raise UserError(f"there is no file {click.format_filename(file)}")
    config = Config() if path is None else load(path, environ=os.environ)
    plugins = Plugins.load(
        blocked=config.plugins.blocked,
        required=config.plugins.required,
        options={name: dict(options) for name, options in config.plugins.options.items()},
    )
    entries = [*plugins.entries(), *plugins.broken]
    emit(
        [attrs.asdict(entry) for entry in entries],
        output,
        lambda: table(
            ("PLUGIN", "VERSION", "HOOKS"),
            [
                (
                    e.name,
                    "built in" if e.builtin else e.version,
                    f"broken: {e.error}" if e.error else ", ".join(e.hooks),
                )
                for e in entries
            ],
        ),
    )
    context.exit(FOUND if plugins.broken else 0)
