"""Requests as bytes: what is taken, what is refused, and that pieces do not matter."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kars_router.front.http_request import (
    HEAD_LIMIT,
    BadRequestError,
    ChunkedBody,
    Head,
    SizedBody,
    take_head,
)

HOST = b"host: localhost\r\n"
LINE = b"GET / HTTP/1.1\r\n"


def taken(data: bytes) -> Head:
    found = take_head(data)
    assert found is not None
    assert found[1] == b""
    return found[0]


def refused(data: bytes) -> int:
    with pytest.raises(BadRequestError) as caught:
        take_head(data)
    return caught.value.status


def test_a_head_says_what_is_asked_for() -> None:
    data = b"POST /mcp/a%20b?x=1 HTTP/1.1\r\nHost: h:1\r\nX-A:  b c\t \r\nx-a:\r\n\r\n"
    found = take_head(data + b"body")
    assert found is not None
    head, rest = found
    assert (head.method, head.target, head.version) == ("POST", b"/mcp/a%20b?x=1", "1.1")
    assert head.headers == [(b"host", b"h:1"), (b"x-a", b"b c"), (b"x-a", b"")]
    assert (head.length, head.keep, head.expects, rest) == (0, True, False, b"body")


@pytest.mark.parametrize(
    ("line", "fields", "keep"),
    [
        (LINE, b"", True),
        (LINE, b"connection: keep-alive\r\n", True),
        (LINE, b"connection: close\r\n", False),
        (LINE, b"Connection: keep-alive, CLOSE\r\n", False),
        (LINE, b"connection: closed\r\n", True),
        (b"GET / HTTP/1.0\r\n", b"", False),
        (b"GET / HTTP/1.0\r\n", b"connection: keep-alive\r\n", False),
    ],
)
def test_whether_a_connection_goes_on(line: bytes, fields: bytes, keep: bool) -> None:
    assert taken(line + HOST + fields + b"\r\n").keep is keep


@pytest.mark.parametrize(
    ("fields", "length", "expects"),
    [
        (b"content-length: 12\r\n", 12, False),
        (b"content-length: 012 \r\n", 12, False),
        (b"transfer-encoding: Chunked\r\n", None, False),
        (b"content-length: 1\r\nExpect: 100-Continue\r\n", 1, True),
        (b"content-length: 1\r\nexpect: the unexpected\r\n", 1, False),
        (b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\n", 0, False),
        (b"upgrade: websocket\r\nconnection: upgrade\r\n", 0, False),
    ],
)
def test_what_a_head_says_of_the_body(fields: bytes, length: int | None, expects: bool) -> None:
    head = taken(LINE + HOST + fields + b"\r\n")
    assert (head.length, head.expects) == (length, expects)


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"/", b"/"),
        (b"//x", b"//x"),
        (b"http://localhost", b"/"),
        (b"http://LOCALHOST?x", b"/?x"),
        (b"HTTP://localhost/mcp?x=http://y/", b"/mcp?x=http://y/"),
        (b"https://localhost/mcp", b"/mcp"),
        (b"*", b"*"),
    ],
)
def test_a_target_in_each_form(target: bytes, path: bytes) -> None:
    assert taken(b"OPTIONS %b HTTP/1.1\r\n%b\r\n" % (target, HOST)).target == path


@pytest.mark.parametrize("target", [b"http://evil.example/mcp", b"http://localhost:80/"])
def test_a_target_with_another_authority_than_the_host(target: bytes) -> None:
    assert refused(b"GET %b HTTP/1.1\r\n%b\r\n" % (target, HOST)) == 400


@pytest.mark.parametrize(
    "data",
    [
        LINE + b"\r\n",
        LINE + HOST + HOST + b"\r\n",
        b"GET / HTTP/1.0\r\n" + HOST + HOST + b"\r\n",
        LINE + HOST + b"content-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
        LINE + HOST + b"transfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
        LINE + HOST + b"content-length: 1\r\ncontent-length: 1\r\n\r\n",
        LINE + HOST + b"content-length: 1\r\ncontent-length: 2\r\n\r\n",
        LINE + HOST + b"content-length: 1, 1\r\n\r\n",
        LINE + HOST + b"content-length: +1\r\n\r\n",
        LINE + HOST + b"content-length: -1\r\n\r\n",
        LINE + HOST + b"content-length: 0x1\r\n\r\n",
        LINE + HOST + b"content-length: 1_0\r\n\r\n",
        LINE + HOST + b"content-length:\r\n\r\n",
        LINE + HOST + b"content-length: 99999999999999999999999\r\n\r\n",
        LINE + HOST + b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        LINE + HOST + b"transfer-encoding: chunked, identity\r\n\r\n",
        LINE + HOST + b"transfer-encoding: \x0bchunked\r\n\r\n",
        b"GET / HTTP/1.0\r\n" + HOST + b"transfer-encoding: chunked\r\n\r\n",
        LINE + HOST + b"x: a\r\n b\r\n\r\n",
        LINE + b" x: a\r\n" + HOST + b"\r\n",
        LINE + HOST + b"x : a\r\n\r\n",
        LINE + HOST + b"x y: a\r\n\r\n",
        LINE + HOST + b": a\r\n\r\n",
        LINE + HOST + b"x\r\n\r\n",
        LINE + HOST + b"x: a\0b\r\n\r\n",
        LINE + HOST + b"x: a\x1fb\r\n\r\n",
        LINE + HOST + b"x: a\rb\r\n\r\n",
        LINE + HOST + b"x\xe4: a\r\n\r\n",
        LINE + HOST + b"x: a\n\r\n",
        LINE + HOST.replace(b"\r\n", b"\n") + b"\n",
        b"GET / HTTP/1.1\n" + HOST + b"\r\n",
        b"GET /\r\n" + HOST + b"\r\n",
        b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.1 \r\n" + HOST + b"\r\n",
        b"GET / HTTP/1.2\r\n" + HOST + b"\r\n",
        b"GET / HTTP/2.0\r\n" + HOST + b"\r\n",
        b"GET / ICE/1.0\r\n" + HOST + b"\r\n",
        b"GET / HTTP/01.1\r\n" + HOST + b"\r\n",
        b"PRI * HTTP/2.0\r\n\r\n",
        b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /a\x7f HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET mcp HTTP/1.1\r\n" + HOST + b"\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b" GET",
        b"GET / HTTP/1.1\nhost: x\n\n",
    ],
)
def test_what_is_no_request(data: bytes) -> None:
    assert refused(data) == 400


@pytest.mark.parametrize(
    "data",
    [
        LINE + HOST + b"transfer-encoding: gzip, chunked\r\n\r\n",
        b"NOSUCH / HTTP/1.1\r\n" + HOST + b"\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    ],
)
def test_what_is_not_done_here(data: bytes) -> None:
    assert refused(data) == 501


def test_line_ends_before_a_head_are_skipped() -> None:
    assert taken(b"\r\n\r\n" + LINE + HOST + b"\r\n").method == "GET"


@pytest.mark.parametrize("size", [HEAD_LIMIT - 1, HEAD_LIMIT, HEAD_LIMIT + 1, 3 * HEAD_LIMIT])
def test_a_head_has_a_limit_however_it_comes(size: int) -> None:
    rest = LINE + HOST + b"x: \r\n\r\n"
    data = rest.replace(b"x: ", b"x: " + b"a" * (size - len(rest)))
    assert len(data) == size
    if size <= HEAD_LIMIT:
        assert taken(data).headers[-1][1].startswith(b"aaa")
        assert take_head(data[:-1]) is None
        return
    assert refused(data) == 431
    assert take_head(data[: HEAD_LIMIT - 1]) is None
    assert refused(data[:HEAD_LIMIT]) == 431


@pytest.mark.parametrize("blanks", [b"\r\n", b"\n"])
def test_blank_lines_are_not_waited_for_without_end(blanks: bytes) -> None:
    assert take_head(blanks) is None
    assert refused(blanks * HEAD_LIMIT) in (400, 431)


HEADS = [
    LINE + HOST + b"\r\n",
    b"\r\n" + LINE + HOST + b"\r\n",
    b"POST /x HTTP/1.1\r\n" + HOST + b"content-length: 5\r\nx:\r\n\r\n",
    LINE + HOST + b"x: a\n\r\n\r\n",
    LINE + HOST + b"transfer-encoding: gzip\r\n\r\n",
    LINE + HOST + HOST + b"\r\n",
    LINE + HOST + b"x: " + b"a" * HEAD_LIMIT + b"\r\n\r\n",
    b"get / HTTP/1.1\r\n" + HOST + b"\r\n",
]


def outcome(data: bytes, cuts: list[int]) -> object:
    """What becomes of a head that comes in pieces."""
    ends = [*sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    for end in ends:
        try:
            found = take_head(data[:end])
        except BadRequestError as error:
            return error.status
        if found is not None:
            head = found[0]
            rest = found[1] + data[end:]
            return (head.method, head.target, head.headers, head.length, head.keep, rest)
    return None


@given(st.sampled_from(HEADS), st.lists(st.integers(1, 120), max_size=8))
def test_it_does_not_matter_in_which_pieces_a_head_comes(data: bytes, cuts: list[int]) -> None:
    assert outcome(data + b"rest", cuts) == outcome(data + b"rest", [])


def drain(body: SizedBody | ChunkedBody, parts: list[bytes]) -> tuple[bytes, bytes]:
    """What a body in pieces comes to, and what is left."""
    got, left = b"", b""
    for part in parts:
        left += part
        if not body.done:
            piece, left = body.take(left)
            got += piece
    return got, left


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = [0, *sorted({min(cut, len(data)) for cut in cuts}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


@given(st.binary(max_size=60), st.lists(st.integers(0, 80), max_size=6))
def test_a_sized_body_in_pieces(content: bytes, cuts: list[int]) -> None:
    body = SizedBody(len(content))
    assert drain(body, cut(content + b"next", cuts)) == (content, b"next")
    assert body.done


@st.composite
def chunked(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A content, and how it comes in chunks."""
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
    extension = st.sampled_from([b"", b";a", b" ;a=b", b';a="b c"', b"\t"])
    sizes = st.sampled_from([b"%x", b"%X", b"0%x", b"000%X"])
    wire = b""
    for chunk in chunks:
        wire += draw(sizes) % len(chunk) + draw(extension) + b"\r\n" + chunk + b"\r\n"
    wire += b"0" + draw(extension) + b"\r\n"
    wire += b"".join(draw(st.lists(st.sampled_from([b"x: y\r\n", b"z:\r\n"]), max_size=2)))
    return b"".join(chunks), wire + b"\r\n"


