"""HTTP/1.1 messages as bytes: a request to send, a response as it arrives.

Owns the syntax and the framing: where a response ends, whether its connection may carry another
one, what is refused. Must not know streams, clocks or pools.

Source: RFC 9112 (sections are named where they decide something). The parser underneath is
llhttp, through httptools, with every leniency off; docs/decisions/0003-http-transport.md has the
figures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import httptools
import httpx

READ_SIZE: Final = 64 * 1024
LARGE_READ_SIZE: Final = 256 * 1024  # for bodies that have filled a smaller one
HEAD_LIMIT: Final = 64 * 1024
DEFAULT_KEEP_SECONDS: Final = 4.0  # uvicorn, node and hypercorn close after 5 s unless told
_KEEP_MARGIN: Final = 1.0  # for the way there: the server counts from when it had answered

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_REQUEST_HEAD: Final = re.compile(
    _TOKEN + rb" [!-~]+ HTTP/1\.1\r\n(?:" + _TOKEN + rb": [^\0\r\n]*\r\n)+"
)
_KEEP_TIMEOUT: Final = re.compile(rb"(?i)\btimeout\s*=\s*\"?(\d{1,9})")
# What this module writes itself, because a wrong one would send a request to the wrong virtual
# host or make the server find its end in the wrong place.
_OWN_FIELDS: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})
_LENGTH_ALWAYS: Final = frozenset({"POST", "PUT", "PATCH"})


def write_head(method: str, url: httpx.URL, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Write a request line and the headers, for requests that have these in common.

    Host comes from the URL, whatever the headers say.

    Returns:
        The head without what depends on the body; `with_body` makes a message of it.

    Raises:
        httpx.LocalProtocolError: a method, target or header holds characters that would end it
            early (RFC 9112 section 11.1, "Response Splitting").
    """
    line = (method.encode(), url.raw_path, url.netloc)
    parts = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % line]
    for name, value in headers:
        if name.lower() not in _OWN_FIELDS:
            parts.append(b"%b: %b\r\n" % (name, value))
    head = b"".join(parts)
    # Well-formed as a whole is not enough: a value that smuggles in a whole line would pass.
    if head.count(b"\r\n") != len(parts) + 1 or not _REQUEST_HEAD.fullmatch(head):
        raise httpx.LocalProtocolError(
            "the request line or a header holds a character that is not allowed there"
        )
    return head


def with_body(head: bytes, method: str, content: bytes) -> bytes:
    """Write a message from what `write_head` has made for a method, and a body.

    Returns:
        Head and body, ready for one send. Content-Length comes from the body.
    """
    if content or method in _LENGTH_ALWAYS:
        return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(content), content)
    return head + b"\r\n"


def serialise(request: httpx.Request) -> bytes:
    """Write a request with its whole body.

    Host comes from the URL and Content-Length from the body, whatever the headers say.

    Args:
        request: its content must be bytes, not an iterator.

    Returns:
        Head and body, ready for one send.

    Raises:
        httpx.LocalProtocolError: the body is an iterator, or a method, target or header holds
            characters that would end it early (RFC 9112 section 11.1, "Response Splitting").
    """
    try:
        content = request.content
    except httpx.RequestNotRead:
        raise httpx.LocalProtocolError(
            "the request body must be bytes: this transport does not stream requests",
            request=request,
        ) from None
    try:
        head = write_head(request.method, request.url, request.headers.raw)
    except httpx.LocalProtocolError as exc:
        exc.request = request
        raise
    return with_body(head, request.method, content)


