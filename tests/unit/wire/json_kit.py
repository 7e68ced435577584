"""JSON as peers may write it: with odd numbers, escapes, spaces, and members nobody knows."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

LEAF = st.sampled_from(
    [
        "0",
        "-0",
        "1.0",
        "1.50",
        "1E5",
        "1e400",
        "-12345678901234567890123",
        "0.30000000000000000001",
        "null",
        "true",
        "false",
        '""',
        '"\\u0061\\/b"',
        '"\u4e16\\n"',
        '"\\ud83d\\ude00"',
    ]
)
SPACE = st.sampled_from(["", "", " ", "\n\t"])
KEY = st.sampled_from(["x", "y", "uri", "name", "type", "_meta", "content", "k/\u00e9", "z z"])


@st.composite
def _array(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    items = [draw(SPACE) + item + draw(SPACE) for item in draw(st.lists(inner, max_size=3))]
    return f"[{','.join(items)}]"


@st.composite
def _object(draw: st.DrawFn, inner: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(KEY, max_size=4, unique=True))
    return write({key: draw(inner) for key in keys}, draw(SPACE))


def write(members: dict[str, str], space: str = "") -> str:
    """An object of values that are JSON already."""
    pairs = (f"{json.dumps(key)}{space}:{space}{value}" for key, value in members.items())
    return f"{{{space}{f'{space},{space}'.join(pairs)}{space}}}"


JSON = st.recursive(LEAF, lambda inner: _array(inner) | _object(inner), max_leaves=8)
OBJECT = _object(JSON)


def read(data: bytes | str) -> Any:
    """The value, with every number as it was written and objects as lists of pairs in order."""
    return json.loads(
        data,
        parse_int=lambda text: ("number", text),
        parse_float=lambda text: ("number", text),
        object_pairs_hook=lambda pairs: ("object", pairs),
    )


def members(data: bytes | str) -> dict[str, Any]:
    """The members of an object, read like that."""
    kind, pairs = read(data)
    assert kind == "object"
    return dict(pairs)
