"""Run one command in the directory of every distribution beside the core.

That is every plugin, the template of one, and what stands in `contrib/`.

Fails if the command fails in any of them.

Usage: each_plugin.py COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACES = ("contrib", "plugins", "examples")
PROJECTS = "*/pyproject.toml"


def plugins(root: Path) -> list[Path]:
    """The directories in `PLACES` that are distributions."""
    found = (path for where in PLACES for path in (root / where).glob(PROJECTS))
    return sorted(path.parent for path in found)


def main(command: list[str], root: Path = ROOT) -> int:
    """Run `command` everywhere, also after a failure; 1 if one failed or there is no plugin."""
    found = plugins(root)
    failed = []
    for directory in found:
        print(f"-- {directory.relative_to(root)}: {' '.join(command)}", flush=True)
        if subprocess.run(command, cwd=directory, check=False).returncode:
            failed.append(directory.name)
    if failed:
        print(f"failed in: {', '.join(failed)}", file=sys.stderr)
    if not found:
        print(f"no plugin in {root / 'plugins'}", file=sys.stderr)
    return int(bool(failed) or not found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
