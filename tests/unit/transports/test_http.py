"""The transport on memory streams and virtual time: one exchange, its failures, its end."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl

import httpx
import pytest
import trio
import trio.testing
from http_kit import (
    URL,
    FakeStream,
    Peer,
    assert_clean,
    build,
    endless,
    fetch,
    ok,
    scripted,
    silent,
    upstream,
)
from trio.testing import MockClock

from kars_router.transports.http import Exchange, TrioTransport

# --- one exchange --------------------------------------------------------------------------------


async def test_a_request_and_its_response(autojump_clock: MockClock) -> None:
    seen = []

    async def handler(peer: Peer) -> None:
        seen.append(await peer.request())
        await peer.send(ok(b"{}", headers=b"X-A: 1\r\n", status=b"201 Made"))

    exchange = Exchange()
    async with upstream(handler) as (_, transport):
        response = await fetch(transport, build("POST", content=b"[]", exchange=exchange))
    assert seen == [b"POST /mcp HTTP/1.1\r\nhost: upstream.test\r\ncontent-length: 2\r\n\r\n[]"]
    assert (response.status_code, response.reason_phrase) == (201, "Made")
    assert (response.http_version, response.headers["x-a"]) == ("HTTP/1.1", "1")
    assert response.content == b"{}"
    assert exchange == Exchange(accepted=len(seen[0]), complete=True)


async def test_a_small_request_is_one_send(autojump_clock: MockClock) -> None:
    async with upstream() as (server, transport):
        sends = []

        def prepare(stream: FakeStream) -> None:
            send_all = stream.send_all

            async def counted(data: bytes | bytearray | memoryview) -> None:
                sends.append(bytes(data))
                await send_all(data)

            stream.send_all = counted  # type: ignore[method-assign]

        server.prepare = prepare
        await fetch(transport, build("POST", content=b"x" * 1000))
    assert len(sends) == 1


async def test_a_response_byte_by_byte(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        for byte in b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n":
            await peer.send(bytes([byte]))
            await trio.sleep(1)
        await silent(peer)

    async with upstream(handler) as (_, transport):
        with trio.fail_after(100):
            response = await transport.handle_async_request(build(read=1.5))
            assert [chunk async for chunk in response.aiter_bytes()] == [b"a", b"b", b"c"]
        assert transport.stats().idle == 1


async def test_the_head_is_handed_out_before_the_body_has_come(autojump_clock: MockClock) -> None:
    async with upstream(endless) as (_, transport):
        with trio.fail_after(1):
            response = await transport.handle_async_request(build())
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"hello"
            assert transport.stats().in_use == 1
            await chunks.aclose()  # type: ignore[attr-defined]
            await response.aclose()
        assert_clean(transport)


@pytest.mark.parametrize("status", [b"202 Accepted", b"204 No Content", b"304 Not Modified"])
async def test_a_response_without_a_body_gives_the_connection_back_at_once(
    status: bytes,
    autojump_clock: MockClock,
) -> None:
    head = b"HTTP/1.1 " + status + b"\r\n"
    head += b"Content-Length: 0\r\n" if status.startswith(b"202") else b""
    last = head + b"Connection: close\r\n\r\n"
    async with upstream(scripted(head + b"\r\n", last)) as (server, transport):
        with trio.fail_after(1):
            await transport.handle_async_request(build())
            assert transport.stats().idle == 1
            await transport.handle_async_request(build())
        assert_clean(transport)
        assert server.open_streams == 0


async def test_head_has_no_body(autojump_clock: MockClock) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    async with upstream(scripted(head, ok())) as (server, transport):
        assert (await fetch(transport, build("HEAD"))).content == b""
        assert (await fetch(transport, build())).content == b"hello"
        assert len(server.streams) == 1


async def test_another_origin_is_refused(autojump_clock: MockClock) -> None:
    async with upstream() as (server, transport):
        for url in ("https://upstream.test/", "http://upstream.test:81/", "http://other.test/"):
            with pytest.raises(httpx.LocalProtocolError, match=r"for http://upstream\.test only"):
                await transport.handle_async_request(build(url=url))
        await fetch(transport, build(url="http://UPSTREAM.test:80/other?path"))
        assert len(server.streams) == 1


@pytest.mark.parametrize("url", ["ftp://h/", "/mcp", "http:///mcp"])
async def test_an_origin_has_a_known_scheme_and_a_host(url: str, autojump_clock: MockClock) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        TrioTransport(url)


@pytest.mark.parametrize(
    ("origin", "host", "port", "tls"),
    [
        ("http://Upstream.test/mcp", "upstream.test", 80, False),
        ("https://upstream.test", "upstream.test", 443, True),
        ("http://[::1]:81/", "::1", 81, False),
        ("https://b\u00fccher.test:8443", "xn--bcher-kva.test", 8443, True),
    ],
)
async def test_where_a_connection_goes(
    origin: str, host: str, port: int, tls: bool, autojump_clock: MockClock
) -> None:
    asked: list[tuple[str, int, bool]] = []

    async def opener(host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        asked.append((host, port, context is not None))
        raise OSError("far enough")

    with pytest.raises(httpx.ConnectError, match="far enough"):
        await fetch(TrioTransport(origin, opener=opener), build(url=origin))
    assert asked == [(host, port, tls)]


async def test_there_is_room_for_a_connection(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TrioTransport(URL, max_connections=0)


# --- time-outs and errors ------------------------------------------------------------------------


async def test_connecting_has_its_own_limit(autojump_clock: MockClock) -> None:
    async def never(host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
        await trio.sleep_forever()
        raise AssertionError

    transport = TrioTransport(URL, opener=never)
    with pytest.raises(httpx.ConnectTimeout, match="connecting took more than 3"):
        await fetch(transport, build(connect=3))
    assert_clean(transport)


async def test_sending_has_its_own_limit(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):

        def stuck(stream: FakeStream) -> None:
            stream.accept = 7
            stream.hang = True

        server.prepare = stuck
        with pytest.raises(httpx.WriteTimeout):
            await fetch(transport, build(write=3, exchange=exchange))
        assert exchange == Exchange(accepted=7)
        assert_clean(transport)


async def test_each_read_has_its_own_limit(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await trio.sleep(2)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
        for _ in range(3):
            await trio.sleep(2)
            await peer.send(b"x")
        await trio.sleep_forever()

    exchange = Exchange()
    async with upstream(handler) as (_, transport):
        response = await transport.handle_async_request(build(read=2.5, exchange=exchange))
        chunks = response.aiter_raw()
        received = [await anext(chunks) for _ in range(3)]
        with pytest.raises(httpx.ReadTimeout) as caught:
            await anext(chunks)
        assert caught.value.request.url == URL
        assert received == [b"x"] * 3
        assert trio.current_time() == 2 + 3 * 2 + 2.5
        assert exchange.complete
        assert_clean(transport)


async def test_none_is_unlimited(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await trio.sleep(80_000)
        await peer.send(ok())

    async with upstream(handler) as (_, transport):
        request = build()
        request.extensions["timeout"] = httpx.Timeout(None).as_dict()
        assert (await transport.handle_async_request(request)).status_code == 200
        del request.extensions["timeout"]
        assert (await transport.handle_async_request(request)).status_code == 200


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), "refused"),
        (socket.gaierror(socket.EAI_NONAME, "name unknown"), "name unknown"),
        (ssl.SSLCertVerificationError("certificate verify failed"), "certificate verify failed"),
        (trio.BrokenResourceError(), "BrokenResourceError"),
        (UnicodeError("label too long"), "label too long"),
    ],
)
async def test_what_goes_wrong_in_connecting(
    error: Exception,
    text: str,
    autojump_clock: MockClock,
) -> None:
    async def fail(host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        raise error

    exchange = Exchange()
    transport = TrioTransport(URL, opener=fail)
    with pytest.raises(httpx.ConnectError, match=text) as caught:
        await fetch(transport, build(exchange=exchange))
    assert caught.value.__cause__ is error
    assert caught.value.request.url == URL
    assert exchange == Exchange()
    assert_clean(transport)


async def test_the_innermost_cause_is_named(autojump_clock: MockClock) -> None:
    async def fail(host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        attempts = ExceptionGroup("attempts", [OSError("no route to host"), OSError("other")])
        raise OSError("all attempts failed") from attempts

    with pytest.raises(httpx.ConnectError, match="no route to host"):
        await fetch(TrioTransport(URL, opener=fail), build())


async def test_garbage_is_a_protocol_error(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    async with upstream(scripted(b"SSH-2.0-OpenSSH_9.6\r\n")) as (server, transport):
        with pytest.raises(httpx.RemoteProtocolError, match="SSH-2"):
            await fetch(transport, build(exchange=exchange))
        assert exchange.complete
        assert server.open_streams == 0
        assert_clean(transport)


# --- closing -------------------------------------------------------------------------------------


async def test_closed_early_the_connection_is_closed(autojump_clock: MockClock) -> None:
    async with upstream(endless) as (server, transport):
        response = await transport.handle_async_request(build())
        await response.aclose()
        assert server.open_streams == 0
        assert_clean(transport)
        with pytest.raises(httpx.ReadError, match="closed before its end"):
            async for _ in response.stream:  # type: ignore[union-attr]
                pass


async def test_read_to_the_end_it_is_kept_and_closing_the_response_changes_nothing(
    autojump_clock: MockClock,
) -> None:
    async with upstream() as (_, transport):
        response = await fetch(transport, build())
        assert transport.stats().idle == 1
        await response.aclose()
        assert isinstance(response.stream, httpx.AsyncByteStream)
        await response.stream.aclose()
        assert_clean(transport)
        assert transport.stats().idle == 1


async def test_a_failed_body_stays_failed(autojump_clock: MockClock) -> None:
    cut = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello"
    async with upstream(scripted(cut)) as (_, transport):
        response = await transport.handle_async_request(build())
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        with pytest.raises(httpx.RemoteProtocolError, match="middle of a response body"):
            [chunk async for chunk in stream]
        with pytest.raises(httpx.ReadError):
            [chunk async for chunk in stream]


async def test_the_owner_closes_what_is_in_use(autojump_clock: MockClock) -> None:
    async with upstream(endless, max_connections=1) as (server, transport):
        response = await transport.handle_async_request(build())
        failures: list[str] = []

        async def read() -> None:
            try:
                await response.aread()
            except httpx.ReadError:
                failures.append("reading")

        async def wait_for_a_place() -> None:
            try:
                await transport.handle_async_request(build())
            except httpx.ConnectError:
                failures.append("waiting")

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(wait_for_a_place)
                await trio.testing.wait_all_tasks_blocked()
                await transport.aclose()
        assert failures == ["reading", "waiting"]
        assert server.open_streams == 0
        assert_clean(transport, max_connections=1)
        with pytest.raises(httpx.ConnectError, match="has been closed"):
            await transport.handle_async_request(build())
        assert len(server.streams) == 1


async def test_closed_while_connecting_the_connection_is_closed(autojump_clock: MockClock) -> None:
    async with upstream() as (server, transport):

        async def slow(host: str, port: int, context: ssl.SSLContext | None) -> trio.abc.Stream:
            await trio.sleep(1)
            return await server.open(host, port, context)

        transport._opener = slow
        async with trio.open_nursery() as nursery:

            async def request() -> None:
                with pytest.raises(httpx.ConnectError, match="has been closed"):
                    await fetch(transport, build())

            nursery.start_soon(request)
            await trio.testing.wait_all_tasks_blocked()
            await transport.aclose()
        assert (len(server.streams), server.open_streams) == (1, 0)
        assert_clean(transport)


async def test_a_response_that_outlives_the_transport_may_be_closed(
    autojump_clock: MockClock,
) -> None:
    async with upstream(endless) as (_, transport):
        response = await transport.handle_async_request(build())
        await transport.aclose()
        await response.aclose()
        assert_clean(transport)


async def test_closing_a_view_closes_nothing(autojump_clock: MockClock) -> None:
    async with upstream() as (server, transport):
        async with transport.view() as view:
            assert (await fetch(view, build())).content == b"1"
        assert server.open_streams == 1
        async with transport.view() as view:
            assert (await fetch(view, build())).content == b"1"


async def test_a_stream_that_fails_to_close_is_closed_all_the_same(
    autojump_clock: MockClock,
) -> None:
    async with upstream() as (server, transport):

        def prepare(stream: FakeStream) -> None:
            async def fail() -> None:
                stream.closed = True
                raise trio.BrokenResourceError

            stream.aclose = fail  # type: ignore[method-assign]

        server.prepare = prepare
        await fetch(transport, build())
        await transport.aclose()
        assert server.open_streams == 0


async def test_an_exchange_of_somebody_else_is_left_alone(autojump_clock: MockClock) -> None:
    async with upstream() as (_, transport):
        request = build()
        request.extensions["kars_exchange"] = "not ours"
        assert (await fetch(transport, request)).status_code == 200


async def test_an_exchange_is_reset_for_each_request(autojump_clock: MockClock) -> None:
    exchange = Exchange(control=True, accepted=5, complete=True, reused=True)
    async with upstream(max_connections=1) as (_, transport):
        await transport.aclose()
        with contextlib.suppress(httpx.ConnectError):
            await fetch(transport, build(exchange=exchange))
    assert exchange == Exchange(control=True)
