"""How a call's end looks to the agent (design 5.4).

Pure. Must not let URLs, tokens or internal errors through: only the outcome's own sentence and
codes appear.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from kars_router.model import CallOutcome, SessionReset
from kars_router.wire import jsonrpc

CALL_META: Final = "kars.azure.com/call"
SESSION_META: Final = "kars.azure.com/session"
T = TypeVar("T")


def tool_result(server: str, outcome: CallOutcome) -> bytes:
    """The result of a tools/call that did not end with a server's error.

    A server's result passes unchanged, but for the notice of lost state, which is put in front of
    the content and into `_meta`.

    Args:
        server: the server that was called.
        outcome: how the call ended.
    """
    if outcome.result is None:
        return failed(server, outcome)
    if outcome.reset is None:
        return outcome.result
    return with_notice(server, outcome.result, outcome.reset)


def failed_request(server: str, outcome: CallOutcome) -> bytes:
    """The error object for any other request that the router could not complete."""
    return jsonrpc.encode(
        {
            "code": jsonrpc.INTERNAL_ERROR,
            "message": outcome.message,
            "data": {CALL_META: _meta(server, outcome)},
        }
    )


def carries_notice(result: bytes) -> bool:
    """Whether a result that `tool_result` made for an outcome with a reset tells of it."""
    return SESSION_META.encode() in result


def failed(server: str, outcome: CallOutcome) -> bytes:
    """The tool result for a call that the router could not complete."""
    return jsonrpc.encode(
        {
            "content": [{"type": "text", "text": outcome.message}],
            "isError": True,
            "_meta": {CALL_META: _meta(server, outcome)},
        }
    )


def with_notice(server: str, result: bytes, reset: SessionReset) -> bytes:
    """A server's result with the notice that its session's state was lost before the call.

    All else in the result stays as the server wrote it.
    """
    try:
        value = jsonrpc.members(result)
    except jsonrpc.MalformedError:
        return result  # no result that MCP knows: it cannot carry a notice
    notice = {
        "type": "text",
        "text": (
            f"Notice: the state of the session with the server {server} was lost "
            f"({reset.reason}). Open pages, logins, variables and the like from before this call "
            "are gone; the result that follows was made without them."
        ),
    }
    content = _parts(jsonrpc.elements, value.get("content"), b"[]")
    meta = _parts(jsonrpc.members, value.get("_meta"), b"{}")
    return jsonrpc.encode(
        {
            **value,
            "content": [notice, *content],
            "_meta": {
                **meta,
                SESSION_META: {
                    "reset": True,
                    "generation": reset.generation,
                    "reason": reset.reason,
                },
            },
        }
    )


def _meta(server: str, outcome: CallOutcome) -> dict[str, object]:
    meta: dict[str, object] = {
        "fate": outcome.fate.value,
        "code": outcome.code,
        "server": server,
        "retryable": outcome.retryable,
    }
    if outcome.retry_after is not None:
        meta["retryAfter"] = round(outcome.retry_after, 3)
    return meta


def _parts(read: Callable[[bytes], T], part: msgspec.Raw | None, default: bytes) -> T:
    try:
        return read(default if part is None else bytes(part))
    except jsonrpc.MalformedError:
        return read(default)
