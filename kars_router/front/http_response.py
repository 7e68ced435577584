"""A response as bytes, from what an application says of it.

Owns the syntax, the framing, and in which order things may be said. Must not know sockets.

Source: ASGI HTTP message format 2.x; RFC 9112.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from email.utils import formatdate
from typing import Any, Final

# What is copied to have everything in one write; above it, copying costs more than a write.
_JOINED: Final = 64 * 1024
CONTINUE: Final = b"HTTP/1.1 100 \r\n\r\n"


class ResponseError(Exception):
    """An application says what it may not say, or not now."""


class Dates:
    """The line with the date, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self) -> bytes:
        """The header, its line end included."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._line = b"date: %b\r\n" % formatdate(second, usegmt=True).encode("ascii")
        return self._line


class Response:
    """The response to one request.

    Attributes:
        started: whether the application has begun it.
        sized: whether its head says how long the body is, so that this follows at once.
        complete: whether the application has ended it.
        keep: whether the connection may carry another one afterwards.

    Args:
        method: of the request.
        version: of the request, "1.0" or "1.1".
        keep: whether the request allows the connection to go on.
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_head",
        "_left",
        "_old",
        "complete",
        "keep",
        "sized",
        "started",
    )

    def __init__(self, method: str, version: str, *, keep: bool) -> None:
        self.started = False
        self.sized = False
        self.complete = False
        self.keep = keep
        self._bodiless = method == "HEAD"
        self._chunked = False
        self._old = version == "1.0"
        self._left = 0
        self._head = b""

    def start(self, status: int, headers: Iterable[tuple[Any, Any]], date: bytes) -> None:
        """Begins the response.

        Args:
            status: the HTTP status, of a final response.
            headers: as the application gives them.
            date: the line with the date.

        Raises:
            ResponseError: it was begun before, or this would be no well-formed head.
        """
        if self.started:
            raise ResponseError("the response was begun before")
        if not 200 <= status <= 999:
            raise ResponseError(f"{status} is not the status of a final response")
        lines = [b"HTTP/1.1 %d \r\n" % status]
        bodiless = self._bodiless or status in (204, 304)
        for name, value in headers:
            key = name.lower()
            if key == b"content-length":
                if self.sized or not value.isdigit():
                    raise ResponseError("content-length has to be one number")
                self.sized = True
                self._left = int(value)
                if status == 204:
                    continue  # RFC 9110, section 8.6
            elif key == b"transfer-encoding":
                continue  # the framing is not the application's
            elif key == b"connection" and b"close" in value.lower():
                self.keep = False
                continue
            lines.append(b"%b: %b\r\n" % (name, value))
        self._frame(lines, bodiless=bodiless)
        lines.append(date)
        if not self.keep:
            lines.append(b"connection: close\r\n")
        head = b"".join(lines)
        # Nothing may end a line but what ends one here (RFC 9112, section 11.1).
        if not head.count(b"\n") == head.count(b"\r") == len(lines) or b"\0" in head:
            raise ResponseError("a header holds a character that is not allowed there")
        self._head = head + b"\r\n"
        self.started = True

    def _frame(self, lines: list[bytes], *, bodiless: bool) -> None:
        self._bodiless = bodiless
        if bodiless:
            self.sized = True
        elif not self.sized:
            if self._old:
                self.keep = False  # it is the end of the connection that ends the body
            else:
                self._chunked = True
                lines.append(b"transfer-encoding: chunked\r\n")

    @property
    def written(self) -> bool:
        """Whether any of it was handed out to be written."""
        return self.started and not self._head

    def abandon(self) -> None:
        """Takes note that the request was answered without the application."""
        self._head = b""
        self.keep = False
        self.started = self.complete = True

    def take_head(self) -> bytes:
        """The head, once; it is part of what `body` returns if it was not taken before."""
        head, self._head = self._head, b""
        return head

    def body(self, data: bytes, *, more: bool) -> list[bytes]:
        """Goes on with the response.

        Args:
            data: the body's next piece.
            more: whether another one comes.

        Returns:
            what is to be written, piece after piece.

        Raises:
            ResponseError: it was not begun, has ended, or is not as long as its head says.
        """
        if not self.started or self.complete:
            raise ResponseError("the response was not begun, or has ended")
        tail = b""
        head = self._head
        if self._bodiless:
            data = b""
        elif self._chunked:
            if data:
                head += b"%x\r\n" % len(data)
                tail = b"\r\n"
            if not more:
                tail += b"0\r\n\r\n"
        elif self.sized:
            left = self._left - len(data)
            if left < 0 or (left and not more):
                raise ResponseError("the body is not as long as its content-length says")
            self._left = left
        self._head = b""
        self.complete = not more
        if len(data) <= _JOINED:
            whole = head + data + tail
            return [whole] if whole else []
        return [part for part in (head, data, tail) if part]


def refusal(status: int, date: bytes) -> bytes:
    """A whole response without a body, after which the connection is closed."""
    return b"HTTP/1.1 %d \r\ncontent-length: 0\r\n%bconnection: close\r\n\r\n" % (status, date)
