"""Cursors of our own lists: opaque to agents, readable to us, worth nothing to an attacker.

Source: MCP 2025-11-25 "Pagination" (cursors are opaque; a bad one is -32602).
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from kars_router.errors import AgentError
from kars_router.wire import jsonrpc


def make(*parts: str | None) -> str:
    """A cursor that holds the parts."""
    return base64.urlsafe_b64encode(jsonrpc.encode(parts)).decode("ascii")


def read(cursor: str, *types: type | tuple[type, ...]) -> list[Any]:
    """The parts of a cursor.

    Args:
        cursor: what an agent sent.
        types: the type of each part.

    Raises:
        AgentError: it was not made here.
    """
    try:
        value = jsonrpc.decode(base64.b64decode(cursor, altchars=b"-_", validate=True))
    except (binascii.Error, ValueError) as error:
        raise AgentError(jsonrpc.INVALID_PARAMS, "unknown cursor") from error
    if (
        not isinstance(value, list)
        or len(value) != len(types)
        or not all(isinstance(part, kind) for part, kind in zip(value, types, strict=True))
    ):
        raise AgentError(jsonrpc.INVALID_PARAMS, "unknown cursor")
    return value
