"""Which strings pass for a version, and which comes after which."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import InvalidVersion, Version

from kars_router.update.versions import canonical, is_newer, is_version


@pytest.mark.parametrize(
    "text", ["0.1.0", "1", "10.20.30", "2!1.0", "1.0a1", "1.0b2", "1.0rc3", "1.0.post1", "1.0.dev4"]
)
def test_canonical_public_versions_are_versions(text: str) -> None:
    assert is_version(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v1.0",
        "1.0 ",
        " 1.0",
        "1.0\n",
        "1.00",
        "01.0",
        "1..0",
        "1.0-1",
        "1.0alpha1",
        "1.0RC1",
        "1.0+local",
        "1.0/../../etc",
        "../1.0",
        "1.0%2e",
        "--index-url",
        "-1.0",
        "1.0;rm",
        "1.0\x1b[31m",
        "1.0\N{RIGHT-TO-LEFT OVERRIDE}",
        "\N{ARABIC-INDIC DIGIT ONE}.0",
        "1.0\r\nHost: evil",
        "1" * 5000,
        ".".join("1" * 200),
        "1.0.0.0.0.0.0.0.0.0.0",
        "999999999999.0",
        "latest",
        "1.x",
    ],
)
def test_nothing_else_is(text: str) -> None:
    assert not is_version(text)
    assert not is_newer(text, "0.0.1")


@given(st.text(alphabet="0123456789.!abcrcpostdev+-_ v/%\n", max_size=20) | st.text(max_size=20))
def test_what_passes_is_a_version_in_the_one_spelling_and_nothing_more(text: str) -> None:
    if is_version(text):
        assert str(Version(text)) == text
        assert set(text) <= set("0123456789.!abcrcpostdev")
    else:
        try:
            version = Version(text)
        except InvalidVersion:
            return
        assert str(version) != text or version.local or len(version.release) > 9


@pytest.mark.parametrize(
    ("text", "than", "newer"),
    [
        ("0.2.0", "0.1.0", True),
        ("0.10.0", "0.9.0", True),
        ("0.1.0", "0.1.0", False),
        ("0.1.0", "0.1.0.dev1", True),
        ("0.1.0", "0.1.0rc1", True),
        ("0.1.0rc1", "0.1.0", False),
        ("0.1.0.post1", "0.1.0", True),
        ("0.1.0", "0.1.0+mine", False),
        ("0.1.1", "0.1.0+mine", True),
        ("1!0.1", "2.0", True),
        ("0.2.0", "nonsense", False),
        ("nonsense", "0.1.0", False),
    ],
)
def test_order(text: str, than: str, newer: bool) -> None:
    assert is_newer(text, than) is newer


def test_other_spellings_are_brought_into_the_one() -> None:
    assert canonical(Version("v1.0-ALPHA.1")) == "1.0a1"
    assert canonical(Version("1.0+local")) is None
