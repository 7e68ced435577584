"""The comparison of two routers under load at the same time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "micro" / "side_by_side.py"


def compared(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--listener", "lean", "--rounds", "2", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.mark.skipif(shutil.which("wrk") is None and "CI" not in os.environ, reason="wrk is missing")
@pytest.mark.parametrize(
    ("work", "unit"),
    [
        (("--connections", "2", "--seconds", "1"), "us per call"),
        (("--idle", "30", "--seconds", "4"), "% of a core"),
    ],
)
def test_a_router_costs_what_it_costs(work: tuple[str, ...], unit: str) -> None:
    done = compared("--against", sys.executable, *work)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(rf"lean: (\S+) {unit}, the other (\S+); ratio (\S+) \(.*\)\n", done.stdout)
    assert found is not None, done.stdout
    this, other, ratio = (float(each) for each in found.groups())
    assert this > 0
    assert other > 0
    assert 0.5 < ratio < 2


def test_an_interpreter_without_the_router_is_named(tmp_path: Path) -> None:
    done = compared("--against", str(tmp_path / "python"))
    assert done.returncode == 1
    assert done.stderr == f"there is no kars beside {tmp_path / 'python'}; install one there\n"
