"""The httpx transport of one upstream, on kept Trio streams.

Owns exchanges: send one request, read one response, say how much of the request was accepted.
Must not know MCP, sessions or retries of calls; syntax is `http_parser`'s, connections are
`http_pool`'s.

docs/decisions/0003-http-transport.md says why it is not httpx's own transport.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar, TypeVarTuple

import httpx
import trio
from attrs import define, frozen

from kars_router.transports.http_parser import ResponseParser, serialise, with_body, write_head
from kars_router.transports.http_pool import Lease, Pool, PoolStats
from kars_router.transports.http_streams import (
    CountedStream,
    Opener,
    bytes_sent,
    guarded_opener,
)

EXTENSION: Final = "kars_exchange"
_PORTS: Final = {"http": 80, "https": 443}
_SALVAGE_SECONDS: Final = 1.0

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")


@define(kw_only=True)
class Exchange:
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


@frozen
class _Step:
    """A kind of I/O and what its failures become: the one place where errors are mapped."""

    name: str
    limit: str
    error: type[httpx.TransportError]
    timeout: type[httpx.TimeoutException]
    causes: tuple[type[Exception], ...]

    def failed(self, exc: Exception, request: httpx.Request | None) -> httpx.TransportError:
        """What a failure becomes."""
        return self.error(f"{self.name}: {_reason(exc)}", request=request)


_BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_PLACE: Final = _Step(
    "waiting for a free connection", "pool", httpx.PoolTimeout, httpx.PoolTimeout, ()
)
# ValueError: a host that cannot be looked up (UnicodeError) or cannot be a TLS server name.
_CONNECT: Final = _Step(
    "connecting", "connect", httpx.ConnectError, httpx.ConnectTimeout, (*_BROKEN, ValueError)
)
_WRITE: Final = _Step("sending the request", "write", httpx.WriteError, httpx.WriteTimeout, _BROKEN)
_READ: Final = _Step("reading the response", "read", httpx.ReadError, httpx.ReadTimeout, _BROKEN)


class TrioTransport(httpx.AsyncBaseTransport):
    """Carries the requests of every session to one upstream.

    One transport serves one origin, and refuses requests to another, so that a connection, a
    limit or a CA file cannot come to be shared by servers. `httpx.AsyncClient` closes its
    transport when it is closed itself; therefore clients get a `view`, and whoever constructed
    the transport closes it.

    Time limits come from `request.extensions["timeout"]`, as httpx sets it: `pool`, `connect`,
    `write` for the whole request, `read` for each single read. None, or absent, is unlimited.

    A request is tried again only on its own: when a kept connection turns out to be dead before
    any byte was accepted. Everything else goes up, with the request's `Exchange` saying how far
    it got.

    Args:
        origin: any URL of the upstream; scheme, host and port are taken.
        max_connections: most ordinary requests at a time; at least 1.
        ca_file: PEM file of certificate authorities to trust besides the system's.
        allowed_networks: CIDR blocks that the URL's name may lead to although they are not public
            (docs/egress.md).
        opener: makes connections in place of the one that sees to that. For an exact
            `Exchange.accepted` its streams are `CountedStream`s or `trio.SSLStream`s over them;
            with any other stream, a send that fails counts as partly accepted.
        trust: makes the TLS context of each new connection, in place of the one with `ca_file`.

    Raises:
        httpx.UnsupportedProtocol: `origin` is neither http nor https.
        ValueError: a network is none.
    """

    def __init__(
        self,
        origin: httpx.URL | str,
        *,
        max_connections: int = 64,
        ca_file: Path | str | None = None,
        allowed_networks: Iterable[str] = (),
        opener: Opener | None = None,
        trust: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        url = httpx.URL(origin)
        if url.scheme not in _PORTS or not url.host:
            raise httpx.UnsupportedProtocol(f"{str(origin)!r} is not an http or https URL")
        self._scheme = url.scheme
        self._netloc = url.netloc
        self._host = url.raw_host.decode("ascii")
        self._port = url.port or _PORTS[url.scheme]
        self._ca_file = ca_file
        self._context: ssl.SSLContext | None = None
        self._trust = trust
        self._opener = opener or guarded_opener(self._host, allowed_networks)
        self._pool = Pool(max_connections)

    def view(self) -> httpx.AsyncBaseTransport:
        """A transport for one client: the same connections, but closing it closes nothing."""
        return View(self)

    def stats(self) -> PoolStats:
        """Counters for a status page."""
        return self._pool.stats()

    async def renew(self) -> None:
        """Have later requests go over new connections, as after a change of what `trust` makes."""
        self._pool.renew()
        await self._pool.bury()

    async def aclose(self) -> None:
        """Close every connection. Requests under way and later ones fail. Idempotent."""
        await self._pool.aclose()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and return its response as soon as the head is there.

        The response must be read to its end or closed. Its connection goes back to the pool when
        the end has come from the network, whether or not the caller has taken it yet; closed
        early, it is closed.

        Raises:
            httpx.LocalProtocolError: the request cannot be sent (a streamed body, a forbidden
                character, another origin). Nothing was sent.
            httpx.PoolTimeout, httpx.ConnectError, httpx.ConnectTimeout: nothing was sent.
            httpx.WriteError, httpx.WriteTimeout, httpx.ReadError, httpx.ReadTimeout,
            httpx.RemoteProtocolError: see the request's `Exchange`.

        Cancelled, it closes the connection and gives up its place; `Exchange` is exact then too.
        """
        exchange = request.extensions.get(EXTENSION)
        if not isinstance(exchange, Exchange):
            exchange = Exchange()
        exchange.begin()
        self._check_origin(request.url, request)
        message = serialise(request)
        limits = request.extensions.get("timeout") or {}
        lease = Lease(control=exchange.control)
        reply = TrioReply(self._pool, lease, limits, url=request.url, request=request)
        await self._converse(reply, message, exchange)
        return reply.response()

    def prepare(
        self, method: str, url: httpx.URL, headers: Iterable[tuple[bytes, bytes]]
    ) -> Prepared:
        """Write the head that the requests to one place have in common.

        Raises:
            httpx.LocalProtocolError: there is a forbidden character in it, or it is for another
                origin.
        """
        self._check_origin(url)
        return Prepared(method, url, write_head(method, url, headers))

    async def exchange(
        self,
        prepared: Prepared,
        content: bytes,
        exchange: Exchange,
        limits: Mapping[str, float | None],
    ) -> TrioReply:
        """Send a request whose head was made by `prepare`; what follows is as for any other.

        This is the short way for what is sent with every call: no object of httpx is made.

        Args:
            prepared: the head.
            content: the body.
            exchange: says how far it got.
            limits: as in `request.extensions["timeout"]`.

        Raises:
            httpx.TransportError: as `handle_async_request` does.
        """
        exchange.begin()
        reply = TrioReply(self._pool, Lease(control=exchange.control), limits, url=prepared.url)
        message = with_body(prepared.head, prepared.method, content)
        await self._converse(reply, message, exchange)
        return reply

    def _check_origin(self, url: httpx.URL, request: httpx.Request | None = None) -> None:
        if url.scheme != self._scheme or url.netloc != self._netloc:
            raise httpx.LocalProtocolError(
                f"this connection is for {self._scheme}://{self._netloc.decode('ascii')} only",
                request=request,
            )

    async def _converse(self, reply: TrioReply, message: bytes, exchange: Exchange) -> None:
        lease = reply.lease
        if not self._pool.lease_now(lease):
            await _bounded(_PLACE, reply.limits, reply.request, self._pool.lease)
        try:
            await self._talk(reply, message, exchange)
        except BaseException:
            await reply.aclose()
            raise

    async def _talk(self, reply: TrioReply, message: bytes, exchange: Exchange) -> None:
        exchange.reused = await self._pool.take_idle(reply.lease)
        if exchange.reused:
            try:
                await reply.send(message, exchange)
            except httpx.WriteError:  # nothing was accepted, else `send` had kept it for later
                self._pool.drop_stale(reply.lease)
                exchange.reused = False
        if not exchange.reused:
            await self._connect(reply)
            await reply.send(message, exchange)
        await reply.read_head()

    async def _connect(self, reply: TrioReply) -> None:
        if not self._pool.closed:
            stream = await _bounded(_CONNECT, reply.limits, reply.request, self._open)
            self._pool.adopt(reply.lease, stream)
        if self._pool.closed:
            raise httpx.ConnectError("the transport has been closed", request=reply.request)

    async def _open(self) -> trio.abc.Stream:
        if self._scheme == "https" and self._trust is not None:
            self._context = self._trust()
        elif self._scheme == "https" and self._context is None:
            # Once, and late: it reads every certificate of the system, which takes a while.
            self._context = trusting(self._ca_file)
        return await self._opener(self._host, self._port, self._context)


