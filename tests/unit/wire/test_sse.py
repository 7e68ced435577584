from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.wire.sse import KEEPALIVE, Decoder, Event, EventTooLargeError, encode


def decode(*chunks: bytes, limit: int = 1 << 20) -> list[Event]:
    decoder = Decoder(limit)
    return [event for chunk in chunks for event in decoder.feed(chunk)]


LINE = st.sampled_from(
    [
        b"data: one",
        b"data:two",
        b"data",
        b"data:  padded",
        "data: a\u2028b\u0085c\x0bd\x0c".encode(),
        b"event: other",
        b"event",
        b"id: 7",
        b"id: a\0b",
        b"id",
        b"retry: 1500",
        b"retry: 1x",
        b": comment",
        b"unknown: field",
        "data: \u00e9\u4e16".encode(),
        b"",
        b"",
    ]
)
STREAM = st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=20)


def raw(lines: list[tuple[bytes, bytes]], start: bytes = b"") -> bytes:
    return start + b"".join(line + end for line, end in lines)


@given(STREAM, st.sampled_from([b"", b"\xef\xbb\xbf"]), st.lists(st.integers(0, 400), max_size=30))
def test_any_split_of_the_bytes_gives_the_same_events(
    lines: list[tuple[bytes, bytes]], start: bytes, cuts: list[int]
) -> None:
    data = raw(lines, start)
    whole, split = Decoder(), Decoder()
    places = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    pieces = [data[a:b] for a, b in pairwise(places)]
    one_by_one = [data[n : n + 1] for n in range(len(data))]
    expected = whole.feed(data)
    assert [event for piece in pieces for event in split.feed(piece)] == expected
    assert decode(*one_by_one) == expected
    assert (split.last_event_id, split.retry) == (whole.last_event_id, whole.retry)


@given(STREAM)
def test_the_kind_of_line_end_does_not_matter(lines: list[tuple[bytes, bytes]]) -> None:
    # CR and then LF of the next, empty line would read as one CRLF, so each kind stands alone.
    spellings = [raw([(line, end) for line, _ in lines]) for end in (b"\n", b"\r", b"\r\n")]
    assert decode(spellings[0]) == decode(spellings[1]) == decode(spellings[2])


@given(
    st.binary(max_size=200).filter(lambda data: b"\r" not in data),
    st.none() | st.text(st.characters(exclude_characters="\r\n\0", codec="utf-8"), max_size=20),
)
def test_what_is_encoded_is_decoded(data: bytes, ident: str | None) -> None:
    (event,) = decode(encode(data, ident=ident))
    assert (event.data, event.event) == (data, "message")
    assert event.id == ident or (ident == "" and event.id == "")


@given(st.binary(max_size=300), st.integers(1, 50))
def test_no_bytes_raise_anything_but_the_limit(data: bytes, limit: int) -> None:
    try:
        events = decode(data, limit=limit)
    except EventTooLargeError:
        assert len(data) > limit
    else:
        assert all(len(event.data) <= limit for event in events)


def test_only_cr_lf_and_crlf_end_a_line() -> None:
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    (event,) = decode(f"data: {text}\n\n".encode())
    assert event.data.decode() == text


def test_data_lines_are_joined_and_one_leading_space_is_dropped() -> None:
    assert decode(b"data: a\ndata:b\ndata:  c\ndata\n\n") == [Event(b"a\nb\n c\n")]


def test_the_byte_order_mark_is_skipped_once_even_in_pieces() -> None:
    assert decode(b"\xef", b"\xbb", b"\xbfdata: a\n\n") == [Event(b"a")]
    assert decode(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n") == []
    assert decode(b"\xef\xbbdata: a\n\n") == []
    assert decode(b"data: \xef\xbb\xbf\n\n") == [Event(b"\xef\xbb\xbf")]


def test_a_comment_is_no_event() -> None:
    assert decode(KEEPALIVE, b":\n\n", b": x\ndata: a\n\n") == [Event(b"a")]


def test_an_event_without_its_blank_line_is_not_dispatched() -> None:
    assert decode(b"data: a\n") == []


def test_an_empty_data_line_is_the_priming_event() -> None:
    assert decode(b"id: 1\ndata: \n\n") == [Event(b"", id="1")]


def test_an_id_alone_is_remembered_and_dispatches_nothing() -> None:
    decoder = Decoder()
    assert decoder.feed(b"id: 5\n\n") == []
    assert decoder.last_event_id == "5"
    assert decoder.feed(b"data: x\n\n") == [Event(b"x", id="5")]


def test_an_id_with_nul_is_ignored() -> None:
    decoder = Decoder()
    decoder.feed(b"id: good\n\nid: b\0ad\n\n")
    assert decoder.last_event_id == "good"


@pytest.mark.parametrize(
    ("field", "seconds"),
    [
        (b"retry: 1500", 1.5),
        (b"retry:0", 0.0),
        (b"retry: +5", None),
        (b"retry: -5", None),
        (b"retry: 1.5", None),
        (b"retry: ", None),
        (b"retry: 5 ", None),
        (b"retry: \xc2\xb2", None),
        (b"retry: 9999999999999", None),
    ],
)
def test_retry_takes_digits_only(field: bytes, seconds: float | None) -> None:
    decoder = Decoder()
    decoder.feed(field + b"\n\n")
    assert decoder.retry == seconds


def test_the_event_type_holds_for_one_event() -> None:
    events = decode(b"event: endpoint\ndata: a\n\ndata: b\n\nevent\ndata: c\n\n")
    assert [event.event for event in events] == ["endpoint", "message", "message"]


@pytest.mark.parametrize(
    "data",
    [
        b"data: " + b"x" * 101 + b"\n\n",
        b"data: " + b"x" * 101,
        b": " + b"x" * 200,
        b"data: xxxxxxxxx\n" * 11 + b"\n",
        b"data\n" * 101,
    ],
    ids=["one line", "a line without end", "a comment without end", "many lines", "empty lines"],
)
def test_an_event_beyond_the_limit_ends_the_stream(data: bytes) -> None:
    for pieces in ([data], [data[n : n + 7] for n in range(0, len(data), 7)]):
        with pytest.raises(EventTooLargeError):
            decode(*pieces, limit=100)


def test_the_limit_is_for_one_event_not_for_the_stream() -> None:
    assert len(decode(*[b"data: " + b"x" * 80 + b"\n\n"] * 50, limit=100)) == 50


@pytest.mark.parametrize("data", [b"a\nb", b"a\rb", b"a\r\nb"])
def test_a_line_break_in_what_is_encoded_becomes_a_data_line(data: bytes) -> None:
    assert decode(encode(data, event="e")) == [Event(b"a\nb", "e")]


def test_an_id_too_long_to_be_sent_back_is_ignored() -> None:
    decoder = Decoder()
    (event,) = decoder.feed(b"id: %b\ndata: 1\n\n" % (b"x" * 1024))
    assert event.id == decoder.last_event_id == "x" * 1024
    (event,) = decoder.feed(b"id: %b\ndata: 2\n\n" % (b"y" * 1025))
    assert (event.data, event.id, decoder.last_event_id) == (b"2", "x" * 1024, "x" * 1024)
