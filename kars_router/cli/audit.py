"""`kars audit`: checks the files of the audit journal, and shows what stands in them.

Works on files alone; no router has to run, and none is disturbed.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click
import msgspec

from kars_router.cli.errors import FOUND
from kars_router.cli.examples import examples
from kars_router.cli.output import Output, clean, emit, output_option, table
from kars_router.errors import UndeterminedError, UserError

if TYPE_CHECKING:
    from kars_router.audit.verify import Report

_DETAILS = (
    "name",
    "ruling",
    "rule",
    "fate",
    "code",
    "approval",
    "by",
    "generation",
    "note",
    "reason",
)
_FILE = click.Path(path_type=Path)


@click.group(
    "audit",
    epilog=examples(
        ("Has anybody changed the record?", "kars audit verify audit.jsonl"),
        ("What was recorded last?", "kars audit tail audit.jsonl"),
    ),
)
def command() -> None:
    """Check and show the files of the audit journal."""


@command.command(
    "verify",
    epilog=examples(
        ("The file, and the older ones beside it", "kars audit verify audit.jsonl"),
        (
            "Only signatures of this key count",
            "kars audit verify --key audit.jsonl.pub audit.jsonl",
        ),
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_FILE)
@click.option(
    "--key",
    "keys",
    multiple=True,
    type=_FILE,
    help="A file with the public keys (PEM) that must have signed; may be given several times.",
)
@click.option(
    "--expect",
    metavar="HASH",
    default="",
    help="The hash of a record, known from elsewhere, that must be there.",
)
@click.option("--alone", is_flag=True, help="Leave out the older files beside a single FILE.")
@output_option
@click.pass_context
def verify_command(
    context: click.Context,
    *,
    files: tuple[Path, ...],
    keys: tuple[Path, ...],
    expect: str,
    alone: bool,
    output: Output,
) -> None:
    """Check the hash chain and its signatures, and name the first line that is wrong.

    The older files beside FILE (FILE.000001 and so on) are checked with it. Several files are
    checked as one chain, in the order in which they are given. Without --key, the signatures are
    checked against the keys that the files name themselves.

    \b
    Exit codes:
      0  the chain is whole
      1  it is broken, or not signed by the given keys
      3  a file cannot be read
    """  # noqa: D301 (the backspace keeps click from filling the lines)
    from kars_router.audit.checkpoints import load_public
    from kars_router.audit.verify import verify, verify_journal

    try:
        trusted = {name: key for file in keys for name, key in load_public(file).items()}
        wanted = trusted if keys else None
        if len(files) == 1 and not alone:
            report = verify_journal(files[0], trusted=wanted, expected=expect.lower())
        else:
            report = verify(files, trusted=wanted, expected=expect.lower())
    except OSError as error:
        raise _unreadable(error) from error
    emit({"valid": report.fault is None, **attrs.asdict(report)}, output, lambda: _said(report))
    context.exit(0 if report.fault is None else FOUND)


@command.command(
    "tail",
    epilog=examples(
        ("The last 20 records", "kars audit tail audit.jsonl"),
        ("More, for a program", "kars audit tail -n 1000 -o json audit.jsonl"),
    ),
)
@click.argument("file", type=_FILE)
@click.option(
    "-n",
    "count",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    help="How many records.",
)
@click.option("--call", help="Only records about the call with this identifier.")
@output_option
def tail_command(*, file: Path, count: int, call: str | None, output: Output) -> None:
    """Show the last records of one FILE.

    Nothing is checked but that each line is a record; `kars audit verify` checks the chain.
    """
    found = _last(file, count, call)
    emit(
        found,
        output,
        lambda: table(
            ("SEQ", "TIME", "EVENT", "CALL", "SERVER", "DETAILS"),
            [
                (
                    row.get("seq"),
                    row.get("time"),
                    row.get("event"),
                    row.get("call"),
                    row.get("server"),
                    " ".join(f"{key}={row[key]}" for key in _DETAILS if row.get(key)),
                )
                for row in found
            ],
        ),
    )


def _last(file: Path, count: int, call: str | None) -> list[dict[str, Any]]:
    from kars_router.audit.chain import LONGEST
    from kars_router.audit.storage import read_lines

    lines: deque[tuple[int, bytes]] = deque(maxlen=count)
    # Inside of a string the quotes would be escaped, so this finds the member and nothing else,
    # except in content, which is nobody's identifier.
    wanted = b'"call":' + msgspec.json.encode(call) if call else b""
    try:
        with file.open("rb") as opened:
            for number, (line, whole) in enumerate(read_lines(opened, LONGEST), 1):
                if whole and wanted in line:
                    lines.append((number, line))
    except OSError as error:
        raise _unreadable(error) from error
    return [_record(file, number, line) for number, line in lines]


def _record(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise UserError(
            f"{file}:{number} is not a record; look at it with `kars audit verify`"
        ) from None


def _unreadable(error: OSError) -> UndeterminedError:
    return UndeterminedError(f"{error.filename} cannot be read: {error.strerror or error}")


def _said(report: Report) -> str:
    fault = report.fault
    if fault is not None:
        lines = [f"{clean(fault.file)}:{fault.line}: {clean(fault.reason)}"]
        if fault.excerpt:
            lines.append(f"  {clean(fault.excerpt)}")
        if report.records:
            lines.append(f"{report.records} records before it are in order")
        return "\n".join(lines)
    if not report.records:
        lines = ["no records"]
    else:
        lines = [f"valid: {report.records} records, {report.first} to {report.last}"]
        if report.first > 1:
            lines.append(
                f"begins in the middle: records 1 to {report.first - 1} are not there"
                f" (the file was begun because: {clean(report.begins) or 'not said'})"
            )
        lines.append(f"head: {report.head}")
        lines.append(_signed(report))
    if report.torn:
        lines.append(
            f"the last line was cut off while it was written ({report.torn} bytes); the router "
            "removes it when it starts"
        )
    if report.unended:
        count = len(report.unended)
        lines.append(f"{count} call{'s'[: count != 1]} without a fate: under way, or interrupted")
    return "\n".join(lines)


def _signed(report: Report) -> str:
    if not report.checkpoints:
        return "not signed: there is no checkpoint"
    keys = ", ".join(key[:16] for key in report.keys)
    whose = "trusted" if report.trusted else "as the files name it; trust one with --key"
    rest = report.last - report.signed
    unsigned = f", {rest} records after that are not" if rest else ""
    return f"signed up to record {report.signed}{unsigned}; key {keys} ({whose})"
