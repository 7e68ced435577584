"""Constructs every `httpx.AsyncClient` of the project.

Owns what all of them have in common, and the short way from a client to our own transport. Must
not know what they are used for. The switch from httpx to its successor begins here;
docs/decisions/0003-http-transport.md says how it goes on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Final, Protocol

import httpx
from attrs import frozen

from kars_router._version import __version__
from kars_router.transports.http import EXTENSION, Exchange, Prepared, TrioTransport, View
from kars_router.transports.http_reply import TrioReply
from kars_router.transports.http_unread import Unread
from kars_router.transports.lookout import Lookout

_HEADERS: Final = {
    "user-agent": f"kars-router/{__version__}",
    # httpx would offer gzip and the like, and decode. Nothing here gains from that: events must
    # not wait in a compressor, and limits count what was received.
    "accept-encoding": "identity",
}


class Reply(Protocol):
    """A response whose head is there; to be read to its end or closed.

    Attributes:
        status: the status.
        is_closed: nothing is left to be released.
        url: what was asked for.
    """

    @property
    def status(self) -> int:
        """The status."""
        ...

    @property
    def is_closed(self) -> bool:
        """Whether nothing is left to be released."""
        ...

    @property
    def url(self) -> httpx.URL:
        """What was asked for."""
        ...

    def header(self, name: str) -> str:
        """A header's value, of a name in lower case; repeated ones joined, "" if absent."""
        ...

    def whole(self) -> bytes | None:
        """What is left of the body, if its end has come; else None. Never waits."""
        ...

    def share_waits(self, lookout: Lookout) -> None:
        """Says that hardly anything comes, so that the rest may be waited for with others."""
        ...

    def __aiter__(self) -> AsyncIterator[bytes]:
        """The body as it comes.

        Raises:
            httpx.TransportError: it broke off.
        """
        ...

    async def aclose(self) -> None:
        """Releases it; a connection that holds an unread rest is closed. Idempotent."""
        ...


@frozen
class Outline:
    """What the requests to one place have in common.

    Attributes:
        method: the HTTP method.
        url: the place.
        headers: what is said beside what every request says, by name in lower case.
        prepared: the same as our own transport writes it, unless it is another one.
    """

    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    prepared: Prepared | None


