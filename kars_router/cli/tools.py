"""`kars tools`: accept the definitions of tools, and show what changed since.

Owns what is asked before an accepted definition is replaced. What makes two definitions the same
is the business of `kars_router.pinning`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kars_router.cli.errors import FOUND, UNDETERMINED
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option, wants_colour
from kars_router.config.load import DEFAULT_FILE, default_path, load
from kars_router.errors import UserError
from kars_router.pinning import Difference, LockError, Pin, UnpinnableError, compare, visible

if TYPE_CHECKING:
    from kars_router.config.schema import Config

_Pins = dict[str, dict[str, Pin]]

_config = click.option(
    "-c", "--config", "file", type=click.Path(path_type=Path), help="The configuration."
)
_lock = click.option(
    "--lock", "lock", type=click.Path(path_type=Path), help="The lock, if not that of toolsLock."
)
_server = click.option(
    "--server", "chosen", multiple=True, metavar="NAME", help="Only this server; repeatable."
)


@click.group(
    "tools",
    epilog=examples(
        ("Accept the tools as they are now", "kars tools lock --lock tools.lock.json"),
        ("Has any of them changed since?", "kars tools diff --lock tools.lock.json"),
    ),
)
def command() -> None:
    """Pin the definitions of tools, and show what changed.

    A router whose configuration names a lock withholds every tool that is not in it, or that is
    defined otherwise than it was accepted.
    """


@command.command(
    "lock",
    epilog=examples(
        (
            "Accept all tools of ./kars.yaml as they are now",
            "kars tools lock --lock tools.lock.json",
        ),
        (
            "Accept what one server has changed, without being asked",
            "kars tools lock --server web --yes",
        ),
    ),
)
@_config
@_lock
@_server
@click.option("--yes", is_flag=True, help="Accept changes without asking.")
@click.pass_context
def lock_command(
    context: click.Context,
    *,
    file: Path | None,
    lock: Path | None,
    chosen: tuple[str, ...],
    yes: bool,
) -> None:
    """Accept the tools as their servers define them now.

    Opens each server, shows what differs from the lock, asks, and writes the lock. Only tools that
    allowedTools admits are locked. Where there is no lock yet, nothing is asked.

    \b
    Exit codes:
      0  the lock holds what the servers offer
      1  changes were not accepted, or the lock cannot be used or written
      3  a server could not be reached; nothing was written
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    from kars_router.config.tools_lock import write_lock

    config, place = _load(file, lock, chosen)
    known = _read(place, needed=False)
    present, failures = _probe(config)
    if failures:
        _complain(failures)
        click.echo("kars: nothing was written; name the other servers with --server", err=True)
        context.exit(UNDETERMINED)
    old = known or {}
    names = {*present, *(() if chosen else old)}
    found = _compare(names, old, present)
    for line in _lines(found):
        click.echo(line, color=wants_colour())
    if known is not None and not found and not _differ(old, present, chosen):
        click.echo(f"{click.format_filename(place)}: nothing changed")
        return
    if known is not None and found and not yes:
        if not sys.stdin.isatty():
            raise UserError("add --yes to accept these changes")
        if not click.confirm("Accept these changes?"):
            context.exit(FOUND)
    write_lock(place, {**(old if chosen else {}), **present})
    count = sum(len(tools) for tools in present.values())
    click.echo(f"{click.format_filename(place)}: {count} tool{'s'[: count != 1]} locked")


@command.command(
    "diff",
    epilog=examples(
        ("Has any tool changed since it was accepted?", "kars tools diff"),
        ("Of one server, for a program", "kars tools diff -c kars.yaml --server web -o json"),
    ),
)
@_config
@_lock
@_server
@output_option
@click.pass_context
def diff_command(
    context: click.Context,
    *,
    file: Path | None,
    lock: Path | None,
    chosen: tuple[str, ...],
    output: Output,
) -> None:
    """Show how the tools differ from those that were accepted.

    \b
    Exit codes:
      0  every tool is as it was accepted
      1  something differs, or the lock cannot be used
      3  a server could not be reached
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    config, place = _load(file, lock, chosen)
    known = _read(place, needed=True) or {}
    present, failures = _probe(config)
    names = {*present, *(() if chosen else known.keys() - config.servers.keys())}
    found = _compare(names, known, present)
    emit(found, output, lambda: "\n".join(_lines(found)) or "every tool is as it was accepted")
    _complain(failures)
    context.exit(UNDETERMINED if failures else FOUND if found else 0)


def _load(file: Path | None, lock: Path | None, chosen: tuple[str, ...]) -> tuple[Config, Path]:
    """The configuration with the chosen servers alone, and where the lock is."""
    from attrs import evolve

    from kars_router.config.frozenmap import FrozenMap

    path = file or default_path(os.environ)
    if path is None:
        raise UserError(f"there is no {DEFAULT_FILE} here; name a file with -c or KARS_CONFIG")
    config = load(path, environ=os.environ, pinned=False)
    place = lock or config.tools_lock
    if place is None:
        raise UserError("name the lock with --lock, or with toolsLock in the configuration")
    for name in chosen:
        if name not in config.servers:
            raise click.BadParameter(f"{name!r} is no server of the configuration.")
    servers = {
        name: server for name, server in config.servers.items() if name in chosen or not chosen
    }
    return evolve(config, servers=FrozenMap(servers)), place


def _read(place: Path, *, needed: bool) -> _Pins | None:
    from kars_router.config.tools_lock import read_lock

    if not needed and not place.exists():
        return None
    try:
        return read_lock(place)
    except LockError as error:
        advice = (
            "write it with 'kars tools lock'"
            if not place.exists()
            else "take it from where it was right, or remove it and accept all tools anew"
        )
        raise UserError(f"the lock {click.format_filename(place)} {error}; {advice}") from None


def _probe(config: Config) -> tuple[_Pins, list[str]]:
    """What the servers offer, and a sentence for each that could not be reached."""
    import trio

    from kars_router.service import probe_definitions
    from kars_router.telemetry import configure_logging

    configure_logging(level="error", style="console")  # the answer says what went wrong
    present: _Pins = {}
    failures = []
    for name, reached, error, tools in trio.run(probe_definitions, config):
        if not reached:
            detail = error.removeprefix(f"{name}: ")
            failures.append(f"{name} cannot be reached: {detail or 'no answer in time'}")
            continue
        pins = present[name] = {}
        for tool, definition in tools.items():
            try:
                pins[tool] = Pin.of(definition)
            except UnpinnableError as problem:
                click.echo(f"kars: {visible(f'{name}/{tool}')} {problem}; left out", err=True)
    return present, failures


def _compare(
    names: Iterable[str], old: Mapping[str, dict[str, Pin]], new: _Pins
) -> list[Difference]:
    return [
        each
        for name in sorted(names)
        for each in compare(name, old.get(name, {}), new.get(name, {}))
    ]


def _differ(old: _Pins, new: _Pins, chosen: tuple[str, ...]) -> bool:
    """Whether servers came or went, even such without a tool."""
    return bool(new.keys() - old.keys()) or bool(not chosen and old.keys() - new.keys())


def _lines(found: Iterable[Difference]) -> list[str]:
    lines: list[str] = []
    for each in found:
        lines.append(
            click.style(f"{visible(f'{each.server}/{each.tool}')}: {each.change}", bold=True)
        )
        for line in each.diff:
            colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
            lines.append(click.style(line, fg=colour) if colour else line)
    return lines


def _complain(failures: Iterable[str]) -> None:
    for each in failures:
        click.echo(f"kars: {clean(each)}", err=True)
