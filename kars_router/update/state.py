"""What is remembered from one command to the next: when there was a check, and what it found.

Owns the file, and the promise of one check and one notice a day, also of commands that run at the
same time. Whatever is in the file is distrusted: it is used if it is as it was written here, by
this user, and replaced if it is anything else. Every command reads it, so it imports next to
nothing: no attrs, no msgspec, no packaging.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from kars_router.update import home
from kars_router.update.text import LONGEST, one_line
from kars_router.update.versions import is_version

FILE: Final = "update-check.json"
_LOCK: Final = "update-check.lock"
DAY: Final = 24 * 60 * 60
_LARGEST: Final = 16_384
_AHEAD: Final = 300  # seconds that the clock may have been set back by without being suspicious


class Seen(NamedTuple):
    """What is remembered. Times are seconds since 1970; 0 is never.

    Attributes:
        attempted_at: when a check was last begun, however it ended.
        checked_at: when one last found something out.
        notified_at: when the user was last told.
        latest: the newest release then; empty if unknown.
        summary: a line about it; may be empty.
        prefix: the environment for which that was found out; others may have another index, or
            another Python.
    """

    attempted_at: int = 0
    checked_at: int = 0
    notified_at: int = 0
    latest: str = ""
    summary: str = ""
    prefix: str = ""

    def wants_check(self, now: float) -> bool:
        """Whether it is time for a check."""
        return now - self.attempted_at >= DAY

    def may_notify(self, now: float) -> bool:
        """Whether the user was not told anything for a day."""
        return now - self.notified_at >= DAY


def directory(environ: Mapping[str, str]) -> Path:
    """Where the file is: `KARS_STATE_DIR`, or `.kars` in the home directory."""
    named = environ.get("KARS_STATE_DIR")
    return Path(named) if named else home(environ) / ".kars"


def read(place: Path, now: float) -> Seen:
    """Reads what is remembered.

    Args:
        place: the directory.
        now: the time; what claims to be of the future is not believed.

    Returns:
        Nothing remembered, if the file is not there or not as it was written here.
    """
    try:
        # Without following a link, or waiting for somebody at the other end of a pipe.
        handle = os.open(place / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return Seen()
    try:
        if not _is_ours(os.fstat(handle)):
            return Seen()
        text = os.read(handle, _LARGEST)
    except OSError:
        return Seen()
    finally:
        os.close(handle)
    return _parse(text, now)


@contextlib.contextmanager
def hold(place: Path, *, wait: bool) -> Iterator[None]:
    """Holds the right to read and write what is remembered.

    Args:
        place: the directory; made if it is not there.
        wait: whether to wait for whoever holds it now.

    Raises:
        OSError: it cannot be had, or (BlockingIOError) not now.
    """
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        handle = _open_lock(place / _LOCK)
    except OSError:
        # A link, or left by root in this user's directory: nothing that we would have left.
        (place / _LOCK).unlink()
        handle = _open_lock(place / _LOCK)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)


def write(place: Path, seen: Seen) -> None:
    """Writes what is to be remembered, in one step, for this user alone.

    Args:
        place: the directory, held by the caller.
        seen: what is remembered from now on.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({_key(name): value for name, value in seen._asdict().items()})
    temporary = place / f".{FILE}.new"
    temporary.unlink(missing_ok=True)  # of a process that was ended here
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(temporary, flags, 0o600), "w", encoding="ascii") as file:
        file.write(text + "\n")
    temporary.replace(place / FILE)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path, flags, 0o600)


def _is_ours(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode)
        and status.st_uid == os.geteuid()
        and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and 0 < status.st_size < _LARGEST
    )


def _parse(text: bytes, now: float) -> Seen:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return Seen()
    if not isinstance(data, dict):
        return Seen()
    found: dict[str, Any] = {}
    for name, default in Seen()._asdict().items():
        value = data.get(_key(name))
        if type(value) is not type(default):  # True is no time
            return Seen()
        if isinstance(value, int) and not 0 <= value <= now + _AHEAD:
            return Seen()
        found[name] = value
    seen = Seen(**found)
    if seen.latest and not is_version(seen.latest):
        return Seen()
    return seen._replace(summary=one_line(seen.summary, LONGEST))


def _key(name: str) -> str:
    """The name of a member in the file: `checkedAt` for `checked_at`."""
    first, *rest = name.split("_")
    return first + "".join(word.title() for word in rest)
