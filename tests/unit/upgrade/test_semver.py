"""Versions of charts."""

from __future__ import annotations

import pytest

from kars_router.upgrade.semver import is_older, is_version

# https://semver.org/#spec-item-11
ORDERED = (
    *("0.9.0", "0.10.0-rc.1", "0.10.0", "1.0.0-1", "1.0.0-2", "1.0.0-10", "1.0.0-alpha"),
    *("1.0.0-alpha.1", "1.0.0-alpha.beta", "1.0.0-beta", "1.0.0-beta.2", "1.0.0-beta.11"),
    *("1.0.0-rc.1", "1.0.0", "1.0.1", "2.0.0"),
)


def test_the_order() -> None:
    for place, first in enumerate(ORDERED):
        for other, second in enumerate(ORDERED):
            assert is_older(first, second) is (place < other)


def test_builds_do_not_count() -> None:
    assert is_older("1.0.0+a", "1.0.0+b") is False
    assert is_older("1.0.0-rc.1+a", "1.0.0") is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1.2",
        "v1.2.3",
        "01.2.3",
        "1.2.3-",
        "1.2.3-01",
        "1.2.3+",
        "1.2.3 ",
        "1.2.3\n",
        "^1.2.3",
        ">=1.2.3",
        "--version",
        "1.2.3/../x",
        "1.2.\u0663",
        f"1.2.3-{'a' * 64}",
        "1.2.9999999999",
    ],
)
def test_what_is_none(text: str) -> None:
    assert not is_version(text)
    assert is_older(text, "1.2.3") is None
    assert is_older("1.2.3", text) is None


def test_what_is_one() -> None:
    assert all(map(is_version, [*ORDERED, "1.2.3+build.5", "1.0.0-x-y.0a"]))
