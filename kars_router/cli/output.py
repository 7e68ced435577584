"""Answers of commands as a table, JSON or YAML; one option and one function for all of them.

Owns how text from elsewhere is made harmless for a terminal and when there is colour. Knows no
command.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TextIO, TypeVar

import click

from kars_router.cli.errors import Boundary

Output = Literal["table", "json", "yaml"]
F = TypeVar("F", bound=Callable[..., object])


def output_option(command: F) -> F:
    """Adds `-o table|json|yaml`, passed to the function as `output`."""
    option = click.option(
        "-o",
        "--output",
        type=click.Choice(("table", "json", "yaml")),
        default="table",
        show_default=True,
        callback=_note_output,
        help="How to print the answer.",
    )
    return option(command)


def _note_output(context: click.Context, _: click.Parameter, value: Output) -> Output:
    boundary = context.find_object(Boundary)
    if value != "table" and boundary is not None:
        boundary.notice = False  # a program reads this, perhaps both streams as one
    return value


def emit(value: object, output: Output, table: Callable[[], str]) -> None:
    """Prints an answer on stdout.

    Args:
        value: the answer as plain data, attrs values or enums, for JSON and YAML.
        output: what the user asked for.
        table: makes the text for people; only called when it is wanted.
    """
    click.echo(table() if output == "table" else dump(value, output), color=wants_colour())


def dump(value: object, output: Literal["json", "yaml"]) -> str:
    """Writes plain data, attrs values or enums as JSON or YAML, keys in their order."""
    import msgspec

    if output == "json":
        return msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode()
    from ruamel.yaml import YAML

    writer: Any = YAML(typ="safe", pure=True)
    writer.default_flow_style = False
    writer.sort_base_mapping_type_on_output = False
    text = io.StringIO()
    writer.dump(msgspec.to_builtins(value, enc_hook=str), text)
    return text.getvalue().rstrip("\n")


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Lays out rows in columns for a terminal.

    Args:
        headings: one for each column.
        rows: cells of any type; None is an empty cell. Control characters are escaped.

    Returns:
        Lines without a trailing line feed; the headings alone if there are no rows.
    """
    cells = [["" if cell is None else clean(str(cell)) for cell in row] for row in rows]
    widths = [
        max([len(heading), *(len(row[column]) for row in cells)])
        for column, heading in enumerate(headings)
    ]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) for cell, width in zip(row, widths, strict=True)
        ).rstrip()

    return "\n".join([click.style(line(headings), bold=True), *(line(row) for row in cells)])


def clean(text: str) -> str:
    """Text from a server or a file, made harmless: what is not printable is escaped."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )


def wants_colour(stream: TextIO | None = None, environ: Mapping[str, str] | None = None) -> bool:
    """Whether to style what goes to a stream: only on a terminal, and not under `NO_COLOR`.

    Args:
        stream: stdout if None.
        environ: the process's if None (https://no-color.org: set and not empty means no).
    """
    stream = stream or sys.stdout
    environ = os.environ if environ is None else environ
    if environ.get("NO_COLOR") or environ.get("TERM") == "dumb":
        return False
    return stream is not None and stream.isatty()
