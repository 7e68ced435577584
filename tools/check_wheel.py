"""Check a built wheel: what is in it, and that it starts where nothing else is installed.

Usage: check_wheel.py DIRECTORY

`DIRECTORY` holds one wheel of kars-router. Exits with 1 at the first thing that is wrong.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

WANTED = ("kars_router/py.typed", "kars_router/cli/main.py")
TOP_LEVEL = ("kars_router/", "kars_router-")


def contents_problem(names: list[str]) -> str | None:
    """What is missing from, or too much in, the list of a wheel's files; None if nothing."""
    for wanted in WANTED:
        if wanted not in names:
            return f"the wheel lacks {wanted}"
    for name in names:
        if not name.startswith(TOP_LEVEL):
            return f"the wheel would install {name} beside the package"
    return None


def main(directory: Path) -> int:
    """Check the wheel in `directory`; see the module's docstring."""
    [wheel] = directory.glob("kars_router-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        problem = contents_problem(archive.namelist())
    if problem:
        print(problem, file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as empty:
        venv.create(empty, with_pip=True)
        programs = Path(empty) / "bin"
        subprocess.run([programs / "python", "-m", "pip", "install", "-q", wheel], check=True)
        # From the empty directory, so that no source tree is on the path.
        done = subprocess.run(
            [programs / "kars", "--version"], cwd=empty, capture_output=True, text=True, check=False
        )
    version = wheel.name.split("-")[1]
    print(f"kars --version, from {wheel.name}: {done.stdout.strip()}")
    if done.returncode or version not in done.stdout:
        print(f"expected it to name {version}; {done.stderr.strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
