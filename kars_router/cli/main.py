"""The `kars` command: finds the subcommand, imports its module and turns errors into exit codes.

Owns the list of commands. Imports nothing of the router itself, so that `kars --help` is quick:
a command's module is imported when that command is used, and the list has its own summaries.
"""

from __future__ import annotations

import importlib
import io
import os
import sys
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from kars_router._version import __version__
from kars_router.cli.errors import INTERRUPTED, Boundary

# Each is `kars_router.cli.NAME`, with a click command named `command`. The summaries fit what
# `kars --help` leaves of a line of 80 columns.
COMMANDS = {
    "run": "Run the router.",
    "check": "Validate a configuration, and say every mistake in it.",
    "plugins": "List the plugins, their hooks and their order.",
    "guard": "Leave the router as the agent's only way out of the pod.",
    "demo": "See how a session is lost without the router.",
    "sessions": "List the sessions of a running router.",
    "top": "Watch the sessions of a running router.",
    "approvals": "List calls held for approval, and decide on them.",
    "policy": "Explain what policies decide about a call.",
    "tools": "Pin the definitions of tools, and show what changed.",
    "audit": "Check and show the record of calls.",
    "mcp": "Look after the McpServer resources of a cluster.",
    "egress": "Say what egress servers need, and what a cluster opens.",
    "upgrade": "Upgrade the operator in a cluster.",
    "update": "Look for a newer release and install it.",
    "version": "Say which version this is, on which Python and platform.",
    "completion": "Print the script that completes words in a shell.",
}

# What `kars --help` puts together, each with the word in front of its first line.
GROUPS = {
    "Router": ("run", "check", "plugins", "guard", "demo"),
    "Sessions": ("sessions", "top"),
    "Calls": ("approvals", "policy", "tools", "audit"),
    "Cluster": ("mcp", "egress", "upgrade"),
    "Program": ("update", "version", "completion"),
}

# These do not end with a line about a newer release: they run unattended and for long, they are
# about releases themselves, a shell reads them as it starts, or they promise to leave nothing
# behind.
_WITHOUT_NOTICE = frozenset({"completion", "demo", "guard", "run", "update"})


def main(args: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        args: the words after `kars`; those of this process if None.

    Returns:
        The exit code: 0 fine, 1 a negative finding, 2 wrong usage, 3 not to be determined, 130
        interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal without Unicode gets escapes, not an error halfway through.
            stream.reconfigure(errors="backslashreplace")
    boundary = Boundary()
    with boundary:
        status = kars.main(args, prog_name="kars", standalone_mode=False, obj=boundary)
        boundary.status = status if isinstance(status, int) else 0
        if sys.stdout is not None:  # `>&-` leaves none
            sys.stdout.flush()
    if boundary.notice and boundary.status != INTERRUPTED:
        _tell_of_news(sys.argv[1:] if args is None else args)
    return boundary.status


def _tell_of_news(args: Sequence[str]) -> None:
    """Ends a command with a line about a newer release, if there is one to tell of.

    The command is done, so nothing that goes wrong here is worth a word.
    """
    with Boundary(silent=True):
        if sys.stderr.isatty() and not {"-h", "--help"} & set(args):
            from kars_router.cli.notice import after_command

            after_command(os.environ)


def _note_debug(context: click.Context, _: click.Parameter, value: object) -> None:
    boundary = context.find_object(Boundary)
    if value and boundary is not None:
        boundary.debug = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        is_eager=True,
        callback=_note_debug,
        help="Show tracebacks of errors.",
    )


def _add_debug(command: click.Command) -> None:
    """Whoever reads "use --debug" adds it at the end."""
    if not any(option.name == "debug" for option in command.params):
        command.params.append(_debug_option())
    if isinstance(command, click.Group):
        for each in command.commands.values():
            _add_debug(each)


class _Commands(click.Group):
    """A group that imports a command's module when the command is used."""

    # The contexts below are click's to pass and not needed here.

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"kars_router.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        _add_debug(command)
        return command

    def format_options(
        self,
        ctx: click.Context,  # noqa: ARG002
        formatter: click.HelpFormatter,
    ) -> None:
        """Writes the commands, and the options in a line: all of it fits a screen."""
        formatter.write_paragraph()
        words = max(map(len, GROUPS))
        names = max(map(len, COMMANDS))
        for group, members in GROUPS.items():
            for number, name in enumerate(members):
                word = "" if number else group
                formatter.write(f"  {word:{words}}  {name:{names}}  {COMMANDS[name]}\n")
        formatter.write_paragraph()
        formatter.write("Options: --help, --version, --debug. Examples: kars COMMAND --help\n")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """Completes names of commands from the list, without an import of each."""
        found = [
            CompletionItem(name, help=summary)
            for name, summary in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(
    cls=_Commands,
    params=[_debug_option()],
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="kars", message="%(prog)s %(version)s")
@click.pass_context
def kars(context: click.Context) -> None:
    """Keeps stateful MCP servers alive for the agent in the same pod."""
    boundary = context.find_object(Boundary)
    if boundary is not None:
        boundary.notice = context.invoked_subcommand not in _WITHOUT_NOTICE
