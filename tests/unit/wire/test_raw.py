from __future__ import annotations

import msgspec
import pytest

from kars_router.wire import raw


@pytest.mark.parametrize("data", [None, b"", b"{", b"[]", b"1", b'"{}"', msgspec.Raw(b"null")])
def test_what_is_no_object(data: raw.Json | None) -> None:
    assert raw.fields(data) is None


@pytest.mark.parametrize("data", [None, b"", b"[", b"{}", b"1", b'"[]"', msgspec.Raw(b"null")])
def test_what_is_no_array(data: raw.Json | None) -> None:
    assert raw.items(data) is None


@pytest.mark.parametrize("data", [None, b"", b'"', b"{}", b"1", b'"\xff"', msgspec.Raw(b"null")])
def test_what_is_no_text(data: raw.Json | None) -> None:
    assert raw.text(data) is None


def test_what_is_read_stays_as_it_was_written() -> None:
    fields = raw.fields(msgspec.Raw(b'{"a":1.0, "b" : [ 1e5 ]}')) or {}
    assert {name: bytes(value) for name, value in fields.items()} == {"a": b"1.0", "b": b"[ 1e5 ]"}
    assert [bytes(item) for item in raw.items(b"[ 1E5,{} ]") or ()] == [b"1E5", b"{}"]
    assert raw.text(msgspec.Raw(rb'"\u0061\/"')) == "a/"


def test_null_is_no_value() -> None:
    assert [raw.is_null(data) for data in (None, b"null", b"0", b"", b"{}")] == [
        True,
        True,
        False,
        False,
        False,
    ]
