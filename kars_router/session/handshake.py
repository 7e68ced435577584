"""The handshake of a session: initialize and what follows it.

Must not know what the session is for.

Source: MCP 2025-11-25 "Lifecycle / Initialization".
"""

from __future__ import annotations

from typing import Final, Protocol

import msgspec
import trio

from kars_router.errors import CallFailed, HandshakeError
from kars_router.model import Failure, Phase, Sent
from kars_router.transports.base import Connection, Delivery
from kars_router.wire import eras, jsonrpc, raw

INITIALIZED: Final = "notifications/initialized"


class Request(Protocol):
    """A way to make requests."""

    async def __call__(self, method: str, params: bytes, *, time_limit: float) -> bytes:
        """Makes one request and returns its result; raises CallFailed."""
        ...


async def initialize(
    connection: Connection,
    request: Request,
    *,
    server: str,
    seconds: float,
    capabilities: bytes,
    version: str,
) -> tuple[bytes, str]:
    """Sets up a session.

    Args:
        connection: its connection; gets the negotiated revision.
        request: makes a request on it.
        server: the server's configured name.
        seconds: the limit for each of the two messages.
        capabilities: what the server may ask of this client, as a JSON object.
        version: this client's version.

    Returns:
        the server's capabilities, as a JSON object, and its instructions.

    Raises:
        HandshakeError: the server cannot be reached, refuses, or speaks no revision of ours.
    """
    params = jsonrpc.encode(
        {
            "protocolVersion": eras.LATEST_HANDSHAKE,
            "capabilities": msgspec.Raw(capabilities),
            "clientInfo": {"name": "kars-router", "version": version},
        }
    )
    try:
        answer = jsonrpc.members(await request("initialize", params, time_limit=seconds))
    except CallFailed as error:
        raise HandshakeError(error.failure) from error
    except jsonrpc.MalformedError as error:
        raise HandshakeError(_protocol(server, str(error))) from error
    revision = raw.text(answer.get("protocolVersion"))
    if revision is None or not eras.is_usable(revision):
        raise HandshakeError(_protocol(server, f"the server offers revision {revision!r:.40}"))
    connection.revision = revision
    try:
        with trio.fail_after(seconds):
            await connection.send(
                jsonrpc.notification(INITIALIZED),
                method=INITIALIZED,
                delivery=Delivery(),
                control=True,
            )
    except CallFailed as error:
        raise HandshakeError(error.failure) from error
    except trio.TooSlowError as error:
        raise HandshakeError(_protocol(server, f"no answer to {INITIALIZED}")) from error
    offered = answer.get("capabilities")
    return (
        b"{}" if offered is None or raw.fields(offered) is None else bytes(offered),
        raw.text(answer.get("instructions")) or "",
    )


def slow(server: str) -> Failure:
    """The failure of a connection that did not come about in time."""
    return Failure(
        server=server, phase=Phase.CONNECT, code="connect", detail="no connection in time"
    )


def _protocol(server: str, detail: str) -> Failure:
    return Failure(
        server=server, phase=Phase.HANDSHAKE, sent=Sent.YES, code="protocol", detail=detail
    )
