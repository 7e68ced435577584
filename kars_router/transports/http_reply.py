"""One exchange over HTTP/1.1: a request that goes out, and the response as it comes in.

Owns how much of the request was accepted, and when the connection is given back. Must not know
where a connection comes from, nor MCP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Final

import httpx
import msgspec
import trio

from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.http_parser import ResponseParser
from kars_router.transports.http_pool import Connection, Lease, Pool
from kars_router.transports.http_steps import READ, WRITE, bounded
from kars_router.transports.http_streams import bytes_sent, innermost
from kars_router.transports.lookout import Lookout

EXTENSION: Final = "kars_exchange"
_SALVAGE_SECONDS: Final = 1.0


class Exchange(msgspec.Struct, kw_only=True):
    """What the caller asks of an exchange, and what it is told about it afterwards.

    Put it into `request.extensions["kars_exchange"]`. The transport resets all but `control` when
    it starts on a request.

    Attributes:
        control: this request (a pong, the GET stream, a DELETE) never waits behind calls.
        accepted: bytes of the request that the network accepted. 0 exactly if the server cannot
            have seen any of it. Over TLS a number between 0 and all is an estimate.
        complete: all of the request was accepted.
        reused: it went over a kept connection.
    """

    control: bool = False
    accepted: int = 0
    complete: bool = False
    reused: bool = False

    def begin(self) -> None:
        """Forget an earlier request."""
        self.accepted = 0
        self.complete = False
        self.reused = False


class TrioReply(httpx.AsyncByteStream):
    """One exchange from its place in the pool on; afterwards a `Reply`, and the body of one.

    An iterator rather than a generator, so that nothing is left to be finalised when a reader
    walks away in the middle.

    Attributes:
        sent_at: trio's clock when the request was sent, if nobody waits for the response.
    """

    def __init__(
        self,
        pool: Pool,
        lease: Lease,
        limits: Mapping[str, float | None],
        *,
        url: httpx.URL,
        request: httpx.Request | None = None,
    ) -> None:
        self.lease = lease
        self.limits = limits
        self.url = url
        self.request = request
        self._pool = pool
        self._parser = ResponseParser(bodiless=request is not None and request.method == "HEAD")
        self._send_error: httpx.WriteError | None = None
        self.sent_at: float | None = None
        self._by_name: dict[str, str] | None = None
        self._sharing: CountedStream | None = None

    @property
    def status(self) -> int:
        """See `Reply.status`."""
        return self._parser.status

    @property
    def is_closed(self) -> bool:
        """See `Reply.is_closed`."""
        return self.lease.released

    @property
    def is_receipt(self) -> bool:
        """Whether it is there to its end, and says no more than that the request was accepted."""
        parser = self._parser
        if not parser.complete or parser.has_body or not 200 <= parser.status < 300:
            return False
        return all(name != b"set-cookie" for name, _ in parser.headers)

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All headers, names in lower case, in the order of arrival."""
        return self._parser.headers

    def header(self, name: str) -> str:
        """See `Reply.header`."""
        known = self._by_name
        if known is None:
            known = self._by_name = {}
            for raw, value in self._parser.headers:
                each, text = raw.decode("ascii", "replace"), value.decode("utf-8", "replace")
                known[each] = f"{known[each]}, {text}" if each in known else text
        return known.get(name, "")

    def whole(self) -> bytes | None:
        """What is left of the body, if the end of it has come; else None. Never waits."""
        return self._parser.take() if self._parser.complete else None

    def share_waits(self, lookout: Lookout) -> None:
        """See `Reply.share_waits`."""
        connection = self.lease.connection
        wire = None if connection is None else innermost(connection.stream)
        if isinstance(wire, CountedStream):
            wire.share_waits(lookout)
            self._sharing = wire

    async def send(self, message: bytes, exchange: Exchange) -> None:
        """Send all of the request and note how much of it was accepted.

        A server may refuse a large request before it has read all of it, and close. What it said
        is worth more than the fact that it hung up, so such an error waits for `read_head`.
        """
        connection = self.lease.connection
        assert connection is not None
        stream = connection.stream
        before = bytes_sent(stream) if connection.plain is None else connection.plain.sent
        try:
            taken = 0
            if connection.plain is not None:
                await trio.lowlevel.checkpoint_if_cancelled()
                try:
                    taken = connection.plain.send_now(message)  # almost always all of it
                except WRITE.causes as exc:
                    raise WRITE.failed(exc, self.request) from exc
            if taken < len(message):
                rest = memoryview(message)[taken:]
                await bounded(WRITE, self.limits, self.request, stream.send_all, rest)
            exchange.complete = True
            exchange.accepted = len(message)
        except httpx.WriteError as exc:
            exchange.accepted = _accepted(stream, before, message)
            if not exchange.accepted:
                raise
            self._send_error = exc
        except BaseException:
            exchange.accepted = _accepted(stream, before, message)
            raise

    def send_now(self, message: bytes, exchange: Exchange) -> bool:
        """Send all of the request without waiting, or give up the place; whether it was sent.

        What was taken in part spoils the connection, which is dropped.
        """
        connection = self.lease.connection
        assert connection is not None
        assert connection.plain is not None
        try:
            taken = connection.plain.send_now(message)
        except WRITE.causes:
            taken = 0
        if taken < len(message):
            self._pool.drop_stale(self.lease)
            self._pool.release(self.lease)
            return False
        exchange.complete = exchange.reused = True
        exchange.accepted = taken
        self.sent_at = trio.current_time()
        return True

    async def read_head(self) -> None:
        """Read until the final status and headers are there."""
        error = self._send_error
        if error is None:
            while not self._parser.head_complete:
                await self._read()
            return
        with trio.move_on_after(_SALVAGE_SECONDS):
            try:
                while not self._parser.head_complete:
                    await self._read()
            except httpx.TransportError:
                raise error from error.__cause__
        if not self._parser.head_complete:
            raise error

    def response(self) -> httpx.Response:
        """The response, with this object as its body."""
        return httpx.Response(
            self._parser.status,
            headers=self._parser.headers,
            stream=self,
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": self._parser.reason},
        )

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not (data := self._parser.take()):
            if self._parser.complete:
                raise StopAsyncIteration
            try:
                await self._read()
            except BaseException:
                await self.aclose()
                raise
        return data

    async def aclose(self) -> None:
        """Give up the place; close the connection unless the response was complete.

        Idempotent, and shielded from cancellation, as it also is the way out of one.
        """
        self.give_up()
        await self._pool.bury()

    def give_up(self) -> None:
        """As `aclose`, without waiting: the connection is closed by whoever uses the pool next."""
        self._pool.release(self.lease)

    def read_now(self) -> bool:
        """Read what has come, of a response on a plain connection; whether anything had.

        Raises:
            httpx.TransportError: it broke off, or is malformed.
        """
        plain = self._connected().plain
        assert plain is not None
        try:
            data = plain.receive_now(self._parser.room)
        except READ.causes as exc:
            raise READ.failed(exc, self.request) from exc
        if data is not None:
            self._take(data)
        return data is not None

    async def _read(self) -> None:
        connection = self._connected()
        plain, room = connection.plain, self._parser.room
        if plain is not None and self.limits.get(READ.limit) is None:
            try:
                self._take(await plain.receive_next(room))
            except READ.causes as exc:
                raise READ.failed(exc, self.request) from exc
        else:
            receive: Callable[[int], Awaitable[bytes | bytearray]] = connection.stream.receive_some
            self._take(await bounded(READ, self.limits, self.request, receive, room))
        if self._parser.complete:
            await self._pool.bury()

    def _connected(self) -> Connection:
        if self.lease.connection is None:
            raise httpx.ReadError("the response was closed before its end", request=self.request)
        return self.lease.connection

    def _take(self, data: bytes | bytearray) -> None:
        parser = self._parser
        try:
            if data:
                parser.feed(data)
            else:
                parser.eof()
        except httpx.RemoteProtocolError as exc:
            if self.request is not None:
                exc.request = self.request
            raise
        if parser.complete:
            if self._sharing is not None:
                self._sharing.share_waits(None)
            # At once, not when the caller asks for the end: a pong can have the connection.
            keep = parser.keep_seconds if self._send_error is None else 0.0
            # The server counts since it has answered, which nobody may have seen.
            self._pool.release(self.lease, keep_seconds=keep, since=self.sent_at)


def _accepted(stream: trio.abc.Stream, before: int | None, message: bytes) -> int:
    """Bytes accepted in a send that failed; never all, as then it would not have failed."""
    after = bytes_sent(stream)
    if before is None or after is None:
        return 1  # unknown, so it may have been seen
    return min(after - before, len(message) - 1)
