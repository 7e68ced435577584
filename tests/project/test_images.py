"""The images, the chart and the manifests: what they say of each other, and of the tree, is so.

That the images' steps work is checked by tools/check_images.py, which installs.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from check_images import DOCKERFILES, Stage, copy, files, ignore_rules, ignored, stages
from repository import ROOT
from ruamel.yaml import YAML

from kars_router._version import __version__

OPERATOR = ROOT / "contrib" / "operator"
FILES = list(DOCKERFILES)


def documents(path: Path) -> list[Any]:
    return list(YAML(typ="safe", pure=True).load_all(path.read_text(encoding="utf-8")))


def two_stages(name: str) -> tuple[Stage, Stage]:
    build, final = stages(ROOT / name)
    return build, final


@pytest.mark.parametrize("name", FILES)
def test_what_an_image_copies_is_there(name: str, tmp_path: Path) -> None:
    copy(two_stages(name)[0], tmp_path)
    assert (tmp_path / "kars_router" / "py.typed").is_file()
    assert not list(tmp_path.rglob("tests"))


def test_nothing_is_sent_to_the_engine_that_no_image_needs(tmp_path: Path) -> None:
    wanted: set[str] = set()
    for name in FILES:
        for sources, _ in two_stages(name)[0].copies():
            wanted |= {path for source in sources for path in files(source)}
    rules = ignore_rules()
    sent = {path for path in files(".") if not ignored(path, rules)}
    assert sorted(sent - wanted) == []
    assert sent


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("LICENSE", False),
        ("CHANGELOG.md", True),
        (".git/config", True),
        ("kars_router/cli/main.py", False),
        ("kars_router/__pycache__/main.pyc", True),
        ("plugins/some/tests/test_it.py", True),
        ("contrib/operator/pyproject.toml", False),
        ("contrib/operator/chart/values.yaml", False),
        ("contrib/elsewhere/file", True),
    ],
)
def test_rules_of_what_is_not_sent(path: str, kept: bool) -> None:
    assert ignored(path, ignore_rules()) == kept


@pytest.mark.parametrize("name", FILES)
def test_the_base_image_is_one_that_can_be_given_with_its_digest(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert re.findall(r"^ARG BASE=(.*)$", text, re.MULTILINE) == ["python:3.13-slim"]
    assert {stage.base for stage in two_stages(name)} == {"${BASE}"}


@pytest.mark.parametrize("name", FILES)
def test_an_image_runs_as_a_user_by_number(name: str) -> None:
    _, final = two_stages(name)
    assert final.all("USER") == ["1001:1001"]
    # As the last thing but what does not run: nothing is done as root after it.
    after = [step for step, _ in final.steps][[step for step, _ in final.steps].index("USER") :]
    assert set(after) <= {"USER", "EXPOSE", "ENTRYPOINT", "CMD"}


@pytest.mark.parametrize(
    ("name", "project"), [("Dockerfile", ROOT), ("contrib/operator/Dockerfile", OPERATOR)]
)
def test_the_entry_point_is_a_command_of_the_distribution(name: str, project: Path) -> None:
    scripts = tomllib.loads((project / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
    assert two_stages(name)[1].all("ENTRYPOINT") == [f'["{command}"]' for command in scripts]


@pytest.mark.parametrize("name", FILES)
def test_plugins_of_an_image_are_ours(name: str) -> None:
    named = two_stages(name)[0].variables()["PLUGINS"].split()
    assert [each for each in named if not (ROOT / each / "pyproject.toml").is_file()] == []


def test_the_chart_has_the_definitions_of_the_manifests() -> None:
    of_chart, of_manifests = (
        {path.name: path.read_text(encoding="utf-8") for path in directory.iterdir()}
        for directory in (OPERATOR / "chart" / "crds", OPERATOR / "manifests" / "crds")
    )
    assert of_chart == of_manifests
    assert of_chart


def test_there_is_one_version() -> None:
    (chart,) = documents(OPERATOR / "chart" / "Chart.yaml")
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)
    operators = (OPERATOR / "kars_operator" / "_version.py").read_text(encoding="utf-8")
    assert f'"{__version__}"' in operators
    manifest = (OPERATOR / "manifests" / "operator" / "40-operator.yaml").read_text("utf-8")
    assert set(re.findall(r"kars-(?:operator|router):([\w.]+)$", manifest, re.MULTILINE)) == {
        __version__
    }
    for name in FILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert re.findall(r"--tag kars-\w+:(\S+)", text) == [__version__]
