"""Copies of this project, installed for real: by pip, by pipx and by uv.

Every copy has a home directory of its own, so nothing of the user's is read or written. What is
installed comes from an index on loopback, which has everything that is needed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any, Final

from attrs import define, field
from index_kit import File, Index
from repository import ROOT

from update import terminal

OLD: Final = "7.0.0"
NEW: Final = "7.1.0"
BROKEN: Final = "7.2.0"  # installs, and does not start
# The programs of the environment that runs the tests: pipx and uv among them.
TOOLS: Final = Path(sysconfig.get_path("scripts"))


def build(place: Path, version: str, repository: str) -> File:
    """Builds a wheel of this project as if it had another version, and a repository.

    Args:
        place: an empty directory.
        version: what it calls itself.
        repository: what its metadata names; empty for none.
    """
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, place / name)
    shutil.copytree(
        ROOT / "kars_router", place / "kars_router", ignore=shutil.ignore_patterns("__pycache__")
    )
    module = place / "kars_router" / "_version.py"
    text = re.sub(
        r"^__version__ = .*$",
        f'__version__ = "{version}"',
        module.read_text("utf-8"),
        flags=re.MULTILINE,
    )
    module.write_text(text, "utf-8")
    if version == BROKEN:
        main = place / "kars_router" / "cli" / "main.py"
        main.write_text("raise ImportError('this release is broken')\n", "utf-8")
    if repository:
        project = (place / "pyproject.toml").read_text("utf-8")
        urls = f'[project.urls]\nRepository = "{repository}"\n\n[project.scripts]\n'
        (place / "pyproject.toml").write_text(project.replace("[project.scripts]\n", urls), "utf-8")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place / "dist"],
        cwd=place,
        check=True,
        capture_output=True,
    )
    [wheel] = (place / "dist").iterdir()
    return File(wheel.name, wheel.read_bytes())


def dependencies(place: Path, wheel: Path) -> list[File]:
    """What a wheel needs, and what builds one, from wherever this machine's pip gets it."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "-w", str(place)]
    subprocess.run([*command, wheel, "pip", "hatchling", "editables"], check=True)
    return [
        File(each.name, each.read_bytes())
        for each in sorted(place.iterdir())
        if not each.name.startswith("kars_router-")
    ]


@define
class Copy:
    """One installed copy and the surroundings it is used in.

    Attributes:
        how: `pip`, `pipx`, `pipx with uv`, `uv tool` or `uv`.
        home: the user's.
        index: where it comes from.
        variables: of the environment, all of them.
        kars: the command.
    """

    how: str
    home: Path
    index: Index
    variables: dict[str, str] = field(init=False)
    kars: Path = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.variables = {
            "HOME": str(self.home),
            "PATH": f"{TOOLS}:{self.home}/.local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TERM": "xterm",
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "UV_PYTHON_DOWNLOADS": "never",
            "UV_CACHE_DIR": str(self.home / "uv-cache"),
            "PIPX_HOME": str(self.home / "pipx"),
            **self.index.environ(),
        }
        bin_directory = "venv/bin" if self.how in {"pip", "uv"} else ".local/bin"
        self.kars = self.home / bin_directory / "kars"

    def install(self, wanted: str = "kars-router") -> None:
        """Installs what the index has."""
        python = os.path.realpath(sys.executable)
        venv = self.home / "venv"
        match self.how:
            case "pip":
                self.do(python, "-m", "venv", venv)
                self.do(venv / "bin" / "python", "-m", "pip", "install", "-q", wanted)
            case "uv":
                self.do("uv", "venv", "-q", "--python", python, venv)
                self.do("uv", "pip", "install", "-q", "--python", venv / "bin" / "python", wanted)
            case "uv tool":
                self.do("uv", "tool", "install", "-q", "--python", python, wanted)
            case _:
                backend = "uv" if self.how.endswith("uv") else "pip"
                self.do("pipx", "install", "--python", python, "--backend", backend, wanted)

    def do(self, *command: str | Path) -> str:
        """Runs a command that has to succeed."""
        done = subprocess.run(
            [shutil.which(command[0], path=self.variables["PATH"]) or command[0], *command[1:]],
            env=self.variables,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def given(self, **variables: str) -> Copy:
        """The same one, with more variables."""
        other = copy(self)
        other.variables = {**self.variables, **variables}
        return other

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Runs `kars` without a terminal."""
        return subprocess.run(
            [self.kars, *args],
            env=self.variables,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def show(self, *args: str, answers: Mapping[str, str] | None = None) -> terminal.Shown:
        """Runs `kars` on a terminal."""
        return terminal.run([self.kars, *args], self.variables, answers=answers, cwd=self.home)

    def version(self) -> str:
        """What it says that it is; empty if it does not start."""
        return self.run("--version").stdout.removeprefix("kars ").strip()

    def state(self) -> dict[str, Any]:
        """What is remembered; empty if nothing is."""
        path = self.home / ".kars" / "update-check.json"
        return json.loads(path.read_text("utf-8")) if path.exists() else {}
