"""Patterns for tool names: `*`, `?`, `[abc]`, `[a-z]`, `[!a]`; case matters.

Pure. What a match means is decided by whoever asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

LONGEST = 256


def check_glob(pattern: str) -> str | None:
    """Says what is wrong with a pattern.

    Returns:
        The rest of a sentence that starts with the path, or None if the pattern is good.
    """
    if not pattern:
        return "must not be empty"
    if pattern != pattern.strip() or not pattern.isprintable():
        return "must not hold white space at its ends, nor control characters"
    if len(pattern) > LONGEST:
        return f"must have at most {LONGEST} characters"
    rest = pattern
    while "[" in rest:
        rest = rest.split("[", 1)[1].removeprefix("!")
        # A bracket that comes first stands for itself, as in the shell.
        end = rest.find("]", 1)
        if end < 0:
            return "has a '[' without its ']'; write '[[]' for the character itself"
        rest = rest[end + 1 :]
    return None


def matches_any(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tool's own name matches one of the patterns; no patterns match nothing."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
