"""A request's head and body, as bytes: where they end, and what is refused.

Owns the syntax and the framing. Must not know sockets, clocks or ASGI.

Heads are parsed by llhttp, through httptools, with every leniency off: it is given exactly one
head, whose end is found before. The framing of bodies is little enough to be read here at a glance.

Source: RFC 9112 (sections are named where they decide something).
"""

from __future__ import annotations

import re
from typing import Final

import httptools

# As h11's, which reads on the default listener what is not ordinary.
HEAD_LIMIT: Final = 16 * 1024
_TRAILER_LIMIT: Final = 16 * 1024
_CHUNK_LINE_LIMIT: Final = 256

_LINE: Final = re.compile(rb"([A-Z][A-Z-]*) ([!-~]+) HTTP/1\.([01])\r\n")
_BARE_LINE_ENDS: Final = re.compile(rb"\n\r?\n")
_CHUNK_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\0\r\n]*)?")
_NOT_IN_LINES: Final = re.compile(rb"[\0\r\n]")
_ABSOLUTE: Final = re.compile(rb"(?i)https?://([^/?#@]+)([/?].*)?")


class BadRequestError(Exception):
    """What came is no acceptable request.

    Attributes:
        status: what it is answered with.
    """

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Head:
    """The head of a request.

    Attributes:
        method: in upper case, as it came.
        target: in origin form, or `*`; the authority of an absolute target is the Host's.
        version: "1.0" or "1.1".
        headers: names in lower case, in the order of arrival.
        length: of the body; None if that is chunked.
        keep: whether the connection may carry another request afterwards.
        expects: whether the peer waits for a word before it sends the body.
    """

    __slots__ = ("expects", "headers", "keep", "length", "method", "target", "version")

    def __init__(self, method: bytes, target: bytes, version: str) -> None:
        self.method = method.decode("ascii")
        self.target = target
        self.version = version
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = 0
        self.keep = version == "1.1"
        self.expects = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        self.headers.append((name.lower(), value.rstrip(b" \t")))


def take_head(data: bytes) -> tuple[Head, bytes] | None:
    """Takes a request's head off what has come.

    Args:
        data: what has come and is not part of an earlier request.

    Returns:
        the head, and what comes after it; None if more has to come first.

    Raises:
        BadRequestError: this does not begin with an acceptable head, nor can it any more.
    """
    start = 0
    if data[:1] in (b"\r", b"\n"):
        start = len(data) - len(data.lstrip(b"\r\n"))  # RFC 9112, section 2.2
    end = data.find(b"\r\n\r\n", start, HEAD_LIMIT) + 4
    if end < 4:
        _check_beginning(data, start)
        return None
    line = _LINE.match(data, start)
    if line is None:
        raise BadRequestError(400)
    method, target, minor = line.groups()
    head = Head(method, target, "1.1" if minor == b"1" else "1.0")
    try:
        httptools.HttpRequestParser(head).feed_data(data[start:end])
    except httptools.HttpParserUpgrade:
        pass  # an offer, which need not be taken up (RFC 9110, section 7.8)
    except httptools.HttpParserError as error:
        unknown = isinstance(error, httptools.HttpParserInvalidMethodError)
        raise BadRequestError(501 if unknown else 400) from error
    if head.method == "CONNECT":
        raise BadRequestError(501)
    _frame(head)
    return head, data[end:]


def _check_beginning(data: bytes, start: int) -> None:
    # Else it would be waited for the rest of what can only be refused, such as TLS.
    first = data[start : start + 1]
    if (first and not b"A" <= first <= b"Z") or _BARE_LINE_ENDS.search(data, start, HEAD_LIMIT):
        raise BadRequestError(400)
    if len(data) >= HEAD_LIMIT:
        raise BadRequestError(431)


