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

from kars_router.errors import ConfigError, KarsError, UpstreamError, UserError

FOUND = 1
USAGE = 2
UNDETERMINED = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it


class Boundary:
    """A context around one command; nothing but SystemExit leaves it.

    The last line of defence of the process: no code of the router runs after it, so nothing can
    go on with half of its work done. Groups of exceptions are judged by their leaves.

    Attributes:
        debug: whether tracebacks are shown.
        status: the exit code, once the block is left.
    """

    def __init__(self) -> None:
        self.debug = False
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
        try:
            if self.debug:
                click.echo("".join(traceback.format_exception(error)), err=True, nl=False)
            self.status = _report(leaves)
        except OSError:
            # stderr is gone too; the exit code is all that can still be said.
            self.status = FOUND
        return True


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def _report(leaves: tuple[BaseException, ...]) -> int:
    """Says on stderr what happened and returns the exit code."""
    if any(isinstance(leaf, KeyboardInterrupt | click.Abort) for leaf in leaves):
        return INTERRUPTED
    unexpected = [
        leaf
        for leaf in leaves
        if not isinstance(leaf, KarsError | click.ClickException | BrokenPipeError)
    ]
    if unexpected:
        click.echo(f"kars: {_unexpected(unexpected[0])}", err=True)
        return UNDETERMINED
    return max(_expected(leaf) for leaf in leaves)


def _expected(leaf: BaseException) -> int:
    if isinstance(leaf, BrokenPipeError):
        _forget_stdout()
        return FOUND
    if isinstance(leaf, click.UsageError):
        leaf.show(file=sys.stderr)
        return USAGE
    if isinstance(leaf, click.ClickException):
        click.echo(f"kars: {leaf.format_message()}", err=True)
        return leaf.exit_code
    if isinstance(leaf, ConfigError):
        for problem in leaf.problems:
            # What a flag gave stands in no file.
            place = "kars" if problem.startswith("--") else leaf.source or "kars"
            click.echo(f"{click.format_filename(place)}: {problem}", err=True)
    else:
        click.echo(f"kars: {leaf}", err=True)
    if isinstance(leaf, UserError):
        return leaf.exit_code
    return UNDETERMINED if isinstance(leaf, UpstreamError) else FOUND


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
