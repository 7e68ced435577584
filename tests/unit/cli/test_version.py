"""`kars version`: what it says, as text and as data."""

from __future__ import annotations

import importlib.metadata
import json
import platform

import pytest
from ruamel.yaml import YAML

from kars_router._version import __version__
from kars_router.cli import main as cli
from kars_router.cli import version
from kars_router.plugins import GROUP


def test_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version", "-o", "json"]) == 0
    said = json.loads(capsys.readouterr().out)
    installed = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    assert {each["name"] for each in said.pop("plugins")} == installed
    assert isinstance(said.pop("installedWith"), str)
    assert said == {
        "version": __version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
    }
    assert cli.main(["version", "-o", "yaml"]) == 0
    assert YAML(typ="safe").load(capsys.readouterr().out)["version"] == __version__


def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kars", __version__]
    assert [line.split()[0] for line in lines[1:4]] == ["Python", "platform", "installed"]


def test_a_copy_that_nobody_installed_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(version, "find", lambda: None)
    assert cli.main(["version"]) == 0
    assert "nothing: it runs from its source" in capsys.readouterr().out
