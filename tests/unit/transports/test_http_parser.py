"""Requests as bytes, and responses as they arrive: syntax, framing, limits."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterable

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kars_router.transports.http_parser import HEAD_LIMIT, ResponseParser, serialise

OK = b"HTTP/1.1 200 OK\r\n"
SIZED = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = (
    OK + b"Transfer-Encoding: chunked\r\n\r\n"
    b"3;note=x\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: dropped\r\n\r\n"
)
WHOLE = {
    "sized": SIZED,
    "chunked": CHUNKED,
    "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    + SIZED,
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello",
}


def parse(pieces: Iterable[bytes], *, bodiless: bool = False) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser(bodiless=bodiless)
    body = b""
    for piece in pieces:
        assert len(piece) <= parser.room
        parser.feed(piece)
        body += parser.take()
    return parser, body


def refused(*pieces: bytes) -> str:
    with pytest.raises(httpx.RemoteProtocolError) as caught:
        parse(pieces)
    return str(caught.value)


@pytest.mark.parametrize("response", WHOLE.values(), ids=WHOLE)
def test_a_response_in_one_piece(response: bytes) -> None:
    parser, body = parse([response])
    assert (parser.status, body, parser.complete) == (200, b"hello", True)
    assert parser.reason == (b"OK" if b"200 OK" in response else b"")
    assert parser.keep_seconds == 4.0


@pytest.mark.parametrize("response", WHOLE.values(), ids=WHOLE)
def test_a_response_byte_by_byte(response: bytes) -> None:
    parser = ResponseParser()
    body = b""
    for index in range(len(response)):
        assert not parser.complete
        parser.feed(response[index : index + 1])
        body += parser.take()
    assert (parser.status, body, parser.complete) == (200, b"hello", True)
    assert b"trailer" not in dict(parser.headers)
    assert b"link" not in dict(parser.headers)
    assert parser.keep_seconds == 4.0


@settings(max_examples=60, deadline=None)
@given(
    body=st.binary(max_size=300),
    chunk=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 2000), max_size=12),
)
def test_any_chunking_and_any_split_give_the_same_body(
    body: bytes, chunk: int, cuts: list[int]
) -> None:
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    wire = OK + b"Transfer-Encoding: chunked\r\n\r\n"
    wire += b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    reads = [wire[a:b] for a, b in itertools.pairwise(edges) if a < b]
    parser, received = parse(reads)
    assert (received, parser.complete, parser.keep_seconds) == (body, True, 4.0)


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_a_status_without_a_body_ends_with_its_head(status: bytes) -> None:
    parser, body = parse([b"HTTP/1.1 " + status + b"\r\nContent-Length: 5\r\n\r\n"])
    assert (body, parser.complete, parser.keep_seconds) == (b"", True, 4.0)


@pytest.mark.parametrize(
    ("framing", "seconds"),
    [(b"Content-Length: 5\r\n", 4.0), (b"Transfer-Encoding: chunked\r\n", 4.0), (b"", 0.0)],
)
def test_the_answer_to_head_ends_with_its_head(framing: bytes, seconds: float) -> None:
    parser, body = parse([OK + framing + b"\r\n"], bodiless=True)
    assert (body, parser.complete, parser.keep_seconds) == (b"", True, seconds)


@pytest.mark.parametrize(
    "response",
    [SIZED, CHUNKED, OK + b"Transfer-Encoding: chunked\r\n\r\nno chunk"],
    ids=["sized", "chunked", "neither"],
)
def test_a_body_after_head_spoils_the_connection(response: bytes) -> None:
    parser, body = parse([response], bodiless=True)
    assert (body, parser.complete, parser.keep_seconds) == (b"", True, 0.0)


def test_a_body_without_framing_ends_with_the_connection() -> None:
    parser, body = parse([OK + b"\r\nhel", b"lo"])
    assert (body, parser.complete) == (b"hello", False)
    parser.eof()
    assert parser.complete
    assert parser.keep_seconds == 0.0


def test_an_end_after_the_end_only_ends_the_connection() -> None:
    parser, body = parse([SIZED])
    parser.eof()
    assert (body, parser.complete, parser.keep_seconds) == (b"hello", True, 0.0)


@pytest.mark.parametrize("response", [SIZED, CHUNKED], ids=["sized", "chunked"])
def test_an_end_before_the_end_is_an_error(response: bytes) -> None:
    for cut in range(len(response)):
        parser, _ = parse([response[:cut]] if cut else [])
        with pytest.raises(httpx.RemoteProtocolError, match="closed the connection"):
            parser.eof()
        assert not parser.complete


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"", 4.0),
        (b"Keep-Alive: timeout=5\r\n", 4.0),
        (b"Keep-Alive: max=100, timeout=75\r\n", 74.0),
        (b"keep-alive: Timeout = 3\r\n", 2.0),
        (b"Keep-Alive: timeout=1\r\n", 0.0),
        (b"Keep-Alive: timeout=0\r\n", 0.0),
        (b"Keep-Alive: nonsense\r\n", 4.0),
        (b"Connection: close\r\nKeep-Alive: timeout=5\r\n", 0.0),
    ],
)
def test_how_long_a_connection_may_idle(header: bytes, seconds: float) -> None:
    parser, _ = parse([OK + header + b"Content-Length: 0\r\n\r\n"])
    assert parser.keep_seconds == seconds


def test_http_1_0_is_kept_only_if_it_says_so() -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n"
    assert parse([head + b"\r\n"])[0].keep_seconds == 0.0
    assert parse([head + b"Connection: keep-alive\r\n\r\n"])[0].keep_seconds == 4.0


@pytest.mark.parametrize("surplus", [b"x", b"HTTP/1.1 200 OK\r\n", SIZED])
@pytest.mark.parametrize("together", [True, False])
def test_bytes_after_the_end_spoil_the_connection_and_nothing_else(
    surplus: bytes, together: bool
) -> None:
    parser, body = parse([SIZED + surplus] if together else [SIZED, surplus])
    assert (parser.status, body, parser.complete) == (200, b"hello", True)
    assert (parser.reason, parser.headers) == (b"OK", [(b"content-length", b"5")])
    assert parser.keep_seconds == 0.0


@pytest.mark.parametrize(
    "response",
    {
        "garbage": b"\x15\x03\x01\x00\x02\x02\x16",
        "a request": b"GET / HTTP/1.1\r\n\r\n",
        "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/0.9": b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
        "switching": b"HTTP/1.1 101 X\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "switching to nothing": b"HTTP/1.1 101 X\r\n\r\nxyz",
        "status 000": b"HTTP/1.1 000 X\r\nContent-Length: 0\r\n\r\n",
        "status of four digits": b"HTTP/1.1 2000 X\r\nContent-Length: 0\r\n\r\n",
        "both framings": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        "negative length": OK + b"Content-Length: -1\r\n\r\n",
        "huge length": OK + b"Content-Length: 99999999999999999999\r\n\r\n",
        "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n",
        "two codings": OK + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n",
        "chunked twice": OK + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n",
        "no coding": OK + b"Transfer-Encoding: identity\r\n\r\n",
        "bad chunk size": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "bad chunk end": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
        "folded header": OK + b"A: b\r\n c\r\n\r\n",
        "space before colon": OK + b"A : b\r\n\r\n",
        "NUL in a header": OK + b"A: b\0c\r\n\r\n",
        "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    }.items(),
    ids=lambda pair: pair[0],
)
def test_what_is_no_proper_response_is_refused(response: tuple[str, bytes]) -> None:
    assert refused(response[1]).startswith("malformed response: ")


@pytest.mark.parametrize("upgrade", [b"Connection: upgrade\r\nUpgrade: x\r\n", b""])
def test_a_protocol_switch_is_called_by_its_name(upgrade: bytes) -> None:
    assert "switches protocols" in refused(b"HTTP/1.1 101 X\r\n" + upgrade + b"\r\nxyz")


def test_white_space_around_a_value_is_not_part_of_it() -> None:
    parser, _ = parse([OK + b"A:  b c \t\r\nB:\r\nContent-Length: 0 \r\n\r\n"])
    assert parser.headers == [(b"a", b"b c"), (b"b", b""), (b"content-length", b"0")]


def test_the_first_bytes_of_garbage_are_shown() -> None:
    assert r"\x15\x03\x01" in refused(b"\x15\x03\x01\x00\x02\x02\x16")


def padded(size: int) -> bytes:
    start, end = OK + b"Pad: ", b"\r\nContent-Length: 0\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


def in_reads(data: bytes) -> ResponseParser:
    parser = ResponseParser()
    while data:
        size = min(parser.room, 1000)
        parser.feed(data[:size])
        data = data[size:]
    return parser


def test_a_head_of_just_the_limit_passes() -> None:
    assert in_reads(padded(HEAD_LIMIT)).complete


@pytest.mark.parametrize(
    "endless",
    [
        padded(HEAD_LIMIT + 1),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
        b"\r\n" * HEAD_LIMIT,
        OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"Trailer: x\r\n" * 20_000,
        OK + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 200_000,
    ],
    ids=["head", "interim responses", "blank lines", "trailers", "chunk extension"],
)
def test_a_head_or_framing_above_the_limit_is_refused(endless: bytes) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="more than 65536 bytes"):
        in_reads(endless)


def test_a_body_may_be_as_long_as_it_likes_in_small_chunks() -> None:
    wire = OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n"
    parser = in_reads(wire)
    assert parser.complete
    assert parser.take() == b"x" * 30_000


def test_framing_counts_only_since_the_last_piece_of_the_body() -> None:
    parser = ResponseParser()
    parser.feed(OK + b"Transfer-Encoding: chunked\r\n\r\n")
    for _ in range(200):
        parser.feed(b"1;" + b"n" * 1000 + b"\r\n")
        parser.feed(b"x\r\n")
        assert parser.take() == b"x"


def test_a_request_is_head_and_body_in_one() -> None:
    request = httpx.Request(
        "POST", "http://h:81/p?q=1", content=b"{}", headers={"Content-Type": "application/json"}
    )
    assert serialise(request) == (
        b"POST /p?q=1 HTTP/1.1\r\nhost: h:81\r\n"
        b"Content-Type: application/json\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_host_and_length_are_what_they_are() -> None:
    headers = {"Host": "evil", "Content-Length": "99", "Transfer-Encoding": "chunked"}
    request = httpx.Request("POST", "http://Good.test:80/", content=b"{}", headers=headers)
    assert serialise(request) == (
        b"POST / HTTP/1.1\r\nhost: good.test\r\ncontent-length: 2\r\n\r\n{}"
    )


def test_a_get_has_no_length_and_an_empty_post_has_one() -> None:
    assert b"content-length" not in serialise(httpx.Request("GET", "http://h/"))
    assert b"content-length: 0\r\n" in serialise(httpx.Request("POST", "http://h/"))


@pytest.mark.parametrize(
    "request_",
    [
        httpx.Request("GET", "http://h/", headers={"a": "b\r\nhost: evil"}),
        httpx.Request("GET", "http://h/", headers={"a": "b\nc"}),
        httpx.Request("GET", "http://h/", headers={"a": "b\0"}),
        httpx.Request("GET", "http://h/", headers={"a: b\r\nc": "d"}),
        httpx.Request("GET", "http://h/", headers={"": "d"}),
        httpx.Request("GET / HTTP/1.1\r\nx:", "http://h/"),
    ],
    ids=["CRLF", "LF", "NUL", "name", "empty name", "method"],
)
def test_what_would_split_a_request_is_refused(request_: httpx.Request) -> None:
    with pytest.raises(httpx.LocalProtocolError, match="not allowed"):
        serialise(request_)


def test_a_streamed_request_is_refused() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"x"

    with pytest.raises(httpx.LocalProtocolError, match="does not stream"):
        serialise(httpx.Request("POST", "http://h/", content=body()))
