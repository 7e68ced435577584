"""Which transport a server is spoken to over, where the configuration leaves it open.

Owns the finding out between Streamable HTTP and HTTP+SSE, which share their URLs. Must not know
eras: whoever does the handshake asks for one, and gets an answer over either.

Source: MCP 2025-11-25 "Transports / Backwards Compatibility".
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Final

import trio
from attrs import define, evolve

from kars_router.config.schema import Server, Transport
from kars_router.errors import CallFailed
from kars_router.model import Failure
from kars_router.telemetry import log
from kars_router.transports.base import Connection, Delivery, Position, Told
from kars_router.transports.streamable_http import StreamableHttp

if TYPE_CHECKING:
    from kars_router.transports.legacy_sse import LegacySse

# A refusal for want of credentials (401, 403) or of health (5xx) is no evidence.
_KNOWS_NO_POST: Final = (400, 404, 405)


def transport_of(server: Server) -> Transport:
    """The transport that the settings ask for; `AUTO` where it has to be found out."""
    if server.command:
        return Transport.STDIO
    if (server.url or "").lower().startswith(("ws:", "wss:")):
        return Transport.WEBSOCKET
    return server.transport


@define
class Verdict:
    """What was found out about a server, for its sessions to come.

    Attributes:
        legacy: it speaks HTTP+SSE only.
    """

    legacy: bool = False


class AutoHttp:
    """One session over Streamable HTTP, or over HTTP+SSE if that turns out to be needed.

    It turns out when the POST of `initialize` is answered with 400, 404 or 405 by something that
    speaks no JSON-RPC, and a GET of the same URL brings the event `endpoint`. Until then, and for
    whatever else is sent before, this is Streamable HTTP.

    Args:
        streamable: the connection to begin with.
        legacy: makes the other one.
        verdict: what earlier sessions have found; changed by what this one finds.

    Attributes:
        correlates: see `Connection`; it may change until `initialize` was answered.
    """

    def __init__(
        self, streamable: StreamableHttp, legacy: Callable[[], LegacySse], verdict: Verdict
    ) -> None:
        self._now: Connection = streamable
        self._legacy = legacy
        self._verdict = verdict
        self._nursery: trio.Nursery | None = None
        self.correlates = streamable.correlates

    @property
    def session_id(self) -> str | None:
        """See `Connection.session_id`."""
        return self._now.session_id

    @session_id.setter
    def session_id(self, value: str | None) -> None:
        self._now.session_id = value

    @property
    def revision(self) -> str | None:
        """See `Connection.revision`."""
        return self._now.revision

    @revision.setter
    def revision(self, value: str | None) -> None:
        self._now.revision = value

    async def open(self, nursery: trio.Nursery) -> None:
        """See `Connection.open`."""
        self._nursery = nursery
        if not self._verdict.legacy:
            await self._now.open(nursery)
            return
        try:
            await self._change(nursery)
        except CallFailed:
            self._verdict.legacy = False
            raise

    def send(
        self,
        payload: bytes,
        *,
        method: str,
        delivery: Delivery,
        ident: bytes = b"",
        control: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> Coroutine[Any, Any, None]:
        """See `Connection.send`."""
        if method == "initialize":
            return self._initialize(payload, delivery, ident)
        return self._now.send(
            payload,
            method=method,
            delivery=delivery,
            ident=ident,
            control=control,
            headers=headers,
        )

    def send_now(self, payload: bytes, told: Told) -> bool:
        """See `Connection.send_now`."""
        return self._now.send_now(payload, told)

    def listen(self, position: Position, on_open: Callable[[], None]) -> Coroutine[Any, Any, None]:
        """See `Connection.listen`."""
        return self._now.listen(position, on_open)

    async def close(self) -> None:
        """See `Connection.close`."""
        await self._now.close()

    async def _initialize(self, payload: bytes, delivery: Delivery, ident: bytes) -> None:
        try:
            await self._now.send(payload, method="initialize", delivery=delivery, ident=ident)
        except CallFailed as error:
            if not self.correlates:
                self._verdict.legacy = False
                raise
            if not _is_evidence(error.failure) or self._nursery is None:
                raise
            try:
                await self._change(self._nursery)
            except CallFailed as other:
                text = f"{error.failure.detail}; as HTTP+SSE: {other.failure.detail}"
                raise CallFailed(evolve(error.failure, detail=text)) from other
            log().info("transport_found", server=error.failure.server, transport="sse")
            await self._now.send(payload, method="initialize", delivery=delivery, ident=ident)

    async def _change(self, nursery: trio.Nursery) -> None:
        legacy = self._legacy()
        legacy.revision = self.revision
        await legacy.open(nursery)
        self._now, self.correlates = legacy, legacy.correlates
        self._verdict.legacy = True


def _is_evidence(failure: Failure) -> bool:
    # What speaks JSON-RPC at this URL is an MCP server, and refuses us for a reason of its own.
    return failure.status in _KNOWS_NO_POST and failure.rpc_code is None