def _frame(head: Head) -> None:
    hosts: list[bytes] = []
    for name, value in head.headers:
        match name:
            case b"host":
                hosts.append(value)
            case b"content-length":
                # Digits only and only once, says llhttp, and not beside a transfer coding.
                head.length = int(value)
            case b"transfer-encoding":
                _check_coding(head, value)
                head.length = None
            case b"connection":
                if b"close" in map(bytes.strip, value.lower().split(b",")):
                    head.keep = False
            case b"expect":
                head.expects = head.version == "1.1" and value.lower() == b"100-continue"
            case _:
                pass
    if len(hosts) > 1 or (not hosts and head.version == "1.1"):
        raise BadRequestError(400)  # RFC 9112, section 3.2
    if not head.target.startswith(b"/"):
        head.target = _origin_form(head.target, hosts)


def _check_coding(head: Head, value: bytes) -> None:
    if head.length is None or head.version == "1.0":
        raise BadRequestError(400)  # RFC 9112, section 6.1
    if value.lower() != b"chunked":
        raise BadRequestError(501)


def _origin_form(target: bytes, hosts: list[bytes]) -> bytes:
    absolute = _ABSOLUTE.fullmatch(target)
    if absolute is None:
        return target  # `*`
    # RFC 9112, section 3.2.2, lets the target overrule Host. A request that says two things is
    # none that an agent sends, and whoever checks Host has to be able to rely on it.
    if hosts and absolute[1].lower() != hosts[0].lower():
        raise BadRequestError(400)
    rest: bytes = absolute[2] or b"/"
    return rest if rest.startswith(b"/") else b"/" + rest


class SizedBody:
    """A body of known length.

    Attributes:
        left: how much of it was not taken yet.
        done: whether all of it was taken.
    """

    __slots__ = ("done", "left")

    def __init__(self, length: int) -> None:
        self.left = length
        self.done = length == 0

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Takes what belongs to the body off what has come.

        Returns:
            the body's next piece, and what is left: what comes after the body, once that is done.
        """
        left = self.left
        if len(data) <= left:
            self.left = left - len(data)
            self.done = not self.left
            return data, b""
        self.left = 0
        self.done = True
        return data[:left], data[left:]


class ChunkedBody:
    """A body in chunks (RFC 9112, section 7.1). Extensions and trailers are dropped.

    Attributes:
        done: whether all of it was taken.
    """

    __slots__ = ("_ending", "_left", "_trailers", "done")

    def __init__(self) -> None:
        self._left = 0  # of the chunk, with the line end after it
        self._ending = False
        self._trailers = 0
        self.done = False

    def take(self, data: bytes) -> tuple[bytes, bytes]:
        """Takes what belongs to the body off what has come.

        Returns:
            the body's next piece, empty if more has to come first; and what is left: what comes
            after the body, once that is done, else what is to be given again with more behind it.

        Raises:
            BadRequestError: this is no chunked body.
        """
        pieces: list[bytes] = []
        at = 0
        while not self.done:
            if self._left > 2:
                piece = data[at : at + self._left - 2]
                if not piece:
                    break
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                continue
            if self._left == 2:
                if data[at : at + 2] != b"\r\n"[: len(data) - at]:
                    raise BadRequestError(400)
                if len(data) - at < 2:
                    break
                at += 2
                self._left = 0
            end = data.find(
                b"\r\n", at, at + (_TRAILER_LIMIT if self._ending else _CHUNK_LINE_LIMIT)
            )
            if end < 0:
                self._check_beginning(data, at)
                break
            self._line(data[at:end])
            at = end + 2
        return b"".join(pieces), data[at:]

    def _line(self, line: bytes) -> None:
        if self._ending:
            self._trailers += len(line) + 2
            if self._trailers > _TRAILER_LIMIT or _NOT_IN_LINES.search(line):
                raise BadRequestError(400)
            self.done = not line
            return
        size = _CHUNK_LINE.fullmatch(line)
        if size is None:
            raise BadRequestError(400)
        length = int(size[1], 16)
        self._ending = not length
        self._left = length + 2 if length else 0

    def _check_beginning(self, data: bytes, at: int) -> None:
        limit = _TRAILER_LIMIT if self._ending else _CHUNK_LINE_LIMIT
        if len(data) - at >= limit or b"\n" in data[at:]:
            raise BadRequestError(400)
