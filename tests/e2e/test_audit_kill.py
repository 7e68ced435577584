"""SIGKILL at random points: the journal verifies, and every call has the fate that is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROUNDS = 50


def test_a_journal_survives_its_writer(tmp_path: Path) -> None:
    program = Path(__file__).with_name("audit_writer.py")
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path), str(ROUNDS), "1"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    total = json.loads(done.stdout)
    # It was killed in the middle of things, not always at rest, and over several files.
    assert total["unknown"] > 0
    assert total["not_executed"] > 0
    assert total["calls"] > 10 * ROUNDS
    assert total["files"] > ROUNDS
    assert total["openings"] > 0
