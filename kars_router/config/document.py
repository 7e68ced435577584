"""Text to plain data and back: YAML 1.2 and JSON, read without trusting it, and JSON written.

Owns the limits on length, size and depth, and which of the two readers a text gets. Plain JSON is
read as such; all else is YAML's (`yaml_document`), errors in JSON included, so that there is one
wording for them. Knows no schema.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import msgspec

from kars_router.config.problems import Problem, invalid

LONGEST = 1 << 20  # bytes; also the limit on a Kubernetes ConfigMap
LARGEST = 50_000  # values, keys and every use of an alias counted
DEEPEST = 64

# What YAML 1.2 allows in a stream (section 5.1), less what no configuration needs.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Characters of a text to JSON, ends of lines or marks to the YAML reader.
_AMBIGUOUS = re.compile("[\x85\u2028\u2029\ufeff]")
_UNWRITTEN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def decode(data: bytes) -> str:
    """Decodes a file.

    Raises:
        InvalidError: if it is too long or no UTF-8 text; a byte order mark is dropped.
    """
    if len(data) > LONGEST:
        raise invalid(f"is longer than {LONGEST >> 20} MiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise invalid(f"is not UTF-8 text: byte {error.start} is wrong") from None


def parse_document(text: str) -> tuple[object, list[Problem]]:
    """Reads one document.

    Args:
        text: YAML or JSON.

    Returns:
        Plain data (None for an empty text), and what is wrong in it that the data cannot show,
        such as doubled keys; of those the first is kept.

    Raises:
        InvalidError: with one problem if the text cannot be read at all.
    """
    strange = _FORBIDDEN.search(text)
    if strange:
        raise invalid(f"{_place(text, strange.start())}: holds the character {strange[0]!a}")
    plain = _parse_json(text)
    if plain is not None:
        return plain, []
    # Late, as its parser takes more memory than anything that is read here.
    from kars_router.config.yaml_document import parse_yaml

    return parse_yaml(text)


def write_document(data: Mapping[str, Any]) -> str:
    """Writes what `parse_document` reads back, as JSON and so without a YAML parser.

    Args:
        data: plain data, its keys strings and its numbers finite.

    Returns:
        Lines for people: indented, keys in their order, and what is printable as it is. The same
        data always gives the same text.
    """
    text = msgspec.json.format(msgspec.json.encode(data), indent=2).decode()
    return _UNWRITTEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def _parse_json(text: str) -> object:
    """The data, if the text is JSON, YAML does not read other data, and there is nothing to report.

    Two kinds of text are taken here that YAML refuses: with a tab before the first token, and with
    a key of more than about 1,000 characters.
    """
    if _AMBIGUOUS.search(text):
        return None
    try:
        data: object = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_refuse)
        return data if _count(data) <= LARGEST else None
    except (ValueError, RecursionError):
        return None


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is given twice")
    return made


def _refuse(word: str) -> NoReturn:
    # Python reads NaN and Infinity, which are not JSON; to YAML they are strings.
    raise ValueError(word)


def _count(value: object, depth: int = 0) -> int:
    """How many values there are, keys included.

    Raises:
        ValueError: they are nested too deep, or one is half of a surrogate pair.
    """
    if isinstance(value, str):
        value.encode()
        return 1
    if not isinstance(value, dict | list):
        return 1
    if depth >= DEEPEST:
        raise ValueError("is nested too deep")
    parts = [*value, *value.values()] if isinstance(value, dict) else value
    return 1 + sum(_count(part, depth + 1) for part in parts)


def _place(text: str, position: int) -> str:
    before = text[:position]
    column = position - (before.rfind("\n") + 1) + 1
    return f"line {before.count(chr(10)) + 1}, column {column}"
