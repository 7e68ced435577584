"""The examples at the end of a command's help, all in one shape.

Knows no command. A test has click parse each of the lines, so that none outlives its options.
"""

from __future__ import annotations


def examples(*lines: tuple[str, str]) -> str:
    """Lays out examples for click's `epilog`.

    Args:
        lines: for each, what it is for, and the command line.

    Returns:
        A paragraph that click leaves as it is. Each line can be pasted into a shell.
    """
    shown = [f"  # {what}\n  {line}" for what, line in lines]
    return "\n".join(["\b", "Examples:", *shown])
