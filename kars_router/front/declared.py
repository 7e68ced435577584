"""What of an agent's declared capabilities is kept in its session id.

Pure.

Source: MCP 2025-11-25 "Lifecycle / Capability Negotiation".
"""

from __future__ import annotations

from typing import Final

import msgspec

from kars_router.wire import jsonrpc

# A session id travels in a header of every request.
_MOST_BYTES: Final = 1024
_EMPTY: Final = msgspec.Raw(b"{}")
# What a server can ask a client for, and what it is told of each.
_KNOWN: Final = {
    "sampling": ("tools", "context"),
    "elicitation": ("form", "url"),
    "roots": ("listChanged",),
}


def keep(capabilities: bytes | None) -> bytes:
    """The capabilities, as a JSON object of at most 1 KiB.

    Args:
        capabilities: as the agent sent them, as JSON, or None.

    Returns:
        them unchanged; of longer ones only what a server can make use of, and of that only names
        if it is still too long. An empty object if they are none.
    """
    declared = _members(capabilities)
    if declared is None:
        return b"{}"
    if capabilities is not None and len(capabilities) <= _MOST_BYTES:
        return capabilities
    known = {name: declared[name] for name in _KNOWN if name in declared}
    whole = jsonrpc.encode(known)
    if len(whole) <= _MOST_BYTES:
        return whole
    return jsonrpc.encode({name: _shortened(name, value) for name, value in known.items()})


def _shortened(name: str, value: msgspec.Raw) -> dict[str, msgspec.Raw]:
    parts = _members(bytes(value)) or {}
    return {
        part: parts[part] if len(bytes(parts[part])) <= len(b"false") else _EMPTY
        for part in _KNOWN[name]
        if part in parts
    }


def _members(value: bytes | None) -> dict[str, msgspec.Raw] | None:
    try:
        return None if value is None else jsonrpc.members(value)
    except jsonrpc.MalformedError:
        return None
