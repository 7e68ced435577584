"""Versions of charts: which texts are one, and which comes after another (Semantic Versioning 2.0).

Pure. A version goes into the arguments of Helm, which would take a range or an option as well.
"""

from __future__ import annotations

import re
from typing import Final

_NUMBER: Final = r"(?:0|[1-9][0-9]{0,8})"
_PART: Final = r"(?:0|[1-9][0-9]{0,17}|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
_VERSION: Final = re.compile(
    rf"(?P<core>{_NUMBER}\.{_NUMBER}\.{_NUMBER})"
    rf"(?:-(?P<pre>{_PART}(?:\.{_PART})*))?"
    r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?"
)
_LONGEST: Final = 64

Key = tuple[tuple[int, ...], bool, tuple[tuple[bool, int, str], ...]]


def is_version(text: str) -> bool:
    """Whether this is a version, in full and without a `v`."""
    return len(text) <= _LONGEST and _VERSION.fullmatch(text) is not None


def key(text: str) -> Key | None:
    """What versions are ordered by; None if it is no version."""
    found = _VERSION.fullmatch(text) if is_version(text) else None
    if found is None:
        return None
    before = tuple(
        # Numbers come before words.
        (not each.isdigit(), int(each) if each.isdigit() else 0, each)
        for each in (found["pre"] or "").split(".")
        if each
    )
    return tuple(int(each) for each in found["core"].split(".")), not before, before


def is_older(text: str, than: str) -> bool | None:
    """Whether one version comes before another; None if that cannot be said."""
    first, second = key(text), key(than)
    return None if first is None or second is None else first < second
