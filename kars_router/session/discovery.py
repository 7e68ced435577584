"""What stands in for a handshake in the stateless era: the server is asked what it can do.

Must not know what the session is for, or what a refusal says of the server.

Source: MCP 2026-07-28 "Discovery", "Versioning / Version Negotiation".
"""

from __future__ import annotations

from typing import Final

from kars_router.errors import CallFailed, HandshakeError
from kars_router.model import Failure, Phase, Sent
from kars_router.session.eras import OTHER_REVISION, supported
from kars_router.session.handshake import Request
from kars_router.transports.base import Connection
from kars_router.wire import eras, raw
from kars_router.wire.envelope import UNSUPPORTED_VERSION

DISCOVER: Final = "server/discover"


async def discover(
    connection: Connection, request: Request, *, server: str, seconds: float
) -> tuple[bytes, str]:
    """Finds out what a server can do, and which revision to speak with it.

    Args:
        connection: the session's; gets the revision, before the first message.
        request: makes a request on it.
        server: the server's configured name.
        seconds: the limit for one request; a second one is made if the server speaks another of
            our revisions than the one that it was asked in.

    Returns:
        the server's capabilities as a JSON object, and its instructions.

    Raises:
        HandshakeError: the server cannot be reached, refuses, or speaks no revision of ours.
    """
    try:
        answer = raw.fields(await _ask(connection, request, seconds)) or {}
    except CallFailed as error:
        raise HandshakeError(error.failure) from error
    offered = [raw.text(one) or "" for one in raw.items(answer.get("supportedVersions")) or ()]
    revision = _mutual(offered)
    if revision is None:
        detail = f"the server offers the revisions {', '.join(offered)[:80] or '(none)'}"
        raise HandshakeError(other_revision(server, detail))
    connection.revision = revision
    declared = answer.get("capabilities")
    return (
        b"{}" if declared is None or raw.fields(declared) is None else bytes(declared),
        raw.text(answer.get("instructions")) or "",
    )


async def _ask(connection: Connection, request: Request, seconds: float) -> bytes:
    connection.revision = eras.LATEST_STATELESS
    try:
        return await request(DISCOVER, b"", time_limit=seconds)
    except CallFailed as error:
        revision = _mutual(supported(error.failure.rpc_error))
        if error.failure.rpc_code != UNSUPPORTED_VERSION or revision is None:
            raise
    connection.revision = revision
    return await request(DISCOVER, b"", time_limit=seconds)


def _mutual(offered: list[str]) -> str | None:
    return next((ours for ours in eras.STATELESS_REVISIONS if ours in offered), None)


def other_revision(server: str, detail: str) -> Failure:
    """The failure of a server that speaks no revision of this era."""
    return Failure(
        server=server, phase=Phase.HANDSHAKE, sent=Sent.YES, code=OTHER_REVISION, detail=detail
    )
