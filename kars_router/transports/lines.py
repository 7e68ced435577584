"""Lines of bytes, each within a limit; what is too long is passed over, not kept.

Pure. Must not know what a line means.
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

_FIRST: Final = 4096
_LAST: Final = 256


@frozen(slots=True)
class Line:
    """One line, without its end.

    Attributes:
        first: the line; of one that was cut, at most its first 4 KiB.
        last: its last 256 bytes if it was cut, else empty.
        cut: whether it exceeded the limit.
    """

    first: bytes
    last: bytes = b""
    cut: bool = False


class LineDecoder:
    """Splits a stream into lines at LF; a CR before it belongs to the end.

    Args:
        limit: most bytes of one line; of a longer one only its ends are kept.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._line = bytearray()
        self._last = b""
        self._cut = False

    def feed(self, chunk: bytes | bytearray) -> list[Line]:
        """Takes the next bytes, split anywhere; returns the lines that they complete."""
        *ends, rest = chunk.split(b"\n")
        found = []
        for end in ends:
            self._keep(end)
            found.append(self._take())
        self._keep(rest)
        return found

    def rest(self) -> list[Line]:
        """The line that the end of the stream has left without an end of its own, if any."""
        return [self._take()] if self._line else []

    def _keep(self, piece: bytes | bytearray) -> None:
        if not self._cut and len(self._line) + len(piece) <= self._limit:
            self._line += piece
            return
        if not self._cut:
            self._cut = True
            self._last = bytes(self._line[-_LAST:])
            self._line += piece[: self._limit - len(self._line)]
            del self._line[_FIRST:]
        self._last = (self._last + piece[-_LAST:])[-_LAST:]

    def _take(self) -> Line:
        line = Line(bytes(self._line).removesuffix(b"\r"), self._last, self._cut)
        self._line.clear()
        self._last, self._cut = b"", False
        return line
