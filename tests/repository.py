"""The repository as data, for tests of its own rules."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What tools make; .gitignore has the same. Of hidden directories only these are ours.
_MADE = {"__pycache__", "build", "dist", "node_modules", "htmlcov"}
_HIDDEN = {".ci"}


def files(*suffixes: str) -> Iterator[Path]:
    """Every file of ours whose name ends in one of `suffixes`, or every file if none is given."""
    for directory, below, names in os.walk(ROOT):
        below[:] = sorted(
            name
            for name in below
            if name not in _MADE and (not name.startswith(".") or name in _HIDDEN)
        )
        for name in sorted(names):
            if not suffixes or name.endswith(suffixes):
                yield Path(directory) / name


def relative(path: Path) -> str:
    """The path as people write it: from the root of the repository."""
    return path.relative_to(ROOT).as_posix()
