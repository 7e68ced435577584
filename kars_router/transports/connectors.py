"""The way to each configured server: what its sessions share, and how one's connection is made.

Owns which transport gets which settings. Must not know sessions.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import httpx
import trio
from attrs import define, field, frozen

from kars_router.config.schema import Limits, Server, Transport
from kars_router.hookspecs import Credentials
from kars_router.transports.base import Connection, Deliver
from kars_router.transports.client import new_client
from kars_router.transports.http import TrioTransport, trusting
from kars_router.transports.lookout import Lookout
from kars_router.transports.select import AutoHttp, Verdict, transport_of
from kars_router.transports.streamable_http import StreamableHttp

if TYPE_CHECKING:
    from kars_router.transports.legacy_sse import LegacySse

TransportFactory = Callable[[str, Server], httpx.AsyncBaseTransport]


class Connector(Protocol):
    """The way to one server, shared by all of its sessions."""

    def connect(self, deliver: Deliver, credentials: Credentials | None) -> Connection:
        """Makes one session's connection; nothing is sent before it is opened.

        Args:
            deliver: takes every message that arrives.
            credentials: what authenticates the router, or None.
        """
        ...

    async def aclose(self) -> None:
        """Closes what the sessions shared; they are over by then."""
        ...


def default_transport(_name: str, server: Server) -> httpx.AsyncBaseTransport:
    """The real HTTP transport for a server, with its own connections."""
    return TrioTransport(
        server.url or "",
        max_connections=server.max_connections,
        ca_file=server.ca_file,
        allowed_networks=server.allowed_networks,
    )


def new_connector(
    name: str,
    server: Server,
    limits: Limits,
    transports: TransportFactory = default_transport,
    *,
    lookout: Lookout | None = None,
) -> Connector:
    """Makes the way to a server; nothing is connected or started yet.

    Args:
        name: the server's configured name.
        server: its settings, which fit together.
        limits: bounds on what it can make the router hold.
        transports: makes the HTTP transport, where one is needed.
        lookout: waits for what comes on the GET streams of all servers.
    """
    kind = transport_of(server)
    if kind is Transport.STDIO:
        return StdioConnector(name=name, server=server, limits=limits)
    if kind is Transport.WEBSOCKET:
        return WebSocketConnector(name=name, server=server, limits=limits)
    return HttpConnector(
        name=name,
        server=server,
        limits=limits,
        transport=transports(name, server),
        kind=kind,
        lookout=lookout,
    )


@frozen(kw_only=True)
class HttpConnector:
    """The way to a server with an `http` or `https` URL.

    Attributes:
        transport: carries all requests; closed with the connector.
        kind: `AUTO`, `STREAMABLE_HTTP` or `SSE`.
        verdict: what was found out, with `AUTO`.
        lookout: waits for what comes on the GET streams of all servers, or None.
    """

    name: str
    server: Server
    limits: Limits
    transport: httpx.AsyncBaseTransport
    kind: Transport
    verdict: Verdict = field(factory=Verdict)
    lookout: Lookout | None = None

    def connect(self, deliver: Deliver, credentials: Credentials | None) -> Connection:
        """See `Connector.connect`."""
        # A client of its own gives the session its own cookies; it holds no connection.
        client = new_client(self.transport)

        def legacy() -> LegacySse:
            # Late, like every way that few servers are reached by.
            from kars_router.transports.legacy_sse import LegacySse

            return LegacySse(
                client,
                self.server.url or "",
                server=self.name,
                deliver=deliver,
                credentials=credentials,
                headers=self.server.headers,
                connect_timeout=self.server.timeouts.connect,
                event_limit=self.limits.event_bytes,
                body_limit=self.limits.response_bytes,
            )

        if self.kind is Transport.SSE:
            return legacy()
        streamable = StreamableHttp(
            client,
            self.server.url or "",
            server=self.name,
            deliver=deliver,
            credentials=credentials,
            headers=self.server.headers,
            connect_timeout=self.server.timeouts.connect,
            event_limit=self.limits.event_bytes,
            body_limit=self.limits.response_bytes,
            lookout=self.lookout,
        )
        if self.kind is Transport.STREAMABLE_HTTP:
            return streamable
        return AutoHttp(streamable, legacy, self.verdict)

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        await self.transport.aclose()


@define(kw_only=True)
class WebSocketConnector:
    """The way to a server with a `ws` or `wss` URL; each session has a connection of its own."""

    name: str
    server: Server
    limits: Limits
    _context: ssl.SSLContext | None = None

    def connect(self, deliver: Deliver, credentials: Credentials | None) -> Connection:
        """See `Connector.connect`."""
        from kars_router.transports.websocket import WebSocket

        return WebSocket(
            self.server.url or "",
            server=self.name,
            deliver=deliver,
            credentials=credentials,
            headers=self.server.headers,
            connect_timeout=self.server.timeouts.connect,
            event_limit=self.limits.event_bytes,
            trust=self._trust,
            allowed_networks=self.server.allowed_networks,
        )

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        await trio.lowlevel.checkpoint()

    def _trust(self) -> ssl.SSLContext:
        if self._context is None:
            self._context = trusting(self.server.ca_file)
        return self._context


@frozen(kw_only=True)
class StdioConnector:
    """The way to a server that is a program; each session has a process of its own."""

    name: str
    server: Server
    limits: Limits

    def connect(self, deliver: Deliver, credentials: Credentials | None) -> Connection:  # noqa: ARG002 - a process gets them in its environment
        """See `Connector.connect`."""
        from kars_router.transports.stdio import Stdio, environment

        given = dict(self.server.env)
        return Stdio(
            (*self.server.command, *self.server.args),
            env=environment(given, os.environ),
            server=self.name,
            deliver=deliver,
            connect_timeout=self.server.timeouts.connect,
            event_limit=self.limits.event_bytes,
            secrets=list(given.values()),
        )

    async def aclose(self) -> None:
        """See `Connector.aclose`."""
        await trio.lowlevel.checkpoint()