@given(chunked(), st.lists(st.integers(0, 200), max_size=8))
@example((b"a", b"1\r\na\r\n0\r\n\r\n"), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
def test_a_chunked_body_in_pieces(case: tuple[bytes, bytes], cuts: list[int]) -> None:
    content, wire = case
    body = ChunkedBody()
    assert drain(body, cut(wire + b"GET", cuts)) == (content, b"GET")
    assert body.done


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\na\r\n",
        b"0x1\r\na\r\n",
        b"1_0\r\n",
        b" 1\r\na\r\n",
        b"1\na\r\n",
        b"1\n",
        b"1 2\r\na\r\n",
        b"1;a\rb\r\na\r\n",
        b"1;a\0\r\na\r\n",
        b"1\r\nab\r\n",
        b"1\r\na0\r\n",
        b"1\r\na\n0\r\n",
        b"1\r\na\r0",
        b"ffffffffffffffff\r\n",
        b"1" * 300,
        b"1;" + b"a" * 300 + b"\r\n",
        b"0\r\nx: y\n",
        b"0\r\nx: \0\r\n\r\n",
        b"0\r\n" + b"x: y\r\n" * 4000,
        b"0\r\n" + b"x" * 20_000,
    ],
)
def test_what_is_no_chunked_body(wire: bytes) -> None:
    for cuts in ([], list(range(len(wire))) if len(wire) < 1000 else list(range(0, 24_000, 97))):
        with pytest.raises(BadRequestError) as caught:
            drain(ChunkedBody(), cut(wire, cuts))
        assert caught.value.status == 400
