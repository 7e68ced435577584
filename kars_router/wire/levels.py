"""Log levels of MCP, and which of two is the more talkative.

Pure. Source: MCP 2025-11-25 "Logging" (the levels of RFC 5424, section 6.2.1).
"""

from __future__ import annotations

from typing import Final

# The least important first.
LEVELS: Final = (
    "debug",
    "info",
    "notice",
    "warning",
    "error",
    "critical",
    "alert",
    "emergency",
)
_RANK: Final = {level: rank for rank, level in enumerate(LEVELS)}


def passes(level: str, least: str) -> bool:
    """Whether a message of a level is wanted by somebody who named the least important one.

    A level that MCP does not know is treated as the most important.
    """
    return _RANK.get(level, len(LEVELS)) >= _RANK.get(least, 0)


def most_verbose(wanted: list[str]) -> str:
    """The level that satisfies everybody; "" if nobody wants any."""
    return min((level for level in wanted if level), key=lambda level: _RANK[level], default="")
