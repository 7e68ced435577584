from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.config.units import (
    LARGEST_SIZE,
    LONGEST,
    SMALLEST_SIZE,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300ms", 0.3),
        ("5s", 5.0),
        ("1m30s", 90.0),
        ("1h", 3600.0),
        ("7d", 604_800.0),
        ("1.5h", 5400.0),
        ("1d2h3m4s5ms", 93_784.005),
        ("365d", 31_536_000.0),
        (5, 5.0),
        (0.25, 0.25),
        ("0.1s", 0.1),
    ],
)
def test_durations_are_seconds(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "5",
        "s",
        "5 s",
        "5S",
        "30s1m",
        "5s5s",
        "-5s",
        "1e3s",
        ".5s",
        "5s\n",
        "\u0665s",
        "1us",
        True,
        None,
        [5],
    ],
)
def test_what_is_no_duration(wrong: object) -> None:
    with pytest.raises(ValueError, match="must be a duration such as"):
        parse_duration(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        0,
        "0s",
        -1,
        "366d",
        LONGEST,
        10**400,
        math.inf,
        -math.inf,
        math.nan,
        "365d23h59m59.999999999s",
        5e-324 / 2,
    ],
)
def test_durations_out_of_range(wrong: object) -> None:
    with pytest.raises(ValueError, match="longer than 0 and shorter than 366 days"):
        parse_duration(wrong)


@given(st.floats(min_value=0, max_value=LONGEST, exclude_min=True, exclude_max=True))
def test_durations_survive_being_written(seconds: float) -> None:
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(300.0, "5m"), (90.0, "1m30s"), (0.3, "300ms"), (604_800.0, "7d"), (0.0001, 0.0001)],
)
def test_durations_are_written_in_units(seconds: float, text: object) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (65_536, 65_536),
        ("4MiB", 4 << 20),
        ("64KiB", 64 << 10),
        ("1GiB", 1 << 30),
        ("1.5 MiB", 3 << 19),
        ("2kB", 2000),
        ("1MB", 10**6),
        ("2048B", 2048),
        ("1024GiB", 1 << 40),
    ],
)
def test_sizes_are_bytes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("4M", "such as"),
        ("4mib", "such as"),
        ("65536", "such as"),
        ("-4MiB", "such as"),
        (4.5, "such as"),
        (True, "such as"),
        (None, "such as"),
        ("1024.5B", "whole number"),
        (SMALLEST_SIZE - 1, "at least"),
        (4, "at least"),
        (LARGEST_SIZE + 1, "at most"),
        (10**4000, "at most"),
    ],
)
def test_what_is_no_size(wrong: object, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_size(wrong)


@given(st.integers(SMALLEST_SIZE, LARGEST_SIZE))
def test_sizes_survive_being_written(size: int) -> None:
    assert parse_size(format_size(size)) == size


@given(st.text(alphabet="0123456789.dhmsBkKMGi ", max_size=20) | st.text())
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse, top in ((parse_duration, LONGEST), (parse_size, LARGEST_SIZE)):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert 0 < value <= top
