"""Text of strangers in one line."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.update.text import one_line


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("plain", "plain"),
        ("  two \t words\r\n", "two words"),
        ("\x1b[31mred\x1b[0m", "[31mred[0m"),
        ("a\x07b\x00c\x9b2J", "abc2J"),
        (
            "a\N{RIGHT-TO-LEFT OVERRIDE}b\N{LEFT-TO-RIGHT ISOLATE}c\N{POP DIRECTIONAL ISOLATE}",
            "abc",
        ),
        ("a\N{ZERO WIDTH SPACE}b\N{ZERO WIDTH JOINER}c\N{SOFT HYPHEN}d\ufeff", "abcd"),
        ("a\N{LINE SEPARATOR}b\N{NO-BREAK SPACE}c\N{IDEOGRAPHIC SPACE}d", "a b c d"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("tags \U000e0041\U000e0042", "tags"),
        ("Grüße, 世界 🎉", "Grüße, 世界 🎉"),
        ("a" * 100, "a" * 100),
        ("a" * 101, "a" * 99 + "…"),
        ("word " * 40, ("word " * 19).strip() + "…"),
        ("x, " + "y" * 200, "x, " + "y" * 96 + "…"),
    ],
)
def test_lines(text: str, line: str) -> None:
    assert one_line(text) == line


@given(st.text(alphabet=st.characters(), max_size=400))
def test_what_comes_out_is_one_short_line_of_visible_characters(text: str) -> None:
    line = one_line(text)
    assert len(line) <= 100
    assert line.isprintable()
    assert line == line.strip()
    assert not {unicodedata.category(each) for each in line} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert one_line(line) == line


def test_a_flood_is_not_walked_through() -> None:
    assert one_line("\N{ZERO WIDTH SPACE}" * 10_000_000 + "late") == ""
