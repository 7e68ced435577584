"""Every command has examples in its help, and click parses each of them."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from kars_router.cli.main import kars


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, by the words that lead to each."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            each = command.get_command(context, name)
            assert each is not None
            yield from commands(each, f"{path} {name}")


COMMANDS = dict(commands(kars, "kars"))
# `kars --help` has to fit a screen, and says where examples are.
DOCUMENTED = sorted(set(COMMANDS) - {"kars"})


def example_lines(path: str) -> list[str]:
    """The command lines at the end of a command's help."""
    epilog = COMMANDS[path].epilog or ""
    return [
        line.strip() for line in epilog.splitlines() if line.startswith("  ") and "#" not in line
    ]


def parse(words: list[str]) -> str:
    """Has click parse a command line, without doing anything.

    Returns:
        The command that it runs.
    """
    command: click.Command = kars
    context = None
    path = []
    name, *rest = words
    while True:
        path.append(name)
        # Closed at once: parsing may have opened a file to write to.
        with command.make_context(name, rest, parent=context) as context:
            if not isinstance(command, click.Group):
                return " ".join(path)
            rest = [*context._protected_args, *context.args]
            _, found, rest = command.resolve_command(context, rest)
            assert found is not None
            name, command = str(found.name), found


@pytest.mark.parametrize("path", DOCUMENTED)
def test_every_command_has_examples_of_itself(path: str) -> None:
    lines = example_lines(path)
    assert lines
    assert [line for line in lines if not f"{line} ".startswith(f"{path} ")] == []


@pytest.mark.parametrize("path", DOCUMENTED)
def test_every_example_has_a_comment_and_fits_a_terminal(path: str) -> None:
    first, title, *rest = (COMMANDS[path].epilog or "").splitlines()
    assert (first, title) == ("\b", "Examples:")
    assert [line[:4] == "  # " for line in rest] == [True, False] * (len(rest) // 2)
    assert [line for line in rest if len(line) > 90] == []


@pytest.mark.parametrize(
    "line", sorted({line for path in DOCUMENTED for line in example_lines(path)})
)
def test_click_parses_every_example(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shells = {"|", ">"}
    words = list(itertools.takewhile(lambda word: word not in shells, shlex.split(line)))
    assert line.startswith(parse(words))


def test_an_example_with_an_unknown_option_would_be_noticed() -> None:
    with pytest.raises(click.NoSuchOption):
        parse(["kars", "check", "--bogus"])


def test_help_ends_with_the_examples() -> None:
    with click.Context(COMMANDS["kars check"], info_name="kars check") as context:
        said = COMMANDS["kars check"].get_help(context)
    options, _, examples = said.partition("\n\n  Examples:\n")
    assert "\nOptions:\n" in options
    assert examples.startswith("    # Is ./kars.yaml valid?\n    kars check\n")
