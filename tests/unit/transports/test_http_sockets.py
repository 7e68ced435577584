"""The transport on real sockets: TLS, exact counting, a real ASGI server, no leaks."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import hypercorn.trio
import pytest
import trio
from http_kit import Authority, Peer, answer_all, assert_clean, build, fetch, ok
from hypercorn.config import Config

from kars_router.transports.client import new_client
from kars_router.transports.counted_stream import CountedStream
from kars_router.transports.http import EXTENSION, Exchange, TrioTransport
from kars_router.transports.http_streams import is_stale


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("authority"))


@contextlib.asynccontextmanager
async def listening(
    handler: Callable[[Peer], Awaitable[None]], context: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """A server on loopback; the value is its port. Bounded in time, as the clock is real."""
    count = 0

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal count
        count += 1
        end: trio.abc.Stream = stream
        if context is not None:
            end = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            await handler(Peer(end, count))
        await trio.aclose_forcefully(end)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
            yield listeners[0].socket.getsockname()[1]
            nursery.cancel_scope.cancel()


def sockets_open() -> int:
    """File descriptors of this process that are sockets."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            count += entry.readlink().name.startswith("socket:")
    return count


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")


# --- TCP -----------------------------------------------------------------------------------------


async def test_tcp_without_delay_and_reused() -> None:
    async with listening(answer_all) as port:
        url = f"http://127.0.0.1:{port}/"
        async with TrioTransport(url) as transport:
            for _ in range(3):
                assert (await fetch(transport, build(url=url))).content == b"1"
            [connection] = transport._pool._idle
            assert isinstance(connection.stream, CountedStream)
            assert connection.stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            size = len(f"GET / HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n")
            assert connection.stream.sent == 3 * size


async def test_who_is_cancelled_before_sends_nothing() -> None:
    async with listening(answer_all) as port:
        url = f"http://127.0.0.1:{port}/"
        exchange = Exchange()
        async with TrioTransport(url) as transport:
            await fetch(transport, build(url=url))
            with trio.CancelScope() as scope:
                scope.cancel()
                await transport.handle_async_request(build(url=url, exchange=exchange))
            assert scope.cancelled_caught
            assert (exchange.accepted, exchange.complete) == (0, False)
            assert_clean(transport)


async def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: nobody else can get the port
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
        exchange = Exchange()
        with pytest.raises(httpx.ConnectError, match="refused"), trio.fail_after(10):
            await fetch(TrioTransport(url), build(url=url, exchange=exchange))
        assert exchange == Exchange()


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "nowhere.invalid"])
async def test_a_host_that_cannot_be_found(host: str) -> None:
    url = f"http://{host}/"
    with pytest.raises(httpx.ConnectError), trio.fail_after(10):
        await fetch(TrioTransport(url), build(url=url))


async def test_a_kept_connection_that_the_server_closed_is_replaced() -> None:
    closed = trio.Event()

    async def one_each(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(b"%d" % peer.number))
        await peer.close()
        closed.set()

    async with listening(one_each) as port:
        url = f"http://127.0.0.1:{port}/"
        async with TrioTransport(url) as transport:
            assert (await fetch(transport, build(url=url))).content == b"1"
            await closed.wait()
            idle = transport._pool._idle[0].stream
            assert isinstance(idle, CountedStream)
            await trio.lowlevel.wait_readable(idle.socket)  # until the kernel has passed it on
            assert (await fetch(transport, build(url=url))).content == b"2"
            assert transport.stats().stale_dropped == 1


async def test_a_large_request_that_is_refused_early_gets_its_answer() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.stream.receive_some(1000)
        await peer.send(ok(b"too large", status=b"413 Content Too Large"))
        await peer.close()  # with unread data: the kernel resets the connection

    async with listening(refuse) as port:
        url = f"http://127.0.0.1:{port}/"
        exchange = Exchange()
        async with TrioTransport(url) as transport:
            request = build("POST", content=b"x" * 20_000_000, url=url, exchange=exchange)
            response = await fetch(transport, request)
            assert (response.status_code, response.content) == (413, b"too large")
            assert not exchange.complete
            assert exchange.accepted
            assert_clean(transport)


