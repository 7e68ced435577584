"""WebSocket: one JSON-RPC message a text frame, subprotocol `mcp`.

Owns the upgrade and the close, and is the one module that knows trio-websocket. Must not know
which message answers which.

Not a transport of the specification, but of its SDKs: the official Python SDK (1.x) has a server
and a client, the official TypeScript SDK (1.x) a client. Source: RFC 6455.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Final, cast

import h11
import httpx
import trio
from trio_websocket import (
    CloseReason,
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)
from wsproto.utilities import ProtocolError

from kars_router._version import __version__
from kars_router.errors import CallFailed, UserError
from kars_router.hookspecs import Credentials
from kars_router.model import Phase, Sent
from kars_router.transports.authorization import Authorization
from kars_router.transports.base import Deliver, Delivery
from kars_router.transports.channel import ChannelEnded, StreamChannel
from kars_router.transports.guard import AddressRefusedError
from kars_router.transports.http_streams import Opener, bytes_sent, guarded_opener
from kars_router.transports.redaction import SHORTEST

SUBPROTOCOL: Final = "mcp"

_PORTS: Final = {"ws": 80, "wss": 443}
_UNAUTHORIZED: Final = (401, 403)
_CLOSE_SECONDS: Final = 1.0
_CHUNK: Final = 64 * 1024
# The answer to an upgrade: a head of some hundred bytes, and why it was refused.
_MOST_ANSWER: Final = 64 * 1024
_EXCERPT: Final = 512
_SHORTEST_STATIC_SECRET: Final = 8
_STATUS: Final = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_CHALLENGE: Final = re.compile(rb"\r\nwww-authenticate:[ \t]*([^\r\n]*)", re.IGNORECASE)
# What comes out of trio-websocket when the server's side is no good. It answers a wrong answer to
# an upgrade as only a server may, which the libraries under it complain about; ValueError is for
# a header that is no text.
_FOREIGN: Final = (
    HandshakeError,
    ConnectionClosed,
    ProtocolError,
    h11.ProtocolError,
    ValueError,
)


class WebSocket(StreamChannel):
    """One session over one WebSocket.

    Args:
        url: the server's address, `ws` or `wss`.
        server: its configured name.
        deliver: takes every message that arrives, at once and without waiting.
        credentials: supplies headers for the upgrade, or None.
        headers: further headers for it.
        connect_timeout: seconds for the connection with TLS and upgrade, and for writing one
            message.
        event_limit: most characters of one message; a longer one ends the channel.
        trust: makes the TLS context that checks a `wss` server's certificate; not asked before
            it is needed, as it reads every certificate of the system.
        allowed_networks: CIDR blocks that the URL's name may lead to although they are not public
            (docs/egress.md).
        opener: makes the connection in place of the one that sees to that.

    Raises:
        ValueError: a network is none.
    """

    def __init__(
        self,
        url: str,
        *,
        server: str,
        deliver: Deliver,
        credentials: Credentials | None = None,
        headers: Mapping[str, str] | None = None,
        connect_timeout: float = 5.0,
        event_limit: int = 16 * 1024 * 1024,
        trust: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        allowed_networks: Iterable[str] = (),
        opener: Opener | None = None,
    ) -> None:
        extra = dict(headers or {})
        static = [value for value in extra.values() if len(value) >= _SHORTEST_STATIC_SECRET]
        super().__init__(
            server=server, deliver=deliver, connect_timeout=connect_timeout, secrets=static
        )
        self._url = httpx.URL(url)
        self._authorization = Authorization(credentials)
        self._extra = extra
        self._limit = event_limit
        self._trust = trust
        self._host = self._url.raw_host.decode("ascii")
        self._opener = opener or guarded_opener(self._host, allowed_networks)
        self._tap: _Tap | None = None
        self._socket: WebSocketConnection | None = None
        self._goodbye: trio.Event | None = None

    async def _run(self, opened: Callable[[], None]) -> str:
        refreshed = False
        while True:
            await self._authorize(self._authorization.ensure())
            shown = self._authorization.headers
            self._tap = tap = _Tap(await self._dial(), self.hear)
            why = await self._converse(tap, opened)
            if self._socket is not None:
                return why
            unauthorized = tap.status in _UNAUTHORIZED and self._authorization.refreshable
            if not unauthorized or refreshed:
                raise self._refused(tap, why)
            refreshed = True
            await self._release()
            again = self._authorization.renew(
                shown, status=tap.status or 401, challenge=tap.challenge
            )
            if await self._authorize(again) is False:
                raise self._refused(tap, why)

    async def _authorize(self, attempt: Awaitable[bool | None]) -> bool | None:
        try:
            return await attempt
        except UserError as error:
            raise self.failed(Phase.CONNECT, str(error), code="credentials") from error

    async def _dial(self) -> trio.abc.Stream:
        url = self._url
        try:
            context = self._trust() if url.scheme == "wss" else None
            return await self._opener(self._host, url.port or _PORTS[url.scheme], context)
        except (OSError, trio.BrokenResourceError, ValueError) as error:
            refused = isinstance(error, AddressRefusedError)
            text = f"connecting: {_innermost(error)}"
            code = "address_refused" if refused else "connect"
            raise self.failed(Phase.CONNECT, text, code=code) from error

    async def _converse(self, tap: _Tap, opened: Callable[[], None]) -> str:
        headers = {
            "user-agent": f"kars-router/{__version__}",
            **self._extra,
            **self._authorization.headers,
        }
        why = ""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tap.wait_ended, nursery.cancel_scope)
                socket = await wrap_client_stream(
                    nursery,
                    cast("Any", tap),
                    self._url.netloc.decode("ascii"),
                    self._url.raw_path.decode("ascii"),
                    subprotocols=[SUBPROTOCOL],
                    extra_headers=[(n.encode(), v.encode()) for n, v in headers.items()],
                    max_message_size=self._limit,
                    receive_buffer_size=_CHUNK,
                )
                tap.opened = True
                self._socket = socket
                opened()
                why = await self._read(socket)
                if self._goodbye is not None:
                    self.end(why)
                    await self._goodbye.wait()  # trio-websocket has to read the server's
                nursery.cancel_scope.cancel()
        except* _FOREIGN as group:
            why = why or _innermost(group)
        return why

    async def _read(self, socket: WebSocketConnection) -> str:
        # trio-websocket answers pings only while its own queue has room, so nothing may wait here.
        while True:
            try:
                message = await socket.get_message()
            except ConnectionClosed as closed:
                return _described(closed.reason)
            self.take(message.encode() if isinstance(message, str) else message)

    async def _write(self, payload: bytes, delivery: Delivery) -> None:
        assert self._socket is not None
        assert self._tap is not None
        before = bytes_sent(self._tap.inner)
        try:
            await self._socket.send_message(payload.decode())
            delivery.sent = Sent.YES
        except (ConnectionClosed, ProtocolError) as error:
            reason = error.reason if isinstance(error, ConnectionClosed) else None
            raise ChannelEnded(_described(reason)) from error
        finally:
            # A pong may have left meanwhile; that much less than all is known all the same.
            if delivery.sent is not Sent.YES and bytes_sent(self._tap.inner) != before:
                delivery.sent = Sent.PARTLY

    async def _farewell(self) -> None:
        if self._socket is None:
            return
        self._goodbye = trio.Event()
        try:
            await self._socket.aclose()
        finally:
            self._goodbye.set()

    async def _release(self) -> None:
        if self._tap is not None:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await trio.aclose_forcefully(self._tap.inner)

    def _refused(self, tap: _Tap, why: str) -> CallFailed:
        status = tap.status
        if status is None:
            text = f"the upgrade was not answered: {why or 'the server closed the connection'}"
            return self.failed(Phase.CONNECT, text, code="connect")
        if status == 101:
            text = f"the upgrade was answered in a wrong way: {why or 'the connection ended'}"
            return self.failed(Phase.CONNECT, text, code="protocol", status=status)
        return self.failed(
            Phase.CONNECT,
            "the upgrade was refused",
            code="redirect" if 300 <= status < 400 else "http_status",
            status=status,
            body=tap.body,
        )

    def _secrets(self) -> frozenset[str]:
        known = self._authorization.values()
        return super()._secrets() | {secret for secret in known if len(secret) >= SHORTEST}


class _Tap(trio.abc.Stream):
    """The stream under a WebSocket, which tells what trio-websocket does not.

    Attributes:
        inner: the stream itself.
        opened: the upgrade has succeeded; set by the owner.
    """

    def __init__(self, inner: trio.abc.Stream, heard: Callable[[], None]) -> None:
        self.inner = inner
        self.opened = False
        self._heard = heard
        self._answer = bytearray()
        self._ended = trio.Event()

    @property
    def status(self) -> int | None:
        """The HTTP status that the upgrade was answered with."""
        found = _STATUS.match(self._answer)
        return int(found[1]) if found else None

    @property
    def challenge(self) -> str:
        """The `WWW-Authenticate` fields of that answer, joined by commas."""
        head, _, _ = bytes(self._answer).partition(b"\r\n\r\n")
        return ", ".join(found.decode("latin-1") for found in _CHALLENGE.findall(head))

    @property
    def body(self) -> str:
        """The start of the body of that answer."""
        _, _, body = self._answer.partition(b"\r\n\r\n")
        return bytes(body[:_EXCERPT]).decode("utf-8", "replace")

    async def wait_ended(self, scope: trio.CancelScope) -> None:
        """Cancels an upgrade during which the server hangs up; trio-websocket would wait on."""
        await self._ended.wait()
        if not self.opened:
            scope.cancel()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self.inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            data = bytes(await self.inner.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._ended.set()
            raise
        self._heard()
        if not self.opened:
            self._answer += data
            if len(self._answer) > _MOST_ANSWER:
                data = b""
        if not data:
            self._ended.set()
        return data

    async def aclose(self) -> None:
        await self.inner.aclose()


def _described(reason: CloseReason | None) -> str:
    if reason is None:
        return "it was closed"
    if reason.code == 1006:
        return "the connection broke off"
    text = f", {reason.reason[:160]!r}" if reason.reason else ""
    return f"it was closed with code {reason.code} ({reason.name.lower()}){text}"


def _innermost(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) or error.__cause__ is not None:
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
        assert inner is not None
        error = inner
    return str(error) or type(error).__name__
