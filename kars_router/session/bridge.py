"""What has to change on the way between an agent of one era and a server of the other.

Owns the shapes that one era has and the other has not. Questions that a server asks go through
`Caller`, and have nothing to do here but for the ones that come as an error.

Source: MCP 2025-11-25 "URL Elicitation Required Error"; 2026-07-28 "Error Codes" (-32002 and -32042
are not to be sent any more).
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from kars_router.session.caller import Caller
from kars_router.session.questions import ELICITATION
from kars_router.wire import jsonrpc

URL_NEEDED: Final = -32042
NOT_FOUND: Final = -32002
_MOST: Final = 8


def error_for(caller: Caller, error: bytes) -> bytes:
    """A server's error as the caller's era knows it; everything but the code stays."""
    if not caller.multi_round or jsonrpc.error_code(error)[0] != NOT_FOUND:
        return error
    return jsonrpc.encode({**jsonrpc.members(error), "code": jsonrpc.INVALID_PARAMS})


async def visit_urls(caller: Caller, error: bytes) -> bool:
    """Sends the person behind a stateless-era agent to the pages that a server's error names.

    Handshake-era agents get the error itself.

    Returns:
        whether all pages were visited, so that the request may be made again.
    """
    if not caller.multi_round or jsonrpc.error_code(error)[0] != URL_NEEDED:
        return False
    pages = _pages(error)
    for page in pages:
        reply = await caller.ask(ELICITATION, page)
        answer: Any = jsonrpc.decode(reply.result) if reply.result is not None else None
        if not isinstance(answer, dict) or answer.get("action") != "accept":
            return False
    return bool(pages)


def _pages(error: bytes) -> list[bytes]:
    try:
        data = jsonrpc.members(bytes(jsonrpc.members(error).get("data", b"{}")))
        found = jsonrpc.elements(bytes(data.get("elicitations", b"[]")))
        return [
            jsonrpc.encode({**jsonrpc.members(bytes(page)), "mode": msgspec.Raw(b'"url"')})
            for page in found[:_MOST]
        ]
    except jsonrpc.MalformedError:
        return []
