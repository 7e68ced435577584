"""What the docstrings of the schema's classes say, for those who only see the schema.

Pure: text to text. A field's words are looked for in its class first, then in those it inherits
from.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

from kars_router.config.marks import key_of

_ENTRY = re.compile(r"^(\w+): (.+)$", re.DOTALL)
_NAME = re.compile(r"`([a-z]+(?:_[a-z]+)+)`")


def describe(cls: type[Any]) -> str:
    """What a class says of itself, in one line."""
    return _line(_parts(cls)[0])


def describe_fields(cls: type[Any]) -> dict[str, str]:
    """What is said of each attribute of a class and its bases, in one line each."""
    found: dict[str, str] = {}
    for each in cls.__mro__:
        for name, text in _entries(_parts(each)[1]):
            found.setdefault(name, _line(text))
    return found


def _parts(cls: type[Any]) -> tuple[str, str]:
    """The text before `Attributes:` and the one after it."""
    text = inspect.cleandoc(cls.__doc__ or "")
    before, _, after = text.partition("Attributes:\n")
    return before, inspect.cleandoc(f"\n{after}")


def _entries(text: str) -> list[tuple[str, str]]:
    found = (_ENTRY.match(entry) for entry in re.split(r"\n(?=\S)", text))
    return [(match[1], match[2]) for match in found if match]


def _line(text: str) -> str:
    """One line, with keys as they are written in files, and null for None."""
    text = _NAME.sub(lambda match: f"`{key_of(match[1])}`", " ".join(text.split()))
    text = re.sub(r"\bNone\b", "null", text)
    return text[:1].upper() + text[1:]
