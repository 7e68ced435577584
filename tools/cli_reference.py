"""Write docs/cli.md, the reference of the command line, from the commands themselves.

Usage: cli_reference.py [--check]

Every command stands there with its synopsis, its description, its options with their defaults, its
exit codes and its examples, as its help has them. `--check` writes nothing, and exits with 1 if the
page is not what the code says; a test does the same.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from kars_router.cli.main import COMMANDS, GROUPS, kars

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "cli.md"
OPERATOR = ROOT / "contrib" / "operator"
# Said once for all commands.
EVERYWHERE = {"--debug", "--help", "--version"}

INTRODUCTION = """\
<!-- Made by tools/cli_reference.py from the commands' own help. Change that, and run it again. -->

# The command line

`kars` is the router and what belongs to it, `kars-operator` the operator for a cluster. This page
says of each command what its `--help` says; [a table](#environment-variables) at the end has the
variables of the environment.

Every command has `-h` and `--help`, and `--debug`, which shows the traceback of an error; both may
stand at the end. `kars --version` and `kars-operator --version` print the version alone. A shell
can complete commands, options and files: see [`kars completion`](#kars-completion).

## Exit codes

| code | of every command that says nothing else |
|---|---|
| 0 | fine |
| 1 | a negative finding, or something that you can mend |
| 2 | wrong usage |
| 3 | it could not be determined: no answer, or an error in the program itself |
| 130 | interrupted with Ctrl-C |

Answers go to stdout and everything else to stderr.
"""

# Where more is told of a command; what is below a group goes with it.
SEE_ALSO = {
    "kars run": ("getting-started", "configuration"),
    "kars check": ("configuration",),
    "kars plugins": ("plugins",),
    "kars guard": ("guard",),
    "kars demo": ("demo",),
    "kars approvals": ("governance",),
    "kars policy": ("policies",),
    "kars tools": ("tool-pinning",),
    "kars audit": ("audit",),
    "kars mcp": ("mcp-servers-cli", "custom-resources"),
    "kars egress": ("egress",),
    "kars upgrade": ("upgrade",),
    "kars update": ("update",),
    "kars-operator": ("operator",),
}

VARIABLES = {
    "KARS_CONFIG": "The configuration, where a command is told none; `./kars.yaml` without it.",
    "KARS_STATE_DIR": "Where keys, tokens and what is known of releases are kept; `~/.kars` "
    "without it.",
    "KARS_ADMIN_TOKEN": "The token for deciding on calls, for `kars approvals`.",
    "KARS_CHART": "The chart for `kars upgrade`.",
    "KARS_NO_UPDATE_CHECK": "Set to anything but `0`, `false`, `no` or `off`: no line about newer "
    "releases, and no look for them.",
    "KARS_OPERATOR_RUN_OPTION": "An option of `kars-operator run`, in capitals and with `_` for "
    "`-`: `KARS_OPERATOR_RUN_WORKERS=4` is `--workers 4`. `KARS_OPERATOR_RENDER_OPTION` likewise.",
    "KARS_MCP_URL": "Set by the operator in the agent's container: where the router is; "
    "`KARS_MCP_SERVERS` has the servers' names.",
    "POD_NAMESPACE": "Where `kars-operator` is, without `--operator-namespace`.",
    "KUBECONFIG": "How to reach a cluster, where a command is told no kubeconfig; "
    "`~/.kube/config` without it.",
    "KUBERNETES_SERVICE_HOST": "Set in every pod, with `KUBERNETES_SERVICE_PORT`: where the API "
    "server is. No notice of newer releases there.",
    "NO_COLOR": "Set to anything: no colours. `TERM=dumb` does the same.",
    "CI": "Set likewise: no line about newer releases either.",
    "PIP_*, UV_*, NETRC": "What pip and uv read, for `kars update`: it asks the index that they "
    "are set to.",
    "PATH": "Where `helm`, `nft`, `pipx` and `uv` are looked for.",
    "_KARS_COMPLETE": "Set by a shell that completes words; `_KARS_OPERATOR_COMPLETE` is for "
    "`kars-operator`, whose script `_KARS_OPERATOR_COMPLETE=bash_source kars-operator` prints.",
}

EXIT_CODE = re.compile(r"^  (\d+)  (.*(?:\n {5}.*)*)", re.MULTILINE)


def operator() -> click.Group:
    """The command `kars-operator`, of this tree."""
    sys.path.insert(0, str(OPERATOR))
    try:
        found = importlib.import_module("kars_operator.main").operator
    finally:
        sys.path.remove(str(OPERATOR))
    assert isinstance(found, click.Group)
    return found


def page() -> str:
    """All of the page."""
    parts = [INTRODUCTION, contents()]
    for name in COMMANDS:
        command = kars.get_command(click.Context(kars), name)
        assert command is not None
        parts += sections(command, f"kars {name}")
    parts += sections(operator(), "kars-operator")
    parts += ["## Environment variables\n", table(("variable", "meaning"), _variables())]
    return "\n".join(parts)


def contents() -> str:
    """The commands in the groups of `kars --help`, with links."""
    rows = [
        (group, ", ".join(f"[`kars {name}`](#kars-{name})" for name in names))
        for group, names in GROUPS.items()
    ]
    rows.append(("Operator", "[`kars-operator`](#kars-operator)"))
    return "## Commands\n\n" + table(("about", "commands"), rows)


def sections(
    command: click.Command, path: str, parent: click.Context | None = None
) -> Iterator[str]:
    """A section for a command, and one for each below it."""
    context = click.Context(command, info_name=path.rpartition(" ")[2], parent=parent)
    yield section(command, path, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            assert each is not None
            yield from sections(each, f"{path} {name}", context)


def section(command: click.Command, path: str, context: click.Context) -> str:
    """What the page says of one command."""
    usage = " ".join([path, *command.collect_usage_pieces(context)])
    summary, prose, codes = described(command)
    parts = [f"## {path}\n", f"{summary}\n", f"```text\n{usage}\n```\n", *prose]
    if isinstance(command, click.Group):
        rows = [
            (f"[`{path} {name}`](#{path.replace(' ', '-')}-{name})", described(each)[0])
            for name, each in sorted(command.commands.items())
        ]
        parts.append(table(("command", "what it does"), rows))
    options = [option_row(each, context) for each in _own_options(command)]
    if options:
        parts.append(table(("option", "meaning", "default"), options))
    if codes:
        parts.append(table(("exit code", "meaning"), codes))
    elif not isinstance(command, click.Group):
        parts.append("The exit codes are [those of every command](#exit-codes).\n")
    shown = inspect.cleandoc((command.epilog or "").removeprefix("\b\nExamples:\n"))
    if shown:
        parts.append(f"```sh\n{shown}\n```\n")
    if path in SEE_ALSO:
        links = ", ".join(f"[{_title(name)}]({name}.md)" for name in SEE_ALSO[path])
        parts.append(f"See also: {links}.\n")
    return "\n".join(parts)


def described(command: click.Command) -> tuple[str, list[str], list[tuple[str, str]]]:
    """The summary, the other paragraphs, and the exit codes, each with its meaning."""
    summary, *paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    prose, codes = [], []
    for paragraph in paragraphs:
        if paragraph.startswith("\b\nExit codes:\n"):
            found = EXIT_CODE.finditer(paragraph)
            codes += [(match[1], " ".join(match[2].split())) for match in found]
        else:
            prose.append(f"{escaped(paragraph)}\n")
    return escaped(" ".join(summary.split())), prose, codes


def option_row(option: click.Option, context: click.Context) -> tuple[str, str, str]:
    """How an option is written, what it means, and its default."""
    extra = option.get_help_extra(context)
    names = ", ".join(sorted(option.opts, key=len))
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    if not (option.is_flag or option.count):
        names += f" {_placeholder(option)}"
    meaning = option.help or ""
    if "range" in extra:
        meaning += f" (`{extra['range']}`)"
    if "envvars" in extra:
        meaning += f" Also `{'`, `'.join(extra['envvars'])}`."
    default = "required" if "required" in extra else str(extra.get("default", ""))
    return f"`{names}`", meaning, default if default in ("", "required") else f"`{default}`"


def _placeholder(option: click.Option) -> str:
    """The word for an option's value; click's own differ from version to version."""
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(option.type.choices)
    return option.type.name.upper().removesuffix(" RANGE")


def _own_options(command: click.Command) -> Iterator[click.Option]:
    for each in command.params:
        if isinstance(each, click.Option) and not each.hidden and not EVERYWHERE & {*each.opts}:
            yield each


def _title(name: str) -> str:
    first = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ")


def _variables() -> list[tuple[str, str]]:
    return [(f"`{name}`", meaning) for name, meaning in VARIABLES.items()]


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    for row in rows:
        cells = (escaped(cell).replace("|", "\\|") for cell in row)
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join([*lines, ""])


def escaped(text: str) -> str:
    """Text in which only backticks mean something to Markdown."""
    code = re.split(r"(`[^`]+`)", text)
    return "".join(
        part if number % 2 else re.sub(r"(?<!\\)([*<])", r"\\\1", part)
        for number, part in enumerate(code)
    )


def main(arguments: Sequence[str] | None = None, place: Path = PAGE) -> int:
    """Writes the page, or checks it.

    Args:
        arguments: the words of the command line; those of this process if None.
        place: where the page is.

    Returns:
        The exit code: 1 if it was to be checked and is not what the code says.
    """
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing")
    asked = parser.parse_args(arguments)
    text = page()
    if not asked.check:
        place.write_text(text, encoding="utf-8")
    elif not place.is_file() or place.read_text(encoding="utf-8") != text:
        print(f"{place.name} is not what the commands say; run python tools/cli_reference.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