@frozen
class Prepared:
    """What the requests to one place have in common.

    Attributes:
        method: the HTTP method.
        url: the place.
        head: all but what depends on the body.
    """

    method: str
    url: httpx.URL
    head: bytes


class View(httpx.AsyncBaseTransport):
    """A transport for one client: same connections as its owner, but closing it closes nothing.

    Args:
        owner: carries the requests.
    """

    def __init__(self, owner: httpx.AsyncBaseTransport) -> None:
        self._owner = owner

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """As the owner does it."""
        return await self._owner.handle_async_request(request)


class TrioReply(httpx.AsyncByteStream):
    """One exchange from its place in the pool on; afterwards a `Reply`, and the body of one.

    An iterator rather than a generator, so that nothing is left to be finalised when a reader
    walks away in the middle.
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

    @property
    def status(self) -> int:
        """See `Reply.status`."""
        return self._parser.status

    @property
    def is_closed(self) -> bool:
        """See `Reply.is_closed`."""
        return self.lease.released

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All headers, names in lower case, in the order of arrival."""
        return self._parser.headers

    def header(self, name: str) -> str:
        """See `Reply.header`."""
        sought = name.encode("ascii")
        values = [value for known, value in self._parser.headers if known == sought]
        return b", ".join(values).decode("utf-8", "replace") if values else ""

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
            rest: bytes | memoryview = message
            if connection.plain is not None:
                await trio.lowlevel.checkpoint_if_cancelled()
                rest = _rest_of(message, connection.plain, self.request)
            if rest:
                await _bounded(_WRITE, self.limits, self.request, stream.send_all, rest)
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
        self._pool.release(self.lease)
        await self._pool.bury()

    async def _read(self) -> None:
        connection, parser = self.lease.connection, self._parser
        if connection is None:
            raise httpx.ReadError("the response was closed before its end", request=self.request)
        receive: Callable[[int], Awaitable[bytes | bytearray]] = connection.stream.receive_some
        plain = connection.plain
        if plain is not None:
            receive = plain.receive_more if parser.head_complete else plain.receive_next
        data = await _bounded(_READ, self.limits, self.request, receive, parser.room)
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
            # At once, not when the caller asks for the end: a pong can have the connection.
            keep = parser.keep_seconds if self._send_error is None else 0.0
            self._pool.release(self.lease, keep_seconds=keep)
            await self._pool.bury()


