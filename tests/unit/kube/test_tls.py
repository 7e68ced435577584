"""TLS with an API server: authorities, names, client certificates. Real sockets on loopback."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from attrs import evolve
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from http_kit import Authority, Peer, certificate_builder, ok
from trio.socket import SO_KEEPALIVE, SOL_SOCKET

from kars_router.errors import UserError
from kars_router.kube import Connection, UnreachableError, open_kube
from kars_router.kube.credentials import Certificate, Fixed
from kars_router.kube.resources import PODS
from kars_router.kube.tls import opener
from kars_router.transports.counted_stream import CountedStream


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path)


@asynccontextmanager
async def served(context: ssl.SSLContext, expired: Collection[str] = ()) -> AsyncIterator[int]:
    """An API server that knows a pod named after who asks; gives its port."""

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
            names = (stream.getpeercert() or {}).get("subject", ())
            named = ",".join(value for part in names for _, value in part)
            peer = Peer(stream, 1)
            while request := await peer.request():
                if b"watch=true" in request:
                    await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                    await trio.sleep_forever()
                if named in expired:
                    await peer.send(ok(b"{}", status=b"401 Unauthorized"))
                    continue
                await peer.send(ok(b'{"metadata": {"name": "%b"}}' % named.encode()))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_ssl_over_tcp_listeners(
            0, context, host="127.0.0.1", https_compatible=True
        )
        await nursery.start(trio.serve_listeners, handle, listeners)
        wire = listeners[0].transport_listener
        assert isinstance(wire, trio.SocketListener)
        yield wire.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def pair(authority: Authority, folder: Path, name: str = "admin") -> Certificate:
    """A client certificate; the kit writes the key and the certificate into one file."""
    authority.server_context(name)
    both = (folder / f"{name}.pem").read_text("ascii")
    key, mark, chain = both.partition("-----BEGIN CERTIFICATE-----")
    return Certificate(mark + chain, key)


def connection(port: int, authority: Authority, **more: object) -> Connection:
    found = Connection(
        server=f"https://127.0.0.1:{port}",
        source="config",
        authorities=authority.ca_file.read_text("ascii"),
        seconds=10.0,
    )
    return evolve(found, **more)  # type: ignore[arg-type]


def demanding(authority: Authority) -> ssl.SSLContext:
    """Of a server that wants to see a certificate of its clients."""
    context = authority.server_context("127.0.0.1")
    context.load_verify_locations(authority.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    return context


async def ask(connection: Connection) -> str:
    async with open_kube(connection) as kube:
        return str((await kube.get(PODS, "a"))["metadata"]["name"])


async def test_the_authority_of_the_kubeconfig_vouches(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    other = Authority.create(tmp_path / "other", "another authority")
    async with served(authority.server_context("127.0.0.1")) as port:
        assert await ask(connection(port, authority)) == ""
        for stranger in (connection(port, other), connection(port, authority, authorities="")):
            with pytest.raises(UnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
                await ask(stranger)


async def test_the_certificate_is_for_the_host_or_the_name_that_is_given(
    authority: Authority,
) -> None:
    async with served(authority.server_context("kubernetes")) as port:
        with pytest.raises(UnreachableError, match="IP address mismatch"):
            await ask(connection(port, authority))
        assert await ask(connection(port, authority, server_name="kubernetes")) == ""
        with pytest.raises(UnreachableError, match="Hostname mismatch"):
            await ask(connection(port, authority, server_name="other"))


async def test_nobody_has_to_vouch_if_so_configured(authority: Authority) -> None:
    async with served(authority.server_context("kubernetes")) as port:
        assert await ask(connection(port, authority, authorities="", insecure=True)) == ""


async def test_a_client_certificate_is_presented(authority: Authority, tmp_path: Path) -> None:
    certificate = pair(authority, tmp_path)
    async with served(demanding(authority)) as port:
        known = connection(port, authority, credentials=Fixed(certificate=certificate))
        assert await ask(known) == "admin"
        with pytest.raises(UnreachableError):
            await ask(connection(port, authority))


class Changing:
    """Credentials with another certificate for each connection."""

    def __init__(self, *certificates: Certificate) -> None:
        self.certificates = list(certificates)

    @property
    def certificate(self) -> Certificate:
        return self.certificates[0]

    async def headers(self) -> dict[str, str]:
        return {}

    def refused(self) -> bool:
        del self.certificates[0]
        return True


async def test_a_new_certificate_is_for_new_connections(
    authority: Authority, tmp_path: Path
) -> None:
    changing = Changing(pair(authority, tmp_path, "one"), pair(authority, tmp_path, "two"))
    async with (
        served(demanding(authority)) as port,
        open_kube(connection(port, authority, credentials=changing)) as kube,
        kube.watch(PODS, resource_version="1"),  # keeps the first connection for itself
    ):
        del changing.certificates[0]
        assert (await kube.get(PODS, "a"))["metadata"]["name"] == "two"


async def test_a_certificate_that_has_expired_is_renewed_for_kept_connections_too(
    authority: Authority, tmp_path: Path
) -> None:
    changing = Changing(pair(authority, tmp_path, "one"), pair(authority, tmp_path, "two"))
    expired: list[str] = []
    async with (
        served(demanding(authority), expired) as port,
        open_kube(connection(port, authority, credentials=changing)) as kube,
    ):
        assert (await kube.get(PODS, "a"))["metadata"]["name"] == "one"
        expired.append("one")
        assert (await kube.get(PODS, "a"))["metadata"]["name"] == "two"


def encrypted(certificate: Certificate) -> str:
    key = serialization.load_pem_private_key(certificate.key.encode(), None)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    ).decode()


def another_key() -> str:
    return (
        ec.generate_private_key(ec.SECP256R1())
        .private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        .decode()
    )


async def test_a_certificate_that_cannot_be_used_is_told_before_anything_is_sent(
    authority: Authority, tmp_path: Path
) -> None:
    good = pair(authority, tmp_path)
    for key in (another_key(), encrypted(good), "rubbish"):
        broken = Fixed(certificate=Certificate(good.chain, key))
        with pytest.raises(
            UserError, match="client certificate and its key cannot be used"
        ) as caught:
            async with open_kube(connection(1, authority, credentials=broken)):
                pytest.fail("it cannot be opened")
        assert "BEGIN" not in str(caught.value)
    with pytest.raises(UserError, match="config: the certificate authority cannot be used"):
        async with open_kube(connection(1, authority, authorities="rubbish")):
            pytest.fail("it cannot be opened")


async def test_an_authority_as_old_clusters_have_them_will_do(tmp_path: Path) -> None:
    # Neither key usage nor identifiers: Python 3.13 refuses such a one unless told otherwise.
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "old")])
    certificate = certificate_builder(name, name, key, identifiers=False).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=False
    )
    path = tmp_path / "old.pem"
    signed = certificate.sign(key, hashes.SHA256())
    path.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    old = Authority(path, key, name, tmp_path)
    async with served(old.server_context("127.0.0.1")) as port:
        assert await ask(connection(port, old)) == ""


async def test_what_is_plain_http_is_told() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        port = listeners[0].socket.getsockname()[1]
        server = f"https://127.0.0.1:{port}"
        with pytest.raises(UnreachableError, match=r"cannot be reached: connecting: .*SSL"):
            await ask(Connection(server=server, insecure=True, seconds=10.0))
        nursery.cancel_scope.cancel()


async def test_the_kernel_watches_over_connections(authority: Authority) -> None:
    async with served(authority.server_context("127.0.0.1")) as port:
        known = connection(port, authority)
        for context in (None, ssl.create_default_context(cafile=authority.ca_file)):
            stream = await opener(known)("127.0.0.1", port, context)
            wire = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
            assert isinstance(wire, CountedStream)
            assert wire.socket.getsockopt(SOL_SOCKET, SO_KEEPALIVE) == 1
            await trio.aclose_forcefully(stream)


async def test_a_name_may_lead_anywhere_that_is_named_in_a_kubeconfig() -> None:
    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(ok(b'{"metadata": {"name": "here"}}'))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, handle, 0)
        port = listeners[0].socket.getsockname()[1]
        assert await ask(Connection(server=f"http://localhost:{port}", seconds=10.0)) == "here"
        nursery.cancel_scope.cancel()