class ResponseParser:
    """One response, fed with bytes until it is complete.

    Interim (1xx) responses are skipped; 101 is refused, as nothing here asks for an upgrade.
    Trailers are read and dropped.

    A body without Content-Length and chunked coding ends where the connection ends (RFC 9112
    section 6.3, rule 8). Such an end cannot be told from a server that died, so the body counts
    as complete; what is carried here (a JSON value, events with a blank line after each) shows
    by itself that it was cut. A reset connection is always an error, never an end.

    Attributes:
        status: the final status; 0 until `head_complete`.
        reason: the reason phrase.
        headers: names in lower case, in the order of arrival.
        head_complete: status and headers of the final response are there.
        complete: the body is there to its end as well.

    Args:
        bodiless: the response has no body whatever its headers say (it answers a HEAD).
    """

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_fault",
        "_keep_seconds",
        "_llhttp",
        "_overhead",
        "_pieces",
        "_read_size",
        "_sized",
        "complete",
        "head_complete",
        "headers",
        "reason",
        "status",
    )

    def __init__(self, *, bodiless: bool = False) -> None:
        self.status = 0
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_complete = False
        self.complete = False
        self._bodiless = bodiless
        self._sized = False
        self._chunked = False
        self._keep_seconds = 0.0
        self._fault = ""
        self._pieces: list[bytes] = []
        self._overhead = 0
        self._read_size = READ_SIZE
        self._llhttp: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    @property
    def room(self) -> int:
        """The most bytes to read before the next `feed`, at least 1.

        Cut so that a head, its interim responses included, never takes more than `HEAD_LIMIT`.
        """
        return self._read_size if self.head_complete else HEAD_LIMIT - self._overhead

    @property
    def has_body(self) -> bool:
        """Whether a part of the body has come that was not taken yet."""
        return bool(self._pieces)

    @property
    def keep_seconds(self) -> float:
        """How long the connection may idle before its next request; 0 if it must be closed."""
        return self._keep_seconds if self.complete else 0.0

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes, at most `room` of them.

        Raises:
            httpx.RemoteProtocolError: this is no HTTP/1.x response, it has ambiguous framing, or
                its head (or what stands between two pieces of its body) exceeds the limit.
        """
        if self._llhttp is None:
            self._keep_seconds = 0.0  # bytes that nobody asked for: the next response is suspect
            return
        try:
            self._llhttp.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as exc:
            if not self.complete:
                shown = "" if self._overhead else f" in {bytes(data[:32])!r}"
                text = self._fault or f"{exc}{shown}"
                raise httpx.RemoteProtocolError(f"malformed response: {text}") from exc
            self._keep_seconds = 0.0
        if self._fault:
            raise httpx.RemoteProtocolError(f"malformed response: {self._fault}")
        if self.complete:
            self._llhttp = None  # it refers back to this object; spare the garbage collector
        elif self._pieces:
            self._overhead = 0
            if len(data) >= READ_SIZE:
                self._read_size = LARGE_READ_SIZE
        else:
            self._overhead += len(data)
            if self._overhead >= HEAD_LIMIT:
                raise httpx.RemoteProtocolError(
                    f"response head or chunk framing of more than {HEAD_LIMIT} bytes"
                )

    def eof(self) -> None:
        """Note that the server has closed its side.

        Raises:
            httpx.RemoteProtocolError: the response is not complete; the text says which part of
                it is missing.
        """
        self._keep_seconds = 0.0
        self._llhttp = None
        if self.complete:
            return
        if not self.head_complete:
            raise httpx.RemoteProtocolError("the server closed the connection without a response")
        if self._sized or self._chunked:
            raise httpx.RemoteProtocolError(
                "the server closed the connection in the middle of a response body"
            )
        self.complete = True

    def take(self) -> bytes:
        """Return the body that has come since the last call; empty if there is none."""
        pieces = self._pieces
        if not pieces:
            return b""
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        return data

    # What follows is called by httptools. Once the response is complete, all of it is about bytes
    # that belong to no request of ours.

    def on_message_begin(self) -> None:
        """A response (interim ones too) begins."""
        if self.complete:
            self._keep_seconds = 0.0

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason phrase."""
        if not self.head_complete:
            self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or a trailer once the head is complete."""
        if not self.head_complete:
            self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """A head ended: decide on framing and keep-alive."""
        llhttp = self._llhttp
        if self.head_complete or llhttp is None:
            return
        status = llhttp.get_status_code()
        if not llhttp.get_http_version().startswith("1."):
            self._fault = "its version is not HTTP/1.x"
        elif status < 100:
            self._fault = f"its status is {status:03}"
        elif status == 101:
            self._fault = "it switches protocols, which was not asked for"
        elif status >= 200:
            self.status = status
            self.head_complete = True
            self.complete = self._bodiless
            keep = self._read_framing()
            self._keep_seconds = keep if llhttp.should_keep_alive() else 0.0

    def on_body(self, data: bytes) -> None:
        """A piece of the body, without its chunk framing."""
        if self.complete:
            self._keep_seconds = 0.0
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        """A response ended; an interim one makes way for the next."""
        if self.head_complete:
            self.complete = True
        else:
            self.reason = b""
            self.headers.clear()

    def _read_framing(self) -> float:
        keep = DEFAULT_KEEP_SECONDS
        for name, value in self.headers:
            if name == b"content-length":
                self._sized = True
            elif name == b"transfer-encoding":
                # llhttp refuses it beside a Content-Length. Another coding than chunked was not
                # asked for (no TE was sent) and would reach the caller undecoded.
                if self._chunked or value.lower() != b"chunked":
                    self._fault = "its transfer coding is not chunked"
                self._chunked = True
            elif name == b"keep-alive" and (match := _KEEP_TIMEOUT.search(value)):
                keep = max(0.0, int(match[1]) - _KEEP_MARGIN)
        return keep
