"""A run that is told to end leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bench.processes import tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("wrk") is None and "CI" not in os.environ, reason="wrk is missing")
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGHUP])
def test_what_was_started_ends_with_it(tmp_path: Path, sign: signal.Signals) -> None:
    command = [sys.executable, "-m", "bench", "--only", "calls", "--quick", "--out", str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        # The upstream and the first of the programs are there by then.
        for line in process.stderr:
            if "starting limit" in line:
                break
        started = [pid for pid in tree(process.pid) if pid != process.pid]
        assert len(started) >= 2
        process.send_signal(sign)
        process.stderr.read()
        assert process.wait(30) == 128 + sign
    assert [pid for pid in started if Path("/proc", str(pid)).exists()] == []