def _rest_of(
    message: bytes, stream: CountedStream, request: httpx.Request | None
) -> bytes | memoryview:
    """Send what can be sent without waiting, as almost all can; the rest."""
    try:
        taken = stream.send_now(message)
    except _WRITE.causes as exc:
        raise _WRITE.failed(exc, request) from exc
    return memoryview(message)[taken:] if taken < len(message) else b""


async def _bounded(
    step: _Step,
    limits: Mapping[str, float | None],
    request: httpx.Request | None,
    operation: Callable[[*_Ts], Awaitable[_T]],
    *args: *_Ts,
) -> _T:
    """Do one piece of I/O with its time limit and its errors in httpx's terms."""
    seconds = limits.get(step.limit)
    try:
        if seconds is None:
            return await operation(*args)
        with trio.move_on_after(seconds):
            return await operation(*args)
    except step.causes as exc:
        raise step.failed(exc, request) from exc
    raise step.timeout(f"{step.name} took more than {seconds} s", request=request)


def trusting(ca_file: Path | str | None) -> ssl.SSLContext:
    """A TLS context that trusts the system's authorities, and those of a PEM file beside them."""
    context = ssl.create_default_context()
    if ca_file is not None:
        # Read here, as an error of `load_verify_locations` does not name the file.
        context.load_verify_locations(cadata=Path(ca_file).read_text(encoding="ascii"))
    context.set_alpn_protocols(["http/1.1"])
    return context


def _reason(exc: BaseException) -> str:
    """The innermost cause: Trio's own words say only that a resource broke."""
    while True:
        if isinstance(exc, BaseExceptionGroup):
            exc = exc.exceptions[0]
        elif exc.__cause__ is not None:
            exc = exc.__cause__
        else:
            return str(exc) or type(exc).__name__


def _accepted(stream: trio.abc.Stream, before: int | None, message: bytes) -> int:
    """Bytes accepted in a send that failed; never all, as then it would not have failed."""
    after = bytes_sent(stream)
    if before is None or after is None:
        return 1  # unknown, so it may have been seen
    return min(after - before, len(message) - 1)
