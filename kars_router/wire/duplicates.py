"""Objects that name a member twice: two readers may take two different values.

RFC 8259, section 4, leaves open which one counts. What is judged by one reader and acted upon by
another must not be such. Must not know what the members mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from kars_router.wire import jsonrpc


class _AmbiguousError(ValueError):
    pass


def ambiguous(data: bytes, decoded: Any) -> bool:
    """Whether an object anywhere in a JSON value names a member twice, however it is escaped.

    Args:
        data: the value.
        decoded: the same, decoded.

    Returns:
        True, too, for what cannot be told.
    """
    if jsonrpc.encode(decoded) == data:
        return False  # written just as it was read, as compact writers do
    try:
        # As it was decoded: halves of characters in names may become alike by being mended.
        _decode(jsonrpc.mend(data).decode())
    except (ValueError, RecursionError):
        return True
    return False


def misspelt(names: Iterable[str], known: Mapping[str, str]) -> str | None:
    """A known name of which another spelling is there, which some readers take for it.

    Decoders of Go's standard library, for one, heed no case, and take the last one.

    Args:
        names: the names of members that are there.
        known: names by what `str.casefold` makes of them.

    Returns:
        the known name, or None.
    """
    for name in names:
        meant = known.get(name.casefold())
        if meant is not None and meant != name:
            return meant
    return None


def _unique(pairs: list[tuple[str, Any]]) -> None:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _AmbiguousError


def _nothing(_: str) -> None:
    return None


# Numbers are not looked at, however many digits they have.
_decode: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_nothing, parse_float=_nothing
).decode
