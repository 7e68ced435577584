"""The `kars` command as a process of its own, for which the cluster is the only one there is."""

from __future__ import annotations

import subprocess
import sys

from cluster.harness import Cluster


def run_kars(cluster: Cluster, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a command, as the administrator unless the words name a kubeconfig.

    `given` goes to its stdin. Whatever comes of it, it is no traceback.
    """
    done = subprocess.run(
        [sys.executable, "-m", "kars_router", *words],
        input=given,
        env=cluster.environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done
