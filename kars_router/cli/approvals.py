"""`kars approvals`: the calls that wait for a person, and deciding on them."""

from __future__ import annotations

import getpass
import time
from pathlib import Path
from typing import Any

import click

from kars_router.cli.admin import admin_option, admin_token, ask
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option, table

PATH = "/api/v1/approvals"
_SHOWN = 100

token_option = click.option(
    "--token-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file with the admin token; without it $KARS_ADMIN_TOKEN, or the one in the router's "
    "state directory.",
)


@click.group(
    "approvals",
    epilog=examples(
        ("Which calls wait?", "kars approvals list"),
        ("Let one of them be made", "kars approvals approve 4f2a9c"),
    ),
)
def command() -> None:
    """List calls that are held for approval, and decide on them."""


@command.command(
    "list",
    epilog=examples(
        ("Those that wait", "kars approvals list"),
        (
            "Decided and expired ones as well, with all of their arguments",
            "kars approvals list --all -o json",
        ),
    ),
)
@click.option("--all", "everything", is_flag=True, help="Decided and expired ones, too.")
@admin_option
@token_option
@output_option
def listed(*, everything: bool, admin: str | None, token_file: Path | None, output: Output) -> None:
    """List the calls that wait for a decision."""
    path = f"{PATH}?all=true" if everything else PATH
    data = ask(admin, path, token=admin_token(token_file))
    emit(data, output, lambda: _table(data))


@command.command(
    "approve",
    epilog=examples(
        (
            "Let the call be made, and say why",
            'kars approvals approve 4f2a9c --comment "asked for by the team"',
        ),
    ),
)
@click.argument("ident", metavar="ID")
@click.option("--comment", default="", help="Why; goes into the record.")
@admin_option
@token_option
def approve(*, ident: str, comment: str, admin: str | None, token_file: Path | None) -> None:
    """Let a held call be made, once."""
    _decide(ident, "approve", comment, admin, token_file=token_file)


@command.command(
    "deny",
    epilog=examples(
        (
            "Have it refused, and tell the model why",
            'kars approvals deny 4f2a9c --comment "use the test account"',
        ),
    ),
)
@click.argument("ident", metavar="ID")
@click.option("--comment", default="", help="Why; the agent's model is told.")
@admin_option
@token_option
def deny(*, ident: str, comment: str, admin: str | None, token_file: Path | None) -> None:
    """Have a held call refused."""
    _decide(ident, "deny", comment, admin, token_file=token_file)


def _decide(
    ident: str, decision: str, comment: str, admin: str | None, *, token_file: Path | None
) -> None:
    if not ident.isalnum():
        raise click.UsageError(f"{ident!r} is no approval's id; see `kars approvals list`")
    body = {"decision": decision, "by": _person(), "comment": comment}
    done = ask(admin, f"{PATH}/{ident}", token=admin_token(token_file), body=body)
    word = {"approve": "approved", "deny": "denied"}[decision]
    click.echo(clean(f"{word}: {done['name']} on {done['server']}"))
    if not done["waiting"]:
        click.echo("Its agent has gone away: the decision holds if it makes the same call again.")


def _person() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def _table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "no call waits for approval"
    now = time.time()
    return table(
        ("ID", "STATE", "SERVER", "NAME", "ARGUMENTS", "REASON", "AGENT", "LEFT", "BY"),
        [
            (
                row["id"],
                row["state"] if row["waiting"] or row["state"] != "pending" else "agent away",
                row["server"],
                row["name"],
                _cut(row["arguments"]),
                row["reason"],
                row["client"] or row["agent"],
                _left(row["expires"] - now) if row["state"] in ("pending", "approved") else "",
                row["by"],
            )
            for row in rows
        ],
    )


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... (more with -o json)"


def _left(seconds: float) -> str:
    minutes, rest = divmod(max(int(seconds), 0), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"