async def test_a_send_that_times_out_says_how_much_was_accepted() -> None:
    async def never_read(peer: Peer) -> None:
        await trio.sleep_forever()

    async with listening(never_read) as port:
        url = f"http://127.0.0.1:{port}/"
        exchange = Exchange()
        async with TrioTransport(url) as transport:
            content = b"x" * 50_000_000
            request = build("POST", content=content, url=url, exchange=exchange, write=0.3)
            with pytest.raises(httpx.WriteTimeout):
                await fetch(transport, request)
            assert 0 < exchange.accepted < 50_000_000
            assert not exchange.complete
            assert_clean(transport)


@needs_proc
async def test_cancelled_while_connecting_no_socket_stays(
    monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    """A server that accepts and says nothing holds a TLS handshake for ever."""

    async def mute(peer: Peer) -> None:
        await trio.sleep_forever()

    async with listening(mute) as port:
        url = f"https://127.0.0.1:{port}/"
        transport = TrioTransport(url, ca_file=authority.ca_file)
        before = sockets_open()
        with pytest.raises(httpx.ConnectTimeout):
            await fetch(transport, build(url=url, connect=0.2))
        assert sockets_open() <= before + 1  # the server's end, whose handler still sleeps
        assert_clean(transport)


# --- TLS -----------------------------------------------------------------------------------------


async def test_tls_is_verified_named_and_reused(authority: Authority) -> None:
    context = authority.server_context("localhost", "127.0.0.1")
    names = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with listening(answer_all, context) as port:
        url = f"https://localhost:{port}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            exchange = Exchange()
            for _ in range(3):
                request = build("POST", content=b"{}", url=url, exchange=exchange)
                assert (await fetch(transport, request)).content == b"1"
            assert exchange.reused
            assert exchange.complete
            assert names == ["localhost"]
            [connection] = transport._pool._idle
            assert isinstance(connection.stream, trio.SSLStream)
        url = f"https://127.0.0.1:{port}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            assert (await fetch(transport, build(url=url))).status_code == 200


class Resolver(trio.abc.HostnameResolver):
    """Every name is on loopback."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise AssertionError


async def test_a_trailing_dot_is_not_part_of_the_name(authority: Authority) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver())
    context = authority.server_context("upstream.test")
    names = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    async with listening(answer_all, context) as port:
        url = f"https://upstream.test.:{port}/"
        async with TrioTransport(
            url, ca_file=authority.ca_file, allowed_networks=["127.0.0.0/8"]
        ) as transport:
            assert (await fetch(transport, build(url=url))).status_code == 200
    assert names == ["upstream.test"]


async def test_a_certificate_for_another_host_is_refused(authority: Authority) -> None:
    context = authority.server_context("other.test")
    async with listening(answer_all, context) as port:
        url = f"https://localhost:{port}/"
        exchange = Exchange()
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            with pytest.raises(httpx.ConnectError, match=r"not valid for 'localhost'"):
                await fetch(transport, build(url=url, exchange=exchange))
            assert exchange == Exchange()
            assert_clean(transport)


async def test_an_unknown_authority_is_refused(authority: Authority) -> None:
    context = authority.server_context("localhost")
    async with listening(answer_all, context) as port:
        url = f"https://localhost:{port}/"
        async with TrioTransport(url) as transport:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await fetch(transport, build(url=url))
            assert_clean(transport)


async def test_a_server_without_tls_is_refused() -> None:
    async def plain(peer: Peer) -> None:
        await peer.stream.receive_some(1000)
        await peer.send(ok())

    async with listening(plain) as port:
        url = f"https://localhost:{port}/"
        async with TrioTransport(url) as transport:
            with pytest.raises(httpx.ConnectError, match=r"\[SSL"):
                await fetch(transport, build(url=url))


async def test_the_trust_store_is_read_once_and_only_for_https(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    create = ssl.create_default_context

    def counted() -> ssl.SSLContext:
        made.append(create())
        return made[-1]

    context = authority.server_context("localhost")

    monkeypatch.setattr(ssl, "create_default_context", counted)

    async def close_each(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(headers=b"Connection: close\r\n"))

    async with listening(close_each, context) as port, listening(answer_all) as plain_port:
        url = f"http://127.0.0.1:{plain_port}/"
        async with TrioTransport(url, ca_file="missing.pem") as transport:
            await fetch(transport, build(url=url))
        assert made == []
        url = f"https://localhost:{port}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            assert made == []
            for _ in range(3):
                await fetch(transport, build(url=url))
            assert transport.stats().opened_total == 3
        assert len(made) == 1


async def test_a_missing_ca_file_is_named() -> None:
    url = "https://localhost:1/"
    async with TrioTransport(url, ca_file="missing-authority.pem") as transport:
        with pytest.raises(httpx.ConnectError, match=r"No such file.*missing-authority\.pem"):
            await fetch(transport, build(url=url))


async def test_a_tls_connection_cut_in_a_sized_body_is_an_error(authority: Authority) -> None:
    context = authority.server_context("localhost")

    async def cut(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")

    async with listening(cut, context) as port:
        url = f"https://localhost:{port}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            with pytest.raises(httpx.RemoteProtocolError, match="middle of a response body"):
                await fetch(transport, build(url=url))


async def test_surplus_in_a_tls_record_of_its_own_is_noticed(authority: Authority) -> None:
    """Both records come in one read of the socket, so that the socket itself looks quiet."""
    context = authority.server_context("localhost")

    async def twice(peer: Peer) -> None:
        tls = peer.stream
        assert isinstance(tls, trio.SSLStream)
        await peer.request()
        held = bytearray()
        wire = tls.transport_stream
        send_all = wire.send_all

        async def hold(data: bytes | bytearray | memoryview) -> None:
            await trio.lowlevel.checkpoint()
            held.extend(data)

        wire.send_all = hold
        await peer.send(ok(b"%d" % peer.number))
        await peer.send(ok(b"surplus"))
        wire.send_all = send_all
        await send_all(held)
        await answer_all(peer)

    async with listening(twice, context) as port:
        url = f"https://localhost:{port}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            assert (await fetch(transport, build(url=url))).content == b"1"
            [connection] = transport._pool._idle
            assert not connection.stream.transport_stream.socket.is_readable()  # type: ignore[attr-defined]
            assert (await fetch(transport, build(url=url))).content == b"2"
            assert transport.stats().stale_dropped == 1


async def test_a_live_tls_connection_is_not_stale(authority: Authority) -> None:
    context = authority.server_context("localhost")
    async with listening(answer_all, context) as port:
        url = f"https://localhost:{port}/"
        async with TrioTransport(url, ca_file=authority.ca_file) as transport:
            await fetch(transport, build(url=url))
            for _ in range(3):
                assert not await is_stale(transport._pool._idle[0].stream)


# --- a real server -------------------------------------------------------------------------------


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Echo, event streams, large bodies."""
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    kind = b"text/event-stream" if scope["path"] == "/events" else b"application/json"
    status = 202 if scope["path"] == "/empty" else 200
    headers = [(b"content-type", kind)]
    if scope["path"] == "/echo":
        headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    if scope["path"] == "/events":
        for number in range(3):
            data = b"data: %d\n\n" % number
            await send({"type": "http.response.body", "body": data, "more_body": True})
        body = b""
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def hypercorn_serving() -> AsyncIterator[str]:
    config = Config()
    config.bind = ["127.0.0.1:0"]
    stop = trio.Event()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            [url] = await nursery.start(
                lambda task_status: hypercorn.trio.serve(
                    application, config, shutdown_trigger=stop.wait, task_status=task_status
                )
            )
            yield url
            stop.set()


async def test_a_real_server_and_real_clients() -> None:
    async with hypercorn_serving() as url, TrioTransport(url) as transport:
        large = os.urandom(3_000_000)
        async with new_client(transport) as first, new_client(transport) as second:
            for client in (first, second):
                response = await client.post(f"{url}/echo", content=b'{"id":0}')
                assert response.json() == {"id": 0}
                assert response.headers["content-length"] == "8"
            assert (await first.post(f"{url}/echo", content=large)).content == large
            assert (await first.post(f"{url}/chunked", content=large)).content == large
            assert (await first.head(f"{url}/echo")).content == b""
            assert (await first.post(f"{url}/empty")).status_code == 202
            async with second.stream("GET", f"{url}/events") as response:
                assert [line async for line in response.aiter_lines() if line] == [
                    "data: 0",
                    "data: 1",
                    "data: 2",
                ]
        assert transport.stats().opened_total == 1
        assert_clean(transport)


async def test_many_clients_at_once_share_few_connections() -> None:
    async with hypercorn_serving() as url, TrioTransport(url, max_connections=4) as transport:
        sums = []

        async def session(number: int) -> None:
            async with new_client(transport) as client:
                for step in range(10):
                    content = b"%d-%d" % (number, step)
                    response = await client.post(f"{url}/echo", content=content)
                    assert response.content == content
                    sums.append(step)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(session, number)
        assert len(sums) == 200
        assert transport.stats().opened_total <= 4
        assert_clean(transport, max_connections=4)


# --- soak ----------------------------------------------------------------------------------------


def outcomes() -> Iterator[int]:
    """Which of the server's manners the next request meets."""
    while True:
        yield from range(8)


async def mannered(peer: Peer) -> None:
    """Answer as the request's path says: well, badly, or not to the end."""
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    while request := await peer.request():
        manner = int(request.split()[1][1:])
        if manner == 4:
            await peer.send(ok(headers=b"Connection: close\r\n"))
            return
        if manner == 5:
            await peer.send(b"garbage\r\n\r\n")
            return
        if manner == 6:
            await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")
            return
        if manner == 7:
            await peer.send(chunked)  # and the client leaves in the middle
            continue
        await peer.send(chunked + b"0\r\n\r\n" if manner % 2 else ok())


@needs_proc
async def test_two_thousand_requests_leak_nothing() -> None:
    before = sockets_open()
    async with listening(mannered) as port:
        url = f"http://127.0.0.1:{port}"
        manners = outcomes()
        async with TrioTransport(url, max_connections=8) as transport:

            async def session(count: int) -> None:
                async with new_client(transport) as client:
                    for _ in range(count):
                        manner = next(manners)
                        exchange = Exchange(control=manner == 1)
                        try:
                            async with client.stream(
                                "POST",
                                f"{url}/{manner}",
                                content=b"{}",
                                extensions={EXTENSION: exchange},
                            ) as response:
                                if manner == 7:
                                    chunks = response.aiter_raw()
                                    assert await anext(chunks) == b"hello"
                                    await response.aclose()
                                    with pytest.raises(httpx.ReadError):
                                        await anext(chunks)
                                else:
                                    assert await response.aread() == b"hello"
                        except httpx.RemoteProtocolError:
                            assert manner in {5, 6}
                        assert exchange.complete

            async with trio.open_nursery() as nursery:
                for _ in range(16):
                    nursery.start_soon(session, 125)
            stats = transport.stats()
            assert_clean(transport, max_connections=8)
            assert stats.idle <= 8
            # Four manners of eight end their connection; the others share what there is.
            assert 1000 <= stats.opened_total <= 1500
    assert sockets_open() == before
