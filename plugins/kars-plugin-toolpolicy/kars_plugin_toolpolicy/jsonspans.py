"""Where things stand in a JSON text, so that one of them can be replaced and nothing else changes.

Pure. Works on the bytes as they were written, without decoding the rest. The text has to be JSON;
what comes of any other text is of no use, but ends.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

Span = tuple[int, int]

LITERAL: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_BRACKET: Final = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)
_BARE: Final = re.compile(rb"[^\s,\]}]*+")
_SPACE: Final = re.compile(rb"[ \t\r\n]*+")
_COLON: Final = re.compile(rb"[ \t\r\n]*+:[ \t\r\n]*+")
_INDEX: Final = re.compile(r"(?:0|[1-9][0-9]*)\Z")

# Lenient: what a decoder somewhere else would take must not raise here.
_decode: Final = json.JSONDecoder(strict=False).decode


def text_of(literal: bytes) -> str:
    """What a string says.

    Args:
        literal: it, in its quotes. Bytes that are no UTF-8 come out as lone surrogates.

    Raises:
        ValueError: an escape that JSON does not have.
    """
    if b"\\" not in literal:
        return literal[1:-1].decode("utf-8", "surrogateescape")
    text = _decode(literal.decode("utf-8", "surrogateescape"))
    assert isinstance(text, str)
    return text


def literal_of(text: str) -> bytes:
    """Writes a string, escaped only where it has to be."""
    try:
        return json.dumps(text, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a lone surrogate: only an escape can say it
        return json.dumps(text).encode()


def follows_colon(doc: bytes, end: int) -> int | None:
    """Where the value begins, if the literal that ends here is a member's name."""
    colon = _COLON.match(doc, end)
    return colon.end() if colon else None


def value_end(doc: bytes, start: int) -> int:
    """Where the value that begins here ends."""
    first = doc[start : start + 1]
    if first == b'"':
        literal = LITERAL.match(doc, start)
        return literal.end() if literal else len(doc)
    if first not in (b"{", b"["):
        bare = _BARE.match(doc, start)
        return bare.end() if bare else start
    depth = 0
    for token in _BRACKET.finditer(doc, start):
        sign = doc[token.start()]
        if sign in b"{[":
            depth += 1
        elif sign in b"}]":
            depth -= 1
            if not depth:
                return token.end()
    return len(doc)


def members(doc: bytes, start: int) -> Iterator[tuple[str, Span]]:
    """The members of the object that begins here, and where their values stand."""
    place = _after_space(doc, start + 1)
    while doc[place : place + 1] == b'"':
        end = value_end(doc, place)
        value = follows_colon(doc, end)
        if value is None:
            return
        stop = value_end(doc, value)
        yield text_of(doc[place:end]), (value, stop)
        place = _after_comma(doc, stop)


def elements(doc: bytes, start: int) -> Iterator[Span]:
    """Where the elements of the array that begins here stand."""
    place = _after_space(doc, start + 1)
    while place < len(doc) and doc[place : place + 1] not in (b"]", b"}", b",", b":"):
        stop = value_end(doc, place)
        yield place, stop
        place = _after_comma(doc, stop)


def member(doc: bytes, name: str) -> Iterator[Span]:
    """Where the members of that name stand in the outermost object; more than one if it repeats."""
    start = _after_space(doc, 0)
    if doc[start : start + 1] == b"{":
        for key, span in members(doc, start):
            if key == name:
                yield span


def parse_pointer(pointer: str) -> tuple[str, ...]:
    """The steps of a JSON pointer (RFC 6901) that is not empty."""
    return tuple(
        step.replace("~1", "/").replace("~0", "~") for step in pointer.removeprefix("/").split("/")
    )


def resolve(doc: bytes, start: int, steps: Sequence[str]) -> Iterator[Span]:
    """Where a pointer leads, from the value that begins here; `*` leads to every child.

    Names that repeat are all followed, since nobody knows which one a reader takes.
    """
    if not steps:
        yield start, value_end(doc, start)
        return
    step, rest = steps[0], steps[1:]
    first = doc[start : start + 1]
    if first == b"{":
        for key, (begin, _) in members(doc, start):
            if step in ("*", key):
                yield from resolve(doc, begin, rest)
    elif first == b"[" and (step == "*" or _INDEX.match(step)):
        for index, (begin, _) in enumerate(elements(doc, start)):
            if step == "*" or step == str(index):
                yield from resolve(doc, begin, rest)


def splice(doc: bytes, changes: Iterable[tuple[Span, bytes]]) -> bytes:
    """Replaces spans; one that begins within another, or where it ended, gives way.

    Returns:
        the same bytes object if there is nothing to replace.
    """
    parts: list[bytes] = []
    done = 0
    for (start, end), new in sorted(changes, key=lambda change: (change[0][0], -change[0][1])):
        if start < done:
            continue
        parts += (doc[done:start], new)
        done = end
    return b"".join((*parts, doc[done:])) if parts else doc


def _after_space(doc: bytes, place: int) -> int:
    space = _SPACE.match(doc, place)
    return space.end() if space else place


def _after_comma(doc: bytes, place: int) -> int:
    place = _after_space(doc, place)
    return _after_space(doc, place + 1) if doc[place : place + 1] == b"," else len(doc)
