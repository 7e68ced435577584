"""HTTP+SSE, the transport before Streamable HTTP: one GET stream, and POSTs to where it says.

Owns the stream and the endpoint. Must not know which message answers which; requests are made as
those of Streamable HTTP are.

Source: MCP 2024-11-05 "Transports / HTTP with SSE".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import httpx
import trio
from attrs import evolve

from kars_router.errors import CallFailed
from kars_router.hookspecs import Credentials
from kars_router.model import Phase
from kars_router.transports.answers import describe, media_type, release
from kars_router.transports.base import Deliver, Delivery
from kars_router.transports.channel import Channel, Waiter
from kars_router.transports.client import Client, Reply
from kars_router.transports.streamable_http import StreamableHttp, origin_of
from kars_router.wire import eras, sse
from kars_router.wire.jsonrpc import Message

# An answered message need not wait until its POST is answered as well.
_LINGER_SECONDS: Final = 1.0


class LegacySse(Channel):
    """One session over HTTP+SSE.

    Args:
        client: the session's own client (it holds the session's cookies).
        url: where the stream is.
        server: the server's configured name.
        deliver: takes every message that arrives, at once and without waiting.
        credentials: supplies authentication, or None.
        headers: static extra headers.
        connect_timeout: seconds until the stream has said where messages go, and for a connection.
        event_limit: most bytes of one event; a longer one ends the channel.
        body_limit: most bytes of the answer to one POST.
    """

    def __init__(
        self,
        client: Client,
        url: str,
        *,
        server: str,
        deliver: Deliver,
        credentials: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = 5.0,
        event_limit: int = 16 * 1024 * 1024,
        body_limit: int = 64 * 1024 * 1024,
    ) -> None:
        super().__init__(server=server, deliver=deliver, connect_timeout=connect_timeout)
        self._limit = event_limit
        self._requests = _Requests(
            client,
            url,
            server=server,
            deliver=self._take_body,
            credentials=credentials,
            headers=headers,
            connect_timeout=connect_timeout,
            event_limit=event_limit,
            body_limit=body_limit,
        )

    async def _run(self, opened: Callable[[], None]) -> str:
        reply = await self._requests.get()
        decoder = sse.Decoder(self._limit)
        aimed = False
        try:
            async for chunk in reply:
                self.hear()
                for event in decoder.feed(chunk):
                    if event.event == "message" and event.data:
                        self.take(event.data)
                    elif event.event == "endpoint" and not aimed:
                        aimed = True
                        self._requests.aim(reply, event.data)
                        opened()
            why = "its event stream came to an end"
        except (httpx.TransportError, sse.EventTooLargeError) as error:
            why = describe(error)
        finally:
            await release(reply)  # noqa: ASYNC102 - shielded and bounded there
        if not aimed:
            text = f"no event has said where messages go: {why}"
            raise self.failed(Phase.CONNECT, text, code="protocol", status=reply.status)
        return why

    async def _transmit(self, payload: bytes, waiter: Waiter, *, control: bool) -> None:
        # What was refused belongs to the session that the endpoint is of.
        failure: CallFailed | None = None
        self._requests.revision = self.revision
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_lose_patience, waiter, nursery.cancel_scope)
            try:
                await self._requests.send(
                    payload, method=waiter.method, delivery=waiter.delivery, control=control
                )
            except CallFailed as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is None or _was_taken(failure):
            return
        raise CallFailed(evolve(failure.failure, had_session=True)) from failure

    async def _release(self) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _take_body(self, message: Message, _: bytes) -> None:
        self.take_message(message)


class _Requests(StreamableHttp):
    """The requests of one session: the GET at the address that is configured, POSTs elsewhere."""

    async def get(self) -> Reply:
        """Opens the stream.

        Raises:
            CallFailed: it is refused, or no event stream.
        """
        reply = await self._open(
            "GET",
            None,
            name="GET",
            delivery=Delivery(),
            control=True,
            extra={"accept": eras.STREAM_TYPE},
        )
        try:
            kind = media_type(reply)
            if kind != eras.STREAM_TYPE:
                raise self._failure(
                    Phase.CONNECT,
                    "GET",
                    f"a GET was answered with {kind or 'no content type'}",
                    code="protocol",
                    status=reply.status,
                )
            self._answers.check_encoding(reply, Phase.CONNECT, "GET")
        except CallFailed:
            await release(reply)  # noqa: ASYNC120 - shielded and bounded there
            raise
        return reply

    def aim(self, reply: Reply, endpoint: bytes) -> None:
        """Has messages sent to an endpoint of the same origin.

        Raises:
            CallFailed: it is of another one, or no URL.
        """
        try:
            target = reply.url.join(endpoint.decode())
            same = origin_of(target) == origin_of(self._url) and not target.userinfo
        except (httpx.InvalidURL, ValueError):
            same, target = False, self._url
        if not same:
            raise self._failure(
                Phase.CONNECT,
                "GET",
                "the event `endpoint` names no address of the same origin",
                code="protocol",
                status=reply.status,
            )
        self._url = target


async def _lose_patience(waiter: Waiter, scope: trio.CancelScope) -> None:
    await waiter.done.wait()
    if waiter.trouble is None:
        scope.deadline = trio.current_time() + _LINGER_SECONDS
    else:
        scope.cancel()


def _was_taken(error: CallFailed) -> bool:
    # Some servers say "Accepted" with status 200 and as plain text.
    failure = error.failure
    return failure.code == "protocol" and failure.status in range(200, 300)