class Client(httpx.AsyncClient):
    """A client with a cookie jar of its own on a shared transport; made by `new_client` only.

    Beside what any client of httpx can do, it makes many similar requests for little each: httpx
    would build, copy and take apart a dozen objects for each of them.
    """

    def __init__(self, transport: httpx.AsyncBaseTransport, *, headers: Mapping[str, str]) -> None:
        super().__init__(
            transport=View(transport),
            headers=headers,
            timeout=httpx.Timeout(None),
            trust_env=False,
            follow_redirects=False,
        )
        self._carrier = transport if isinstance(transport, TrioTransport) else None
        self._has_cookies = False

    def outline(self, method: str, url: httpx.URL, headers: Mapping[str, str]) -> Outline:
        """Prepares requests to one place.

        Args:
            method: the HTTP method.
            url: the place.
            headers: by name in lower case; they may hold UTF-8.

        Raises:
            httpx.LocalProtocolError: such a request cannot be sent.
        """
        prepared = None
        if self._carrier is not None:
            every = httpx.Headers(self.headers)
            # As bytes, because httpx takes ASCII only of text, and event ids are UTF-8.
            every.update(_encoded(headers))
            prepared = self._carrier.prepare(method, url, every.raw)
        return Outline(method, url, headers, prepared)

    async def exchange(
        self,
        outline: Outline,
        content: bytes | None,
        exchange: Exchange,
        limits: Mapping[str, float | None],
    ) -> Reply:
        """Makes one request, with the cookies that belong to it; redirects are not followed.

        Args:
            outline: what it has in common with others.
            content: its body, or None.
            exchange: says afterwards how far it got.
            limits: seconds for `connect`, `read`, `write` and `pool`; None for no limit.

        Raises:
            httpx.TransportError: see `exchange` for what was sent by then.

        Cancelled, it closes the connection.
        """
        carrier, prepared = self._carrier, outline.prepared
        if carrier is None or prepared is None:
            return await self._by_httpx(outline, content, exchange, limits)
        if self._has_cookies:
            request = self.build_request(
                outline.method, outline.url, headers=_encoded(outline.headers)
            )
            prepared = carrier.prepare(outline.method, outline.url, request.headers.raw)
        reply = await carrier.exchange(prepared, content or b"", exchange, limits)
        return self._noting_cookies(reply, outline)

    def send_now(
        self,
        outline: Outline,
        content: bytes,
        limits: Mapping[str, float | None],
        told: Callable[[Unread | None], bool],
    ) -> bool:
        """Makes one request if that takes no waiting; see `TrioTransport.send_now`."""
        if self._carrier is None or outline.prepared is None or self._has_cookies:
            return False
        return self._carrier.send_now(outline.prepared, content, limits, told)

    async def receive(self, outline: Outline, unread: Unread) -> Reply:
        """Waits for the response to what `send_now` has sent; otherwise as `exchange`."""
        return self._noting_cookies(await unread.head(), outline)

    def _noting_cookies(self, reply: TrioReply, outline: Outline) -> Reply:
        if reply.header("set-cookie"):
            self._has_cookies = True
            request = httpx.Request(outline.method, outline.url)
            self.cookies.extract_cookies(
                httpx.Response(reply.status, headers=reply.headers, request=request)
            )
        return reply

    async def _by_httpx(
        self,
        outline: Outline,
        content: bytes | None,
        exchange: Exchange,
        limits: Mapping[str, float | None],
    ) -> Reply:
        request = self.build_request(
            outline.method,
            outline.url,
            content=content,
            headers=_encoded(outline.headers),
            timeout=httpx.Timeout(**limits),
            extensions={EXTENSION: exchange},
        )
        return HttpxReply(await self.send(request, stream=True))


class HttpxReply:
    """A response of httpx as a `Reply`.

    Args:
        response: it, not read yet.
    """

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._chunks: AsyncIterator[bytes] | None = None

    @property
    def status(self) -> int:
        """See `Reply.status`."""
        return self._response.status_code

    @property
    def is_closed(self) -> bool:
        """See `Reply.is_closed`."""
        return self._response.is_closed

    @property
    def url(self) -> httpx.URL:
        """See `Reply.url`."""
        return self._response.url

    def header(self, name: str) -> str:
        """See `Reply.header`."""
        value: str = self._response.headers.get(name, "")
        return value

    def whole(self) -> bytes | None:
        """See `Reply.whole`; httpx does not tell."""
        return None

    def share_waits(self, lookout: Lookout) -> None:
        """See `Reply.share_waits`; httpx waits by itself."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        if self._chunks is None:
            self._chunks = self._response.aiter_raw()
        return self._chunks

    async def aclose(self) -> None:
        """See `Reply.aclose`."""
        try:
            await self._response.aclose()
        finally:
            if self._chunks is not None:
                # Whoever walks away in the middle leaves httpx's generators suspended, one inside
                # the other, and closing the outermost one leaves the others to the garbage
                # collector. The error that comes out of a closed stream ends all of them.
                with suppress(httpx.RequestError, httpx.StreamError):
                    async for _ in self._chunks:  # noqa: ASYNC102, RUF100 - ends at once
                        pass


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def new_client(
    transport: httpx.AsyncBaseTransport, *, headers: Mapping[str, str] | None = None
) -> Client:
    """Make a client with a cookie jar of its own on a shared transport.

    Environment variables (proxies, netrc, CA bundles) and redirects are ignored: where a request
    goes is decided by the configuration, and each redirect by the caller. There are no default
    time limits; the caller passes `timeout` with each request.

    Args:
        transport: a `TrioTransport`, or a stand-in for one in tests. It stays the caller's:
            closing the client does not close it.
        headers: sent with every request, and stronger than the defaults here.

    Returns:
        A client to be closed by the caller. It holds no connection, so that a client which is
        merely dropped leaks nothing.
    """
    return Client(transport, headers={**_HEADERS, **(headers or {})})
