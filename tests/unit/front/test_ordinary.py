"""Which requests are ordinary, and that h11 would have read them the same way."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit.front.lean_kit import request

from kars_router.front.ordinary import take_ordinary

LINE = "POST /mcp HTTP/1.1"
ORDINARY = {
    "get": request(),
    "post": request(LINE, "content-type: application/json", body=b"{}"),
    "delete": request("DELETE /mcp/box HTTP/1.1", "mcp-session-id: a"),
    "keep-alive": request(LINE, "connection: Keep-Alive"),
    "query": request("GET /mcp?a=b HTTP/1.1"),
    "body on its way": request(LINE, "content-length: 7"),
    "another one behind": request() + request("BREW / HTTP/1.1"),
}
OTHERS = {
    "nothing": b"",
    "half a head": request()[:-2],
    "head": request("HEAD / HTTP/1.1"),
    "options": request("OPTIONS * HTTP/1.1"),
    "old": request("GET / HTTP/1.0"),
    "absolute": request("GET http://localhost/ HTTP/1.1"),
    "close": request(LINE, "connection: close"),
    "several options": request(LINE, "connection: keep-alive, te"),
    "upgrade": request("GET / HTTP/1.1", "connection: upgrade", "upgrade: h2c"),
    "upgrade alone": request("GET / HTTP/1.1", "Upgrade: websocket"),
    "expect": request(LINE, "expect: 100-continue", body=b"a"),
    "chunked": request(LINE, "transfer-encoding: chunked") + b"0\r\n\r\n",
    "both lengths": request(LINE, "Transfer-Encoding: chunked", body=b"a"),
    "two lengths": request(LINE, "content-length: 1", "content-length: 1") + b"a",
    "list of lengths": request(LINE, "content-length: 1, 1") + b"a",
    "long length": request(LINE, f"content-length: {'0' * 15}1") + b"a",
    "length of words": request(LINE, "content-length: one"),
    "no length": request(LINE, "content-length:"),
    "blank line first": b"\r\n" + request(),
    "bare line feeds": request().replace(b"\r\n", b"\n"),
    "one bare line feed": request("GET / HTTP/1.1", "a: b\nc: d"),
    "bare return": request("GET / HTTP/1.1", "a: b\rc: d"),
    "folded": request("GET / HTTP/1.1", "a: b\r\n c"),
    "space before colon": request(LINE, "content-length : 1") + b"a",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": request("GET / HTTP/1.1", "host: other"),
    "too long": request("GET / HTTP/1.1", "a: " + "b" * 16_384),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_agents_send_is_ordinary(name: str) -> None:
    assert take_ordinary(ORDINARY[name]) is not None


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_clearly_ordinary_is_left_alone(name: str) -> None:
    assert take_ordinary(OTHERS[name]) is None


# Each piece is mostly as it should be, so that most requests have at most a few faults.
def mostly(good: list[bytes], bad: list[bytes]) -> st.SearchStrategy[bytes]:
    return st.integers(0, 11).flatmap(lambda n: st.sampled_from(good if n else bad))


ENDS = mostly([b"\r\n"], [b"\n", b"\r", b"\r\r\n", b"\r\n\r\n", b"", b"\n\r", b"\r\n ", b"\0"])
COLONS = mostly([b": ", b":", b":\t "], [b" :", b"", b"\t: ", b"::", b" ", b";"])
NAMES = mostly(
    [b"Host", b"host", b"accept", b"X-a", b"content-type", b"content-length", b"Content-Length"],
    [
        *(b"transfer-encoding", b"connection", b"expect", b"upgrade", b"TE", b"content_length"),
        *(b"content-length ", b" host", b"\xe4", b"a b", b"", b"a\x0b", b"a(b", b"a\x7f"),
    ],
)
VALUES = mostly(
    [b"localhost", b"0", b"1", b"2", b"3", b"a, b", b"", b"a \t", b"\xe4\xff", b'"a\\"', b"a  b"],
    [
        *(
            b"chunked",
            b"close",
            b"keep-alive",
            b"100-continue",
            b"h2c",
            b"+1",
            b"-1",
            b"1 1",
            b"01",
        ),
        *(
            b"1,1",
            b"1_0",
            b"0x1",
            b"\x01",
            b"a\x7f",
            b"a\x0bb",
            b"a\0",
            b"a\x85",
            b"\xa0",
            b"9" * 21,
        ),
    ],
)
HEADERS = st.tuples(NAMES, COLONS, VALUES, ENDS).map(b"".join)
LENGTHS = st.tuples(
    mostly([b"content-length", b"Content-Length"], [b"content-length ", b"Content-length\t"]),
    COLONS,
    mostly(
        [b"0", b"1", b"2", b"3", b"2 "],
        [b"+1", b"1,1", b"0x2", b"", b"\xb2", b"18446744073709551618"],
    ),
    ENDS,
).map(b"".join)
LINES = st.tuples(
    mostly([b"POST", b"GET", b"DELETE"], [b"post", b"PUT", b"HEAD", b"BREW", b"POST\t", b"\0"]),
    mostly([b" "], [b"  ", b"\t", b"", b"\r\n"]),
    mostly(
        [b"/", b"/mcp?a=b", b"/%C3%A4#a", b"//a"], [b"*", b"http://a/", b"/\xe4", b"/\x7f", b""]
    ),
    mostly(
        [b" HTTP/1.1"],
        [b" HTTP/1.0", b" HTTP/1.10", b" HTTP/2.0", b" http/1.1", b"", b" HTTP/1.1 "],
    ),
    ENDS,
).map(b"".join)
HOSTS = st.tuples(mostly([b"host"], [b"hosts"]), COLONS, mostly([b"a:1"], [b""]), ENDS).map(
    b"".join
)
BODIES = st.binary(max_size=4)
REQUESTS = st.tuples(
    LINES,
    HOSTS,
    st.one_of(st.just(b""), LENGTHS),
    st.lists(HEADERS, max_size=3).map(b"".join),
    ENDS,
    BODIES,
).map(b"".join)


def by_h11(data: bytes) -> tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes, bytes]:
    """Method, target, headers, body as far as it came, and what is behind it."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(data)
    head = connection.next_event()
    assert type(head) is h11.Request
    assert head.http_version == b"1.1"
    body = b""
    while type(event := connection.next_event()) is h11.Data:
        body += event.data
    assert event in (h11.NEED_DATA, h11.PAUSED) or type(event) is h11.EndOfMessage
    assert not connection.they_are_waiting_for_100_continue
    return head.method, head.target, list(head.headers), body, connection.trailing_data[0]


@given(REQUESTS)
@example(request(LINE, "a: \x85", body=b"ab"))
@example(request(LINE, "a: b \t ", "content-length: 002") + b"abc")
def test_h11_reads_ordinary_requests_the_same_way(data: bytes) -> None:
    found = take_ordinary(data)
    if found is None:
        return
    head, rest = found
    assert head.length is not None
    method, target, headers, body, behind = by_h11(data)
    assert (head.method.encode(), head.target, head.headers) == (method, target, headers)
    assert (rest[: head.length], rest[head.length :]) == (body, behind)


def test_random_requests_are_ordinary_often_enough() -> None:
    found = {True: 0, False: 0}

    @given(REQUESTS)
    def count(data: bytes) -> None:
        found[take_ordinary(data) is not None] += 1

    count()
    assert min(found.values()) >= sum(found.values()) / 10
