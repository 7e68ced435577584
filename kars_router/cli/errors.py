"""The one place where an exception becomes a sentence on stderr and an exit code.

Owns the exit codes and the promise that no traceback reaches a user without `--debug`. Knows no
command and no configuration beyond the exception tree.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Self

import click

from kars_router.errors import ConfigError, KarsError, PluginError, UserError

FOUND = 1
USAGE = 2
UNDETERMINED = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it

_EXPECTED = (KarsError, click.ClickException, BrokenPipeError)


class Boundary:
    """A context around one command; nothing but SystemExit leaves it.

    The last line of defence of the process: no code of the router runs after it, so nothing can
    go on with half of its work done. Groups of exceptions are judged by their leaves.

    Args:
        program: what messages begin with.
        silent: whether nothing is said of errors, for what comes after a command.

    Attributes:
        debug: whether tracebacks are shown.
        notice: whether the command may end with a line about a newer release.
        status: the exit code, once the block is left.
    """

    def __init__(self, program: str = "kars", *, silent: bool = False) -> None:
        self._program = program
        self._silent = silent
        self.debug = False
        self.notice = False
        self.status = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None or isinstance(error, SystemExit):
            return False
        leaves = tuple(_leaves(error))
        self.status = _status(leaves)
        if self._silent:
            return True
        # Where stderr is gone too, the exit code is all that can still be said.
        with contextlib.suppress(OSError):
            if self.debug:
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            _say(leaves, self._program)
        return True


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _status(leaves: tuple[BaseException, ...]) -> int:
    if _interrupted(leaves):
        return INTERRUPTED
    return max(_status_of(leaf) for leaf in leaves)


def _status_of(leaf: BaseException) -> int:
    match leaf:
        case UserError() | click.ClickException():
            return leaf.exit_code
        case PluginError() | BrokenPipeError():
            return FOUND
        case _:
            return UNDETERMINED


def _say(leaves: tuple[BaseException, ...], program: str) -> None:
    """Says on stderr what happened, in a sentence for each thing that a user can mend."""
    if _interrupted(leaves):
        return
    unexpected = [leaf for leaf in leaves if not isinstance(leaf, _EXPECTED)]
    for leaf in unexpected[:1] or leaves:
        match leaf:
            case BrokenPipeError():
                _forget_stdout()
            case click.UsageError():
                leaf.show(file=sys.stderr)
            case click.ClickException():
                click.echo(f"{program}: {leaf.format_message()}", err=True)
            case ConfigError():
                _say_problems(leaf, program)
            case KarsError():
                click.echo(f"{program}: {leaf}", err=True)
            case _:
                click.echo(f"{program}: {_unexpected(leaf)}", err=True)


def _say_problems(error: ConfigError, program: str) -> None:
    for problem in error.problems:
        # What a flag gave stands in no file.
        place = program if problem.startswith("--") else error.source or program
        click.echo(f"{click.format_filename(place)}: {problem}", err=True)


def _interrupted(leaves: tuple[BaseException, ...]) -> bool:
    return any(isinstance(leaf, KeyboardInterrupt | click.Abort) for leaf in leaves)


def _unexpected(error: BaseException) -> str:
    lines = str(error).splitlines() or [""]
    said = f"{type(error).__name__}: {lines[0]}" if lines[0] else type(error).__name__
    whose = "the system refused" if isinstance(error, OSError) else "an error in kars itself"
    return f"{whose} ({said}); add --debug to see where"


def _forget_stdout() -> None:
    """Points stdout at nothing: the interpreter flushes it once more when it exits."""
    # There may be no stdout, or none of the system's.
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
