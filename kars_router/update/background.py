"""Starts a look for a newer release and leaves it alone.

Imported by a command that is about to end, once a day, so it imports next to nothing.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

from kars_router.update import LOOK

LIMIT: Final = 1.5  # seconds from now until the process is gone


def leave_alone() -> int:
    """Starts a look that remembers what it finds, in a session of its own.

    Returns:
        The number of its process.

    Raises:
        OSError: it cannot be started.
    """
    process = subprocess.Popen(  # noqa: S603 (our own interpreter)
        [sys.executable, *LOOK, "note", str(time.monotonic() + LIMIT)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    # We end before it does, and init sees to it; without this, Python complains as it exits.
    process.returncode = 0
    return process.pid
