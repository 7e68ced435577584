from __future__ import annotations

import pytest

from kars_router.config.globs import check_glob, matches_any
from kars_router.config.headers import check_header_name, check_header_value


@pytest.mark.parametrize(
    ("pattern", "name", "matches"),
    [
        ("*", "anything", True),
        ("browser_*", "browser_click", True),
        ("browser_*", "Browser_click", False),
        ("browser_*", "my_browser_click", False),
        ("read?", "reads", True),
        ("read?", "read", False),
        ("[a-c]x", "bx", True),
        ("[!a-c]x", "bx", False),
        ("[[]x", "[x", True),
        ("[]]x", "]x", True),
        ("a.b", "axb", False),
    ],
)
def test_patterns(pattern: str, name: str, matches: bool) -> None:
    assert check_glob(pattern) is None
    assert matches_any(name, [pattern]) is matches


def test_no_pattern_matches_nothing() -> None:
    assert not matches_any("x", [])
    assert matches_any("x", ["y", "x"])


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("", "empty"),
        (" a", "white space"),
        ("a\n", "white space"),
        ("a\x00b", "control"),
        ("[a", "']'"),
        ("[!]", "']'"),
        ("[]", "']'"),
        ("[a][b", "']'"),
        ("a" * 257, "256"),
    ],
)
def test_bad_patterns(pattern: str, why: str) -> None:
    assert why in (check_glob(pattern) or "")


@pytest.mark.parametrize("name", ["X-Api-Key", "x_tenant", "Accept-Language", "User-Agent"])
def test_headers_that_may_be_set(name: str) -> None:
    assert check_header_name(name) is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Authorization", "bearerFromEnv"),
        ("COOKIE", "browser"),
        ("Origin", "browser"),
        ("Host", "router itself"),
        ("Mcp-Session-Id", "router itself"),
        ("mcp-anything", "router itself"),
        ("Last-Event-ID", "router itself"),
        ("Content-Type", "router itself"),
        ("Connection", "single connection"),
        ("transfer-encoding", "single connection"),
        ("Content-Length", "single connection"),
        ("TE", "single connection"),
        ("", "not a header name"),
        ("X Y", "not a header name"),
        ("X-A:", "not a header name"),
        ("X-A\r\nY", "not a header name"),
        ("X-Ü", "not a header name"),
    ],
)
def test_headers_that_may_not(name: str, why: str) -> None:
    assert why in (check_header_name(name) or "")


@pytest.mark.parametrize("value", ["a", "a b", "a\tb", '{"k": "v"}', "~" * 8192])
def test_header_values(value: str) -> None:
    assert check_header_value(value) is None


@pytest.mark.parametrize("value", ["", " a", "a ", "a\r\nX: y", "a\0", "ü", "~" * 8193])
def test_bad_header_values_are_not_repeated(value: str) -> None:
    complaint = check_header_value(value) or ""
    assert complaint.startswith("must be")
    assert "X: y" not in complaint
