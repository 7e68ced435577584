"""Hold every Python file to its budget of lines.

Past 400 lines a file is named, as a question; past 600 the check fails: one of its jobs belongs
somewhere else.

Usage: module_budget.py [DIRECTORY]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREES = ("kars_router", "plugins", "contrib", "tests", "tools", "bench")
ASK_ABOVE = 400
FAIL_ABOVE = 600
NOT_OURS = {".tox", ".venv", "build", "dist", "node_modules"}


def sizes(root: Path) -> Iterator[tuple[int, Path]]:
    """Lines and path (relative to `root`) of each of our Python files."""
    for tree in TREES:
        for path in sorted((root / tree).rglob("*.py")):
            relative = path.relative_to(root)
            if not NOT_OURS & set(relative.parts):
                yield len(path.read_text(encoding="utf-8").splitlines()), relative


def main(root: Path) -> int:
    """Print what is past the target; 1 if anything is past the limit."""
    found = sorted(sizes(root), reverse=True)
    for lines, path in found:
        if lines > FAIL_ABOVE:
            print(f"{path}: {lines} lines, more than {FAIL_ABOVE}: which job belongs elsewhere?")
        elif lines > ASK_ABOVE:
            print(f"{path}: {lines} lines, more than {ASK_ABOVE}: is it still one thing?")
    counts = [lines for lines, _ in found]
    if not counts:
        print(f"no Python file in {root}: wrong directory?", file=sys.stderr)
        return 1
    print(f"{len(counts)} files, {sum(counts)} lines, median {counts[len(counts) // 2]}")
    return int(counts[0] > FAIL_ABOVE)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]) if sys.argv[1:] else ROOT))
