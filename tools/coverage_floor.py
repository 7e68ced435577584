"""Print the coverage report and hold it to a floor that only rises.

The floor is the number in `tools/coverage-floor`: percent of lines and branches together. It must
not be lower than in any commit of the history at hand, and what was measured must reach it.

Usage: coverage_floor.py [what pytest was told...]

With arguments only a selection of the tests ran, so only the report is printed. Exits with 1 if
the floor was lowered or is not reached.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOOR = Path("tools/coverage-floor")


def floors_in_history(root: Path) -> dict[str, float]:
    """The floor in each commit that set it, by short commit id; empty where there is no history."""
    log = ["git", "-C", str(root), "log", "--format=%h", "--diff-filter=AM", "--", FLOOR.as_posix()]
    try:
        commits = subprocess.run(log, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return {}
    floors = {}
    for commit in commits:
        show = ["git", "-C", str(root), "show", f"{commit}:{FLOOR.as_posix()}"]
        shown = subprocess.run(show, capture_output=True, text=True, check=True)
        floors[commit] = float(shown.stdout)
    return floors


def complaint(floor: float, measured: float, history: dict[str, float]) -> str | None:
    """One sentence on what is wrong with the floor or with what was measured; None if nothing."""
    for commit, earlier in history.items():
        if floor < earlier:
            return f"{FLOOR} says {floor:g}, but commit {commit} had raised it to {earlier:g}"
    if measured < floor:
        return f"coverage is {measured:g} %, below the floor of {floor:g} % in {FLOOR}"
    return None


def main(selection: list[str]) -> int:
    """Report, then judge; see the module's docstring."""
    subprocess.run(["coverage", "report"], check=True)
    if selection:
        print(f"only {' '.join(selection)} ran: not compared with the floor")
        return 0
    total = ["coverage", "report", "--format=total", "--precision=2"]
    measured = float(subprocess.run(total, capture_output=True, text=True, check=True).stdout)
    floor = float((ROOT / FLOOR).read_text(encoding="utf-8"))
    wrong = complaint(floor, measured, floors_in_history(ROOT))
    if wrong:
        print(wrong, file=sys.stderr)
        return 1
    print(f"coverage {measured:g} %, floor {floor:g} %")
    if measured >= floor + 1:
        print(f"the floor can rise: write {int(measured)} into {FLOOR}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
