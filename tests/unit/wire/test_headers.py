from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kars_router.wire.headers import decode_value, encode_value


@given(st.text(max_size=20) | st.text("=?base64 aA\t", max_size=14))
@example("=?base64??=")
@example("=?base64?=")
def test_every_text_comes_back(text: str) -> None:
    header = encode_value(text)
    assert re.fullmatch(r"[!-~]([ -~]*[!-~])?", header)
    assert decode_value(header) == text
    assert decode_value(f" \t{header}\t ") == text


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("us-west1", "us-west1"),
        ("us west 1", "us west 1"),
        ("Hello, \u4e16\u754c", "=?base64?SGVsbG8sIOS4lueVjA==?="),
        (" padded ", "=?base64?IHBhZGRlZCA=?="),
        ("line1\nline2", "=?base64?bGluZTEKbGluZTI=?="),
        ("=?base64?literal?=", "=?base64?PT9iYXNlNjQ/bGl0ZXJhbD89?="),
        ("=?BASE64?SGVsbG8=?=", "=?BASE64?SGVsbG8=?="),
        ("=?base64?SGVsbG8=", "=?base64?SGVsbG8="),
        ("a\tb", "=?base64?YQli?="),
        ("\x7f", "=?base64?fw==?="),
        ("", "=?base64??="),
        ("\ud83d", "=?base64?Pw==?="),
    ],
)
def test_the_spelling(text: str, header: str) -> None:
    assert encode_value(text) == header


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("", ""),
        ("a\tb", "a\tb"),
        ("=?base64?SGVsbG8?=", None),
        ("=?base64?SGVs!!!bG8=?=", None),
        ("=?base64?SGVsbG9=?=", None),
        ("=?base64? SGVsbG8=?=", None),
        ("=?base64?/w==?=", None),
        ("=?base64?\u00e9?=", None),
        ("caf\u00e9", None),
        ("a\0b", None),
        ("a\n", None),
        ("=?BASE64?SGVsbG8=?=", "=?BASE64?SGVsbG8=?="),
        ("=?base64?=", "=?base64?="),
    ],
)
def test_what_other_peers_write(header: str, text: str | None) -> None:
    assert decode_value(header) == text
