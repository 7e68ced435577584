"""An index with two releases of this project, and copies that were installed from it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from attrs import define, evolve
from index_kit import File, Index, serve_index

from update.copies import BROKEN, NEW, OLD, TOOLS, Copy, build, dependencies


@define
class Shelf:
    """The index, and the releases that can be put into it and taken out of it."""

    index: Index
    wheels: dict[str, File]
    others: list[File]

    def stock(self, *versions: str) -> None:
        """Has these releases in the index, and everything that they need."""
        self.index.files = [*self.others, *(evolve(self.wheels[each]) for each in versions)]
        self.index.releases = [
            {"tag_name": f"v{NEW}", "name": f"kars {NEW}", "body": "## New\n\n- Faster *starts*.\n"}
        ]
        self.index.login = ""
        self.index.asked.clear()

    def release(self, version: str) -> File:
        """One that is in the index, to be changed."""
        name = self.wheels[version].name
        [file] = [each for each in self.index.files if each.name == name]
        return file


@pytest.fixture(scope="session")
def running_shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    for name in ("pipx", "uv"):
        if shutil.which(name, path=str(TOOLS)) is None:
            pytest.fail(f"{name} is not in this environment; `tox -e update` makes one that has it")
    with serve_index() as index:
        wheels = {
            version: build(tmp_path_factory.mktemp("source"), version, index.repository)
            for version in (OLD, NEW, BROKEN)
        }
        place = tmp_path_factory.mktemp("wheels")
        first = place / wheels[OLD].name
        first.write_bytes(wheels[OLD].content)
        yield Shelf(index, wheels, dependencies(place, first))


@pytest.fixture
def shelf(running_shelf: Shelf) -> Shelf:
    """The index with the older release in it."""
    running_shelf.stock(OLD)
    return running_shelf


@pytest.fixture(scope="session")
def installed(running_shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Copy:
    running_shelf.stock(OLD)
    copy = Copy("pip", tmp_path_factory.mktemp("home"), running_shelf.index)
    copy.install()
    return copy


@pytest.fixture
def copy(installed: Copy, shelf: Shelf, tmp_path: Path) -> Copy:
    """A copy of the older release, installed by pip; there is a newer one in the index.

    The environment is that of the test before, brought back; home and state are new.
    """
    python = installed.home / "venv" / "bin" / "python"
    if installed.version() != OLD:
        wheel = tmp_path / shelf.wheels[OLD].name
        wheel.write_bytes(shelf.wheels[OLD].content)
        installed.do(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", wheel)
    shelf.stock(OLD, NEW)
    fresh = Copy("pip", tmp_path, shelf.index)
    fresh.kars = installed.kars
    return fresh


@pytest.fixture(params=["pip", "pipx", "pipx with uv", "uv tool", "uv"])
def new_copy(request: pytest.FixtureRequest, shelf: Shelf, tmp_path: Path) -> Copy:
    """A copy of the older release, installed in each way."""
    copy = Copy(request.param, tmp_path, shelf.index)
    copy.install()
    return copy


@pytest.fixture(scope="session")
def python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))
