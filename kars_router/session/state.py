"""The state directory, held by one router at a time.

Two routers that wrote to one directory would undo each other's records, so the directory is locked
for as long as a router lives. A second one runs all the same, but keeps nothing.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from kars_router.errors import UserError
from kars_router.telemetry import log

LOCK_FILE: Final = "lock"


class StateDirectory:
    """A state directory, or none.

    Args:
        path: the configured directory, or None.
        optional: whether the router may run without it if it cannot be used.

    Attributes:
        path: the directory, now this router's; None if nothing outlives the process.

    Raises:
        UserError: it cannot be used, and is not optional.
    """

    def __init__(self, path: Path | None, *, optional: bool = False) -> None:
        self.path: Path | None = None
        self._lock: int | None = None
        if path is None:
            return
        try:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            reason = error.strerror or str(error)
            if not optional:
                raise UserError(f"state: the directory {path} cannot be used: {reason}") from error
            log().warning("state_not_kept", directory=str(path), reason=reason)
            return
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            log().warning(
                "state_not_kept", directory=str(path), reason="another router is using it"
            )
            return
        self.path, self._lock = path, handle

    def release(self) -> None:
        """Lets another router have the directory; idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
