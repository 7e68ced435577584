"""Progress tokens: each hop has its own, because a token is unique among one peer's requests only.

Pure. Everything but the token stays as it was written.

Source: MCP 2025-11-25 "Progress"; the same in 2026-07-28.
"""

from __future__ import annotations

import msgspec

from kars_router.wire import jsonrpc


def replace_token(params: bytes, own: bytes) -> tuple[bytes, bytes]:
    """Puts a token of this hop in the place of the requester's.

    Args:
        params: a request's params as JSON, or empty.
        own: the token for the next hop, as JSON.

    Returns:
        the params for the next hop, and the requester's token as JSON; empty if it asked for no
        progress, and then the params are the same bytes.
    """
    if b"progressToken" not in params:
        return params, b""
    try:
        members = jsonrpc.members(params)
        meta = jsonrpc.members(bytes(members.get("_meta", b"{}")))
    except jsonrpc.MalformedError:
        return params, b""
    token = bytes(meta.get("progressToken", b""))
    if not token:
        return params, b""
    meta["progressToken"] = msgspec.Raw(own)
    members["_meta"] = msgspec.Raw(jsonrpc.encode(meta))
    return jsonrpc.encode(members), token


def token_of(params: bytes) -> bytes:
    """The token of a progress notification, as JSON; empty if it has none."""
    try:
        return bytes(jsonrpc.members(params).get("progressToken", b""))
    except jsonrpc.MalformedError:
        return b""


def with_token(params: bytes, token: bytes) -> bytes:
    """A progress notification's params with another token."""
    return jsonrpc.encode({**jsonrpc.members(params), "progressToken": msgspec.Raw(token)})
