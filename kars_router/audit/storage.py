"""The file on disk: whole lines only, in one place, by one process.

Owns the lock, appending and what is mended when that fails, beginning a new file, and noticing
that somebody else has touched the current one. Does not look into lines but for where they end.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from kars_router.errors import UserError

_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_DIGITS: Final = 6


class Touched(enum.StrEnum):
    """What somebody else did to the file."""

    MISSING = "missing"
    REPLACED = "replaced"
    ALTERED = "altered"


def numbered(path: Path) -> list[Path]:
    """The older files beside a journal, the oldest first."""
    shape = re.compile(re.escape(path.name) + rf"\.[0-9]{{{_DIGITS},12}}\Z")
    if not path.parent.is_dir():
        return []
    return sorted((each for each in path.parent.iterdir() if shape.match(each.name)), key=number_of)


def number_of(path: Path) -> int:
    """The number in the name of an older file."""
    return int(path.name.rpartition(".")[2])


def lock(path: Path) -> int:
    """Takes the lock beside a journal, so that no other process writes to it.

    Returns:
        A descriptor; closing it gives the lock back.

    Raises:
        UserError: another process has it, or the place cannot be used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(
            path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError as error:
        raise unusable(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UserError(
            f"audit.path: another process is writing to {path}; give each router a file of its own"
        ) from None
    except OSError as error:
        os.close(handle)
        raise unusable(path, error) from error
    return handle


def unusable(path: Path, error: OSError) -> UserError:
    """The error for a journal that cannot be used at all."""
    return UserError(f"audit.path: {path} cannot be used: {error.strerror or error}")


class Storage:
    """The current file of a journal, open for appending.

    Args:
        path: where it stands; made if it is not there. Without symbolic links.

    Attributes:
        path: the same.
        size: bytes of whole lines in it.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._fd = os.open(path, _FLAGS, 0o600)
        self._torn = False
        self._remember()
        older = numbered(path)
        self._number = number_of(older[-1]) + 1 if older else 1

    def _remember(self) -> None:
        found = os.fstat(self._fd)
        self._identity = (found.st_dev, found.st_ino)
        self.size = found.st_size

    def touched(self) -> Touched | None:
        """What somebody else did to the file since the last write; None if nothing is seen.

        Raises:
            OSError: it cannot be found out.
        """
        try:
            found = os.stat(self._name)  # noqa: PTH116 - before each record: half the time of Path
        except FileNotFoundError:
            return Touched.MISSING
        if (found.st_dev, found.st_ino) != self._identity:
            return Touched.REPLACED
        # What a failed write has left is cut off before this is asked.
        return None if found.st_size == self.size else Touched.ALTERED

    def mend(self) -> None:
        """Cuts off what a failed write has left.

        Raises:
            OSError: it cannot be cut off.
        """
        if self._torn:
            os.ftruncate(self._fd, self.size)
            self._torn = False

    def append(self, data: bytes) -> None:
        """Adds whole lines; all of them or none.

        Raises:
            OSError: they cannot be written.
        """
        written = 0
        try:
            while written < len(data):
                # A disk that gets full takes a part first, and says why with the next try.
                written += os.write(self._fd, data[written:] if written else data)
        except OSError:
            self._torn = written > 0
            with contextlib.suppress(OSError):
                self.mend()
            raise
        self.size += written

    def force(self) -> None:
        """Has the disk take what was written; blocks.

        Raises:
            OSError: it did not.
        """
        os.fdatasync(self._fd)

    def forcing(self) -> Callable[[], None]:
        """The same for another thread, while this one may begin a new file.

        Raises:
            OSError: no descriptor is left.
        """
        handle = os.dup(self._fd)

        def force() -> None:
            try:
                os.fdatasync(handle)
            finally:
                os.close(handle)

        return force

    def next_file(self, first: bytes, *, force: bool) -> None:
        """Puts the current file aside under its number, and begins another one.

        Args:
            first: the first line of the new file.
            force: whether the disk has to take both.

        Raises:
            OSError: the current file is still in use; or neither is, and `touched` says so.
        """
        fresh = self.fresh(self.path)
        handle = os.open(fresh, _FLAGS | os.O_TRUNC, 0o600)
        try:
            if os.write(handle, first) != len(first):
                raise OSError(28, "No space left on device")
            if force:
                os.fdatasync(self._fd)
                os.fdatasync(handle)
            aside = self._free_place()
            with contextlib.suppress(FileNotFoundError):  # taken away
                self.path.rename(aside)
            fresh.rename(self.path)
        except OSError:
            os.close(handle)
            with contextlib.suppress(OSError):
                fresh.unlink()
            raise
        os.close(self._fd)
        self._fd, self._torn = handle, False
        self._remember()
        if force:
            force_directory(self.path.parent)

    def _free_place(self) -> Path:
        while True:
            place = self.path.with_name(f"{self.path.name}.{self._number:0{_DIGITS}d}")
            if not os.path.lexists(place):
                return place
            self._number += 1

    def prune(self, keep: int) -> None:
        """Deletes all but the newest of the older files; what cannot be deleted stays."""
        for each in numbered(self.path)[:-keep] if keep else numbered(self.path):
            with contextlib.suppress(OSError):
                each.unlink()

    def close(self) -> None:
        """Closes the file; idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @staticmethod
    def fresh(path: Path) -> Path:
        """Where the next file is prepared."""
        return path.with_name(path.name + ".new")


def read_lines(file: BinaryIO, longest: int) -> Iterator[tuple[bytes, bool]]:
    """Reads lines without holding a file in memory.

    Args:
        file: open at the beginning of a line.
        longest: bytes after which a line is given up as too long; it ends the reading.

    Yields:
        Each line without its line feed, and whether it had one.
    """
    while line := file.readline(longest):
        whole = line.endswith(b"\n")
        yield line[:-1] if whole else line, whole
        if not whole:
            return


def force_directory(path: Path) -> None:
    """Has the disk take the names in a directory, where that can be asked for."""
    with contextlib.suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def settle_place(path: Path) -> Path:
    """The place of a journal without symbolic links.

    Raises:
        UserError: something else than a file stands there.
    """
    try:
        place = path.resolve()
        mode = place.stat().st_mode
    except FileNotFoundError:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise UserError(f"audit.path: {path} cannot be used: {error}") from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
        raise UserError(f"audit.path: {path} is {kind}; name a file")
    return place
