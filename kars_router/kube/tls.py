"""TLS with an API server: which authorities vouch for it, and what certificate we present.

Owns SSL contexts and the streams of connections. Must not know HTTP.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import tempfile
from typing import Final

import trio
from attrs import define, field

from kars_router.errors import UndeterminedError
from kars_router.kube.connection import Connection
from kars_router.kube.credentials import Certificate
from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.dial import guard_for
from kars_router.transports.http_streams import Opener, open_stream

# Who names an API server in a kubeconfig trusts it, wherever it is.
_ANYWHERE: Final = ("0.0.0.0/0", "::/0")
# A watch may say nothing for minutes, so the kernel has to notice that the other side is gone.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))


@define
class Trust:
    """Makes the TLS context of new connections; a new one when the client's certificate changes.

    Attributes:
        connection: has the authorities and the credentials.
    """

    connection: Connection
    _context: ssl.SSLContext | None = field(default=None, init=False)
    _certificate: Certificate | None = field(default=None, init=False)

    def __call__(self) -> ssl.SSLContext:
        """The context.

        Raises:
            UndeterminedError: an authority or a certificate cannot be used.
        """
        certificate = self.connection.credentials.certificate
        if self._context is None or certificate is not self._certificate:
            self._context = _context(self.connection)
            self._certificate = certificate
            if certificate is not None:
                _present(self._context, certificate)
        return self._context


def _context(connection: Connection) -> ssl.SSLContext:
    if connection.authorities:
        # Only they vouch for it, as everywhere in Kubernetes.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=connection.authorities)
        except (ssl.SSLError, ValueError) as error:
            raise UndeterminedError(
                f"{connection.source}: the certificate authority cannot be used: {error}"
            ) from error
        # An authority that is not a root will do, as it does for kubectl; and Python 3.13 asks of
        # authorities what those of older clusters do not have.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    else:
        context = ssl.create_default_context()
    if connection.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _present(context: ssl.SSLContext, certificate: Certificate) -> None:
    # OpenSSL reads them from files only. This one is ours alone and gone at once.
    with tempfile.NamedTemporaryFile("w", encoding="ascii", suffix=".pem") as file:
        file.write(f"{certificate.chain}\n{certificate.key}\n")
        file.flush()
        try:
            # Without a password of our own, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(file.name, password="")
        except (ssl.SSLError, OSError) as error:
            raise UndeterminedError(
                "the client certificate and its key cannot be used: "
                f"{getattr(error, 'reason', None) or error}"
            ) from error


def opener(connection: Connection) -> Opener:
    """Makes what connects to the server of a connection."""

    async def open_connection(
        host: str, port: int, context: ssl.SSLContext | None
    ) -> trio.abc.Stream:
        guard = guard_for(host, _ANYWHERE)
        stream = await open_stream(
            host, port, context, guard=guard, server_name=connection.server_name or None
        )
        _keep_alive(stream)
        return stream

    return open_connection


def _keep_alive(stream: trio.abc.Stream) -> None:
    wire = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    if not isinstance(wire, CountedStream):
        return
    # Not every system has every option, and a connection that is gone will tell later.
    with contextlib.suppress(OSError):
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                wire.socket.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
