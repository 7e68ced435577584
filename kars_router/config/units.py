"""Durations and sizes as people write them, and back.

Pure. Durations are float seconds inside the program, sizes are whole bytes.
"""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction

LONGEST = 366 * 86_400
SMALLEST_SIZE = 1024
LARGEST_SIZE = 1 << 40

_DURATION_UNITS = {
    "d": Decimal(86_400),
    "h": Decimal(3_600),
    "m": Decimal(60),
    "s": Decimal(1),
    "ms": Decimal("0.001"),
}
_NUMBER = r"[0-9]{1,12}(?:\.[0-9]{1,9})?"
_DURATION = re.compile(
    "".join(rf"(?:(?P<{unit}>{_NUMBER}){unit})?" for unit in _DURATION_UNITS) + r"\Z"
)
_SIZE_UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
}
_SIZE = re.compile(rf"({_NUMBER}) ?({'|'.join(_SIZE_UNITS)})\Z")


def parse_duration(value: object) -> float:
    """Reads `300ms`, `5s`, `1m30s`, `1h`, `7d` or a plain number of seconds.

    Args:
        value: a string with its units in falling order, each at most once, or a number.

    Returns:
        Seconds, more than 0 and less than 366 days.

    Raises:
        ValueError: with the rest of a sentence that starts with the path.
    """
    if isinstance(value, str):
        parts = _DURATION.match(value)
        if not parts or not value:
            raise ValueError("must be a duration such as 300ms, 5s, 1m30s, 1h or 7d")
        amounts = parts.groupdict("0").items()
        seconds: Decimal | float = sum(
            (Decimal(amount) * _DURATION_UNITS[unit] for unit, amount in amounts), Decimal(0)
        )
    elif isinstance(value, int | float) and not isinstance(value, bool):
        seconds = value
    else:
        raise ValueError("must be a duration such as 300ms, 5s, 1m30s, 1h or 7d")
    # Written so that NaN fails, and before any conversion, so that no integer overflows. The
    # float is looked at as well: the smallest and the largest decimals round onto the bounds.
    if not (0 < seconds < LONGEST and 0 < float(seconds) < LONGEST):
        raise ValueError("must be longer than 0 and shorter than 366 days")
    return float(seconds)


def format_duration(seconds: float) -> str | float:
    """Writes seconds so that `parse_duration` gives the same number back.

    Returns:
        Units where the duration is a whole number of milliseconds, else the plain number.
    """
    whole = rest = round(seconds * 1000)
    if whole / 1000 != seconds:
        return seconds
    text = ""
    for unit, size in _DURATION_UNITS.items():
        count, rest = divmod(rest, int(size * 1000))
        text += f"{count}{unit}" if count else ""
    return text


def parse_size(value: object) -> int:
    """Reads a whole number of bytes, or a number with kB, MB, GB, KiB, MiB or GiB.

    Returns:
        Bytes, from 1 KiB to 1 TiB.

    Raises:
        ValueError: with the rest of a sentence that starts with the path.
    """
    if isinstance(value, str):
        parts = _SIZE.match(value)
        if not parts:
            raise ValueError("must be a size such as 65536, 64KiB or 4MiB")
        size = Fraction(parts[1]) * _SIZE_UNITS[parts[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        size = Fraction(value)
    else:
        raise ValueError("must be a size such as 65536, 64KiB or 4MiB")
    if size.denominator != 1:
        raise ValueError("must be a whole number of bytes")
    if not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ValueError("must be at least 1KiB and at most 1024GiB")
    return int(size)


def format_size(size: int) -> str | int:
    """Writes bytes in the largest binary unit that divides them, or as a plain number."""
    for unit in ("GiB", "MiB", "KiB"):
        if size % _SIZE_UNITS[unit] == 0:
            return f"{size // _SIZE_UNITS[unit]}{unit}"
    return size
