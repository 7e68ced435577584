"""Text of strangers, made fit for one line of a terminal.

Pure. Imported by every command that may print a notice, so it imports next to nothing.
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 100
_ELLIPSIS: Final = "\N{HORIZONTAL ELLIPSIS}"


def one_line(text: str, longest: int = LONGEST) -> str:
    """Removes what is not printable, and shortens what is left.

    Control characters, marks that turn the direction of writing, other invisible ones, and lone
    surrogates are removed; whitespace of every kind becomes single spaces.

    Args:
        text: from a changelog, a cache or a file.
        longest: in characters, the mark of shortening included; at least 1.
    """
    # What is far beyond the limit need not be looked at; a flood of invisible characters may hide
    # the text, and that is fine.
    words = "".join(
        each if each.isprintable() else " " if each.isspace() else ""
        for each in text[: 20 * longest]
    ).split()
    line = " ".join(words)
    if len(line) <= longest:
        return line
    cut = line[: longest - 1]
    # At the end of a word, unless that loses much of the line.
    shorter = cut.rpartition(" ")[0]
    return (shorter if len(shorter) > longest // 2 else cut).rstrip(" ,;:.") + _ELLIPSIS
