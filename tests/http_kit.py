"""Both ends of the connections in the tests of the HTTP transport.

A scripted server on memory streams with streams that fail where they are told to, certificates,
and a way to cancel something at its n-th checkpoint.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import httpx
import trio
import trio.testing
from attrs import define, field
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kars_router.transports.http import EXTENSION, Exchange, TrioTransport

URL = "http://upstream.test/mcp"
NEVER = 10**9


class FakeStream(trio.abc.Stream):
    """The client's end of a memory connection: counts, and fails on demand.

    `accept`: how many bytes more are taken before the connection breaks (or, with `hang`, just
    stops taking any). `deliver`: how many bytes more arrive before it is reset.
    """

    def __init__(self, inner: trio.StapledStream) -> None:  # type: ignore[type-arg]
        self.inner = inner
        self.sent = 0
        self.accept = NEVER
        self.hang = False
        self.deliver = NEVER
        self.closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        taken = bytes(data[: self.accept])
        await self.inner.send_all(taken)
        self.sent += len(taken)
        self.accept -= len(taken)
        if len(taken) < len(data):
            if self.hang:
                await trio.sleep_forever()
            raise trio.BrokenResourceError("the fake connection broke")

    async def wait_send_all_might_not_block(self) -> None:
        await self.inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self.deliver:
            await trio.lowlevel.checkpoint()
            raise trio.BrokenResourceError("the fake connection was reset")
        limit = self.deliver if max_bytes is None else min(self.deliver, max_bytes)
        data = bytes(await self.inner.receive_some(limit))
        self.deliver -= len(data)
        return data

    async def aclose(self) -> None:
        self.closed = True
        await self.inner.aclose()


@define(eq=False)
class Peer:
    """The server's end of one connection."""

    stream: trio.abc.Stream
    number: int
    _seen: bytearray = field(factory=bytearray)

    async def request(self) -> bytes:
        """The next whole request; empty when the client has closed."""
        while (end := self._seen.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                return b""
        head = bytes(self._seen[: end + 4])
        length = 0
        for line in head.split(b"\r\n"):
            if line.startswith(b"content-length: "):
                length = int(line[16:])
        while len(self._seen) < len(head) + length:
            if not await self._more():
                return b""
        request = bytes(self._seen[: len(head) + length])
        del self._seen[: len(request)]
        return request

    async def _more(self) -> bool:
        data = await self.stream.receive_some(65536)
        self._seen += data
        return bool(data)

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            await self.stream.send_all(piece)

    async def close(self) -> None:
        await self.stream.aclose()


Handler = Callable[[Peer], Awaitable[None]]


def ok(body: bytes = b"hello", *, headers: bytes = b"", status: bytes = b"200 OK") -> bytes:
    """A response with Content-Length."""
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


async def answer_all(peer: Peer) -> None:
    """Answer every request with the number of its connection."""
    while await peer.request():
        await peer.send(ok(b"%d" % peer.number))


async def silent(peer: Peer) -> None:
    """Take requests and never answer."""
    while await peer.request():
        pass


async def endless(peer: Peer) -> None:
    """Answer with an event stream that goes on."""
    await peer.request()
    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    await trio.sleep_forever()


def scripted(*responses: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Answer the requests of a connection with these, one by one, then close."""

    async def handler(peer: Peer) -> None:
        for response in responses:
            if not await peer.request():
                return
            await peer.send(response)

    return handler


@define(eq=False)
class Upstream:
    """Opens memory connections, each served by `handler` until that returns.

    `requests` holds what arrived whole, as (number of the connection, bytes).
    """

    nursery: trio.Nursery
    handler: Handler = answer_all
    streams: list[FakeStream] = field(factory=list)
    prepare: Callable[[FakeStream], None] = lambda stream: None

    async def open(self, host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        client, server = trio.testing.memory_stream_pair()
        stream = FakeStream(client)
        self.prepare(stream)
        self.streams.append(stream)
        self.nursery.start_soon(self._serve, Peer(server, len(self.streams)))
        return stream

    async def _serve(self, peer: Peer) -> None:
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await self.handler(peer)
        await peer.close()

    @property
    def open_streams(self) -> int:
        return sum(not stream.closed for stream in self.streams)


@contextlib.asynccontextmanager
async def upstream(
    handler: Handler = answer_all, *, max_connections: int = 64
) -> AsyncIterator[tuple[Upstream, TrioTransport]]:
    """A scripted server and a transport on it; checks that closing leaves nothing open."""
    assert isinstance(trio.lowlevel.current_clock(), trio.testing.MockClock)
    async with trio.open_nursery() as nursery:
        server = Upstream(nursery, handler)
        transport = TrioTransport(URL, max_connections=max_connections, opener=server.open)
        yield server, transport
        await transport.aclose()
        assert server.open_streams == 0
        nursery.cancel_scope.cancel()


def build(
    method: str = "GET",
    *,
    content: bytes | None = None,
    exchange: Exchange | None = None,
    url: str = URL,
    **timeout: float,
) -> httpx.Request:
    """A request as a client would hand it to the transport."""
    extensions: dict[str, object] = {"timeout": timeout}
    if exchange is not None:
        extensions[EXTENSION] = exchange
    return httpx.Request(method, url, content=content, extensions=extensions)


async def fetch(transport: httpx.AsyncBaseTransport, request: httpx.Request) -> httpx.Response:
    """Send, and read to the end, within a (virtual) minute."""
    with trio.fail_after(60):
        response = await transport.handle_async_request(request)
        await response.aread()
    return response


def assert_clean(transport: TrioTransport, *, max_connections: int = 64) -> None:
    """No place is taken, no connection is in use, nobody waits."""
    stats = transport.stats()
    assert stats.in_use == 0
    assert stats.waiting == 0
    assert stats.open == stats.idle
    assert transport._pool._places.value == max_connections
    assert not transport._pool._doomed


async def cancel_at(checkpoint: int, action: Callable[[], Awaitable[object]]) -> bool:
    """Run `action` and cancel it where it waits for the n-th time; False if it ended before."""
    task = trio.lowlevel.current_task()
    scope = trio.CancelScope()
    seen = 0

    class Canceller(trio.abc.Instrument):
        def after_task_step(self, stepped: trio.lowlevel.Task) -> None:
            nonlocal seen
            if stepped is task:
                seen += 1
                if seen == checkpoint:
                    scope.cancel()

    instrument = Canceller()
    trio.lowlevel.add_instrument(instrument)
    try:
        with scope:
            await action()
    finally:
        trio.lowlevel.remove_instrument(instrument)
    return scope.cancel_called


@define
class Authority:
    """A certificate authority for one test run."""

    ca_file: Path
    _key: ec.EllipticCurvePrivateKey
    _name: x509.Name
    _folder: Path

    @classmethod
    def create(cls, folder: Path, name: str = "test authority") -> Authority:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = certificate_builder(subject, subject, key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        builder = builder.add_extension(_ca_usage(), critical=True)
        path = folder / f"{name.replace(' ', '-')}.pem"
        path.write_bytes(
            builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        return cls(path, key, subject, folder)

    def server_context(self, *hosts: str) -> ssl.SSLContext:
        """A TLS context of a server that is certified as `hosts`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        certificate = (
            certificate_builder(subject, self._name, key, self._key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        path = self._folder / f"{hosts[0]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(path)
        return context


def _ca_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=True,
        crl_sign=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def certificate_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey | None = None,
    *,
    identifiers: bool = True,
) -> x509.CertificateBuilder:
    """A certificate for a day, not signed yet, with the identifiers that Python 3.13 insists on.

    Without a `signer` it is one that signs itself.
    """
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
    )
    if not identifiers:
        return made
    own = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key((signer or key).public_key())
    return made.add_extension(own, critical=False).add_extension(by, critical=False)
