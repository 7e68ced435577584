"""The httpx transport of one upstream, on kept Trio streams.

Owns the order of things: a place, a connection, and on a kept one that is dead another. Must not
know MCP, sessions or retries of calls; syntax is `http_parser`'s, connections are `http_pool`'s,
and what goes over one is `http_reply`'s.

docs/decisions/0003-http-transport.md says why it is not httpx's own transport.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import httpx
import trio
from attrs import frozen

from kars_router.transports.http_parser import serialise, with_body, write_head
from kars_router.transports.http_pool import Lease, Pool, PoolStats
from kars_router.transports.http_reply import EXTENSION, Exchange, TrioReply
from kars_router.transports.http_steps import CONNECT, PLACE, bounded
from kars_router.transports.http_streams import Opener, guarded_opener
from kars_router.transports.http_unread import Unread

__all__ = ["EXTENSION", "Exchange", "Prepared", "TrioTransport", "View", "trusting"]

_PORTS: Final = {"http": 80, "https": 443}


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

    def send_now(
        self,
        prepared: Prepared,
        content: bytes,
        limits: Mapping[str, float | None],
        told: Callable[[Unread | None], bool],
    ) -> bool:
        """Send a request on a kept connection, if that takes no waiting, and wait for nothing.

        It counts as a control request.

        Args:
            prepared: the head.
            content: the body.
            limits: as in `request.extensions["timeout"]`, for whoever waits after all.
            told: see `Unread`. It may be called a long time later: when another request is made.
                Not called if the transport is closed before.

        Returns:
            False if nothing was sent.
        """
        pool = self._pool
        if pool.closed:
            return False
        reply = TrioReply(pool, Lease(control=True), limits, url=prepared.url)
        exchange = Exchange(control=True)
        sent = pool.take_now(reply.lease) and reply.send_now(
            with_body(prepared.head, prepared.method, content), exchange
        )
        if sent:
            pool.expect(Unread(reply, exchange, told))
        pool.bury_now()  # nothing else may be sent for a long time
        return sent

    def _check_origin(self, url: httpx.URL, request: httpx.Request | None = None) -> None:
        if url.scheme != self._scheme or url.netloc != self._netloc:
            raise httpx.LocalProtocolError(
                f"this connection is for {self._scheme}://{self._netloc.decode('ascii')} only",
                request=request,
            )

    async def _converse(self, reply: TrioReply, message: bytes, exchange: Exchange) -> None:
        pool, lease = self._pool, reply.lease
        if not pool.lease_now(lease):
            await bounded(PLACE, reply.limits, reply.request, pool.lease)
        try:
            exchange.reused = pool.take_now(lease) or await pool.take_idle(lease)
            if exchange.reused:
                try:
                    await reply.send(message, exchange)
                except httpx.WriteError:  # nothing was accepted, else `send` had kept it for later
                    pool.drop_stale(lease)
                    exchange.reused = False
            if not exchange.reused:
                await self._connect(reply)
                await reply.send(message, exchange)
            await reply.read_head()
        except BaseException:
            await reply.aclose()
            raise

    async def _connect(self, reply: TrioReply) -> None:
        if not self._pool.closed:
            stream = await bounded(CONNECT, reply.limits, reply.request, self._open)
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


def trusting(ca_file: Path | str | None) -> ssl.SSLContext:
    """A TLS context that trusts the system's authorities, and those of a PEM file beside them."""
    context = ssl.create_default_context()
    if ca_file is not None:
        # Read here, as an error of `load_verify_locations` does not name the file.
        context.load_verify_locations(cadata=Path(ca_file).read_text(encoding="ascii"))
    context.set_alpn_protocols(["http/1.1"])
    return context
