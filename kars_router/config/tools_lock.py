"""The file with the accepted definitions of tools, and how it becomes part of a configuration.

Owns no format; that is `kars_router.pinning`'s. Reads and writes files, and blocks meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from attrs import evolve

from kars_router import pinning
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.problems import invalid
from kars_router.config.schema import Config
from kars_router.errors import UserError
from kars_router.pinning import Lock, LockError, Pin


def read_lock(path: Path) -> dict[str, dict[str, Pin]]:
    """Reads a lock file.

    Raises:
        LockError: it cannot be read or must not be used; the message goes on from its name.
    """
    try:
        with path.open("rb") as file:
            data = file.read(pinning.LONGEST + 1)
    except FileNotFoundError:
        raise LockError("is not there") from None
    except OSError as error:
        raise LockError(f"cannot be read: {error.strerror or type(error).__name__}") from None
    except ValueError:  # a NUL in the name
        raise LockError("cannot be read: the name holds a forbidden character") from None
    return pinning.parse(data)


def write_lock(path: Path, lock: Lock) -> None:
    """Writes a lock file in one step: whoever reads it sees the old one or the new one.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with contextlib.suppress(FileNotFoundError):
            path.stat()  # links that go round in circles; releases of Python differ below
        # Beside the file that a symbolic link leads to, so that the link stays one.
        place = path.resolve()
        handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=f".{place.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(pinning.render(lock))
                file.flush()
                os.fsync(file.fileno())
                # Not a secret, and the router may run as somebody else.
                os.fchmod(file.fileno(), _mode(place))
            Path(temporary).replace(place)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise UserError(f"the lock {path} cannot be written: {said}") from None


def with_pins(config: Config) -> Config:
    """The configuration with the accepted definitions of each of its servers.

    Where a lock is named, a server that is not in it gets an empty set: none of its tools was
    accepted.

    Args:
        config: with absolute paths.

    Raises:
        InvalidError: the lock cannot be read or must not be used.
    """
    if config.tools_lock is None:
        return config
    try:
        lock = read_lock(config.tools_lock)
    except LockError as error:
        # What is there was accepted once: writing it anew would accept whatever there is today.
        advice = (
            "take it from where it was right"
            if config.tools_lock.exists()
            else "write it with 'kars tools lock'"
        )
        raise invalid(f"{str(config.tools_lock)!r} {error}; {advice}", "toolsLock") from None
    servers = {
        name: evolve(server, pins=FrozenMap(lock.get(name, {})))
        for name, server in config.servers.items()
    }
    return evolve(config, servers=FrozenMap(servers))


def _mode(path: Path) -> int:
    try:
        return path.stat().st_mode & 0o777
    except OSError:
        return 0o644
