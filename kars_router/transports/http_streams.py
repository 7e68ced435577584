"""Streams to an upstream: opening them, and what has to be known of them besides their bytes.

Owns TLS set-up and the check of an idle stream. Must not know HTTP or the pool; how a TCP
connection comes about is `dial`'s, and what is counted on it `counted_stream`'s.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import trio

from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.dial import dial, guard_for
from kars_router.transports.guard import Guard

Opener = Callable[[str, int, ssl.SSLContext | None], Awaitable[trio.abc.Stream]]

_CLOSE_SECONDS: Final = 1.0
_PROBE_SECONDS: Final = 0.001  # for streams that cannot be asked whether they have something


def guarded_opener(host: str, networks: Iterable[str] = ()) -> Opener:
    """The opener for one server, which connects only to where its URL's host may lead.

    Args:
        host: a name, or an address without brackets.
        networks: CIDR blocks that a name may lead to although they are not public.

    Raises:
        ValueError: a network is none.
    """
    return functools.partial(open_stream, guard=guard_for(host, networks))


async def open_stream(
    host: str,
    port: int,
    context: ssl.SSLContext | None,
    *,
    guard: Guard | None = None,
    server_name: str | None = None,
) -> trio.abc.Stream:
    """Connect over TCP, and TLS if there is a context.

    Args:
        host: a name, or an address without brackets.
        port: 1 to 65535.
        context: checks the server's certificate against `host`, which is also sent as SNI.
        guard: says which addresses of `host` may be connected to; without one, the usual ones.
        server_name: stands in for `host` in TLS.

    Raises:
        AddressRefusedError: none of its addresses may be.
        OSError: no connection.
        trio.BrokenResourceError: no TLS; the cause says why.
        ValueError: `host` cannot be a host name.

    Cancelled, it leaves no socket open.
    """
    tcp = CountedStream(await dial(guard or guard_for(host), port))  # Trio sets TCP_NODELAY
    if context is None:
        return tcp
    try:
        # RFC 6066 section 3: no trailing dot in SNI. `https_compatible`: RFC 9112 section 9.8; many
        # servers close without a close_notify, and framing tells a cut body anyway.
        name = server_name or host.removesuffix(".")
        tls = trio.SSLStream(tcp, context, server_hostname=name, https_compatible=True)
        await tls.do_handshake()
    except BaseException:
        with trio.move_on_after(_CLOSE_SECONDS, shield=True):
            await trio.aclose_forcefully(tcp)
        raise
    return tls


def bytes_sent(stream: trio.abc.Stream) -> int | None:
    """How many bytes the network has accepted from `stream`; None if it does not count.

    For TLS these are bytes of ciphertext; none of them means no byte of plaintext either.
    """
    sent = getattr(innermost(stream), "sent", None)
    return sent if isinstance(sent, int) else None


async def is_stale(stream: trio.abc.Stream) -> bool:
    """Tell whether an idle stream has ended, failed or holds bytes that nobody asked for.

    Takes no time for a socket, with TLS or without, and a millisecond for anything else. It may
    consume a byte, so a stale stream is good for closing only. Cancelled, the stream is in doubt.
    """
    wire = innermost(stream)
    try:
        if not isinstance(wire, CountedStream):
            with trio.move_on_after(_PROBE_SECONDS):
                await stream.receive_some(1)
                return True
            return False
        if wire is stream:
            return wire.is_readable()
        # The socket alone does not tell: a record may wait above it, or hold but a session ticket.
        with wire.impatient():
            await stream.receive_some(1)
    except trio.WouldBlock:
        return False
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return True
    return True


def innermost(stream: trio.abc.Stream) -> trio.abc.Stream:
    """The stream under all TLS."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    return stream
