"""The command line of `kars-operator`: every command has examples that click parses."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import click
import pytest
from kars_operator.main import operator


def lines(command: click.Command) -> list[str]:
    """The examples at the end of a command's help."""
    shown = (command.epilog or "").splitlines()
    return [line.strip() for line in shown if line.startswith("  kars-operator ")]


EXAMPLES = sorted(
    {line for each in (operator, *operator.commands.values()) for line in lines(each)}
)


@pytest.mark.parametrize("name", sorted(operator.commands))
def test_every_command_has_examples_of_itself(name: str) -> None:
    found = lines(operator.commands[name])
    assert found
    assert [line for line in found if not f"{line} ".startswith(f"kars-operator {name} ")] == []


@pytest.mark.parametrize("line", EXAMPLES)
def test_click_parses_every_example(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = itertools.takewhile(lambda word: word not in {"|", ">"}, shlex.split(line))
    _, name, *rest = words
    with operator.make_context("kars-operator", [name, *rest]) as context:
        command = operator.get_command(context, name)
        assert command is not None
        command.make_context(name, rest, parent=context).close()
