"""Reading JSON that a peer may have got wrong: a value of another kind is no value at all.

For members that the router looks into, but that are not its own to refuse. Nothing here raises.
Must not know what the members mean.
"""

from __future__ import annotations

import msgspec

from kars_router.wire import jsonrpc

Json = bytes | msgspec.Raw


def fields(data: Json | None) -> dict[str, msgspec.Raw] | None:
    """The members of a JSON object, each as it was written; None if it is none."""
    if data is None:
        return None
    try:
        return jsonrpc.members(bytes(data))
    except jsonrpc.MalformedError:
        return None


def items(data: Json | None) -> list[msgspec.Raw] | None:
    """The elements of a JSON array, each as it was written; None if it is none."""
    if data is None:
        return None
    try:
        return jsonrpc.elements(bytes(data))
    except jsonrpc.MalformedError:
        return None


def text(data: Json | None) -> str | None:
    """The value of a JSON string; None if it is none."""
    if data is None:
        return None
    written = bytes(data)
    if not written.startswith(b'"'):  # what was split off by a decoder has no space around it
        return None
    try:
        value = jsonrpc.decode(written)
    except jsonrpc.MalformedError:
        return None
    return value if isinstance(value, str) else None


def is_null(data: Json | None) -> bool:
    """Whether there is no value, or it is null."""
    return data is None or bytes(data) == b"null"
