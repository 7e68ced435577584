"""`kars update`: is there a newer release, what is new in it, and installing it.

Owns what is said and asked. After an installation it imports nothing any more: what lies on the
disk then is another release.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from typing import Final

import click

from kars_router._version import __version__
from kars_router.cli.errors import FOUND, Boundary
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option, wants_colour
from kars_router.errors import UndeterminedError, UserError
from kars_router.update import state
from kars_router.update.ask import ask
from kars_router.update.findings import Findings
from kars_router.update.installation import Installation, Manner, find
from kars_router.update.installing import InstallError, install

_LIMIT: Final = 15.0  # seconds; somebody is waiting for it, unlike for a notice
_MOST: Final = 10  # releases that are told of


@click.command(
    "update",
    epilog=examples(
        ("Look, show what is new, and ask", "kars update"),
        ("Only look, for a program", "kars update --check -o json"),
        ("Install it without asking", "kars update --yes"),
    ),
)
@click.option("--check", is_flag=True, help="Only say whether there is a newer release.")
@click.option("--yes", is_flag=True, help="Install it without asking.")
@output_option
@click.pass_context
def command(context: click.Context, *, check: bool, yes: bool, output: Output) -> None:
    """Look for a newer release, show what is new, and install it.

    Asks the package index that pip, pipx or uv is configured with, whichever installed this copy,
    and installs with the same. Only asks for consent on a terminal. A copy that is a source tree,
    or part of the system's Python, is not touched; the command for it is shown.

    \b
    Exit codes:
      0  this is the newest release, or it is now
      1  there is a newer release, and it was not installed
      3  it could not be found out
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    if check and yes:
        raise click.UsageError("--check installs nothing, so --yes has no place beside it.")
    boundary = context.find_object(Boundary)
    found = ask(_LIMIT, debug=boundary is not None and boundary.debug)
    installation = find()
    if found.problem or installation is None:
        raise UndeterminedError(f"whether there is a newer release is not known: {found.problem}")
    _remember(found, told=output == "table" and sys.stdout.isatty())
    if output == "table":
        click.echo(_said(found, installation), color=wants_colour())
    updated = False
    try:
        if found.newer and not check:
            updated = _install(found, installation, yes=yes, quiet=output != "table")
    finally:
        if output != "table":
            emit(_answer(found, installation, updated=updated), output, str)
    context.exit(FOUND if found.newer and not updated else 0)


def _install(found: Findings, installation: Installation, *, yes: bool, quiet: bool) -> bool:
    """Installs the newest release if it may; whether it did.

    Raises:
        UserError: it may, and could not.
    """
    if not installation.offered():
        if yes:
            raise UserError(f"nothing was installed; {_how(found.newest, installation)}")
        return False
    if not yes:
        if quiet or not (sys.stdin.isatty() and sys.stdout.isatty()):
            return False
        if not click.confirm("Install it now?"):
            return False
    try:
        install(installation, found.newest)
    except InstallError as error:
        raise UserError(f"{found.newest} was not installed: {error}") from None
    if not quiet:
        click.echo(f"kars {found.newest} is installed")
    return True


def _remember(found: Findings, *, told: bool) -> None:
    """Spares the next command the check and, if a person was told, the notice."""
    place, now = state.directory(os.environ), int(time.time())
    with contextlib.suppress(OSError), state.hold(place, wait=False):
        notified_at = now if told else state.read(place, now).notified_at
        seen = state.Seen(now, now, notified_at, found.newest, found.summary, sys.prefix)
        state.write(place, seen)


def _said(found: Findings, installation: Installation) -> str:
    if not found.newer:
        if found.newest == __version__:
            return f"kars {__version__} is the newest release"
        return f"kars {__version__} is newer than the newest release, {found.newest}"
    lines = [click.style(f"kars {found.newest} is out, this is {__version__}", bold=True)]
    lines += [""] * bool(found.summaries)
    shown = list(reversed(found.newer))[:_MOST]
    width = max(map(len, shown))
    if found.summaries:
        lines += [
            f"  {each.ljust(width)}  {found.summaries.get(each, '')}".rstrip() for each in shown
        ]
        if len(found.newer) > _MOST:
            lines.append(f"  and {len(found.newer) - _MOST} before these")
        lines.append("")
    elif found.notes_problem:
        lines.append(f"What is new in it is not known: {found.notes_problem}")
    if found.page:
        lines.append(f"Release notes: {found.page}")
    how = _how(found.newest, installation)
    lines.append(how[0].upper() + how[1:])
    return "\n".join(lines)


def _how(version: str, installation: Installation) -> str:
    """How this copy is updated; a sentence that begins in lower case, without its full stop."""
    command = installation.command(version)
    match installation.manner:
        case Manner.EDITABLE:
            place = clean(shlex.quote(installation.source or "its source tree"))
            return f"this copy runs from {place}; update that, for example with git pull"
        case Manner.SYSTEM if not command:
            return (
                f"this copy is part of the system's Python; update it with {_whose(installation)}"
            )
        case Manner.OTHER:
            return f"this copy was installed by {_whose(installation)}; update it with that"
        case _:
            return f"update with: {clean(shlex.join(command))}"


def _whose(installation: Installation) -> str:
    return installation.installer or "what installed it"


def _answer(found: Findings, installation: Installation, *, updated: bool) -> dict[str, object]:
    return {
        "installed": __version__,
        "newest": found.newest,
        "newer": bool(found.newer),
        "releases": [
            {"version": each, "summary": found.summaries.get(each, "")}
            for each in reversed(found.newer)
        ],
        "releaseNotes": found.page or None,
        "installedBy": installation.manner.value,
        "command": list(installation.command(found.newest)) or None,
        "updated": updated,
    }
