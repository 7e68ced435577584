"""The transport on memory streams and virtual time: reuse, limits, fates, time-outs, closing."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable

import httpx
import pytest
import trio
import trio.testing
from http_kit import (
    URL,
    FakeStream,
    Peer,
    answer_all,
    assert_clean,
    build,
    endless,
    fetch,
    ok,
    silent,
    upstream,
)
from trio.testing import MockClock

from kars_router.transports.http import Exchange, TrioTransport


def scripted(*responses: bytes) -> Callable[[Peer], Awaitable[None]]:
    """Answer the requests of a connection with these, one by one, then close."""

    async def handler(peer: Peer) -> None:
        for response in responses:
            if not await peer.request():
                return
            await peer.send(response)

    return handler


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
    response = b"HTTP/1.1 " + status + b"\r\n"
    response += b"Content-Length: 0\r\n\r\n" if status.startswith(b"202") else b"\r\n"
    async with upstream(scripted(response, ok())) as (_, transport):
        with trio.fail_after(1):
            await transport.handle_async_request(build())
        assert transport.stats().idle == 1


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


async def test_there_is_room_for_a_connection(autojump_clock: MockClock) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        TrioTransport(URL, max_connections=0)


# --- idle connections ----------------------------------------------------------------------------


async def test_a_kept_connection_is_used_again(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):
        for reused in (False, True, True):
            assert (await fetch(transport, build(exchange=exchange))).content == b"1"
            assert exchange.reused is reused
        assert len(server.streams) == 1
        stats = transport.stats()
        assert (stats.open, stats.idle, stats.in_use, stats.opened_total) == (1, 1, 0, 1)
        assert_clean(transport)


async def test_the_connection_used_last_is_used_first(autojump_clock: MockClock) -> None:
    gates = {number: trio.Event() for number in (1, 2, 3)}

    async def handler(peer: Peer) -> None:
        await peer.request()
        await gates[peer.number].wait()
        await peer.send(ok(b"%d" % peer.number))
        await answer_all(peer)

    async with upstream(handler) as (_, transport):
        async with trio.open_nursery() as nursery:
            for _ in gates:
                nursery.start_soon(fetch, transport, build())
            for number in (3, 1, 2):
                await trio.sleep(0.1)
                gates[number].set()
        assert transport.stats().idle == 3
        assert (await fetch(transport, build())).content == b"2"


@pytest.mark.parametrize(
    ("header", "fresh_after"),
    [(b"", 4.0), (b"Keep-Alive: timeout=5\r\n", 4.0), (b"Keep-Alive: timeout=60\r\n", 59.0)],
)
async def test_an_idle_connection_expires_before_the_server_closes_it(
    header: bytes,
    fresh_after: float,
    autojump_clock: MockClock,
) -> None:
    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.send(ok(headers=header))

    async with upstream(handler) as (server, transport):
        await fetch(transport, build())
        await trio.sleep(fresh_after - 0.1)
        await fetch(transport, build())
        assert len(server.streams) == 1
        await trio.sleep(fresh_after + 0.1)
        await fetch(transport, build())
        assert len(server.streams) == 2
        assert transport.stats().expired_dropped == 1
        assert server.open_streams == 1


@pytest.mark.parametrize("header", [b"Connection: close", b"Keep-Alive: timeout=1"])
async def test_a_connection_that_may_not_be_kept_is_closed(
    header: bytes,
    autojump_clock: MockClock,
) -> None:
    async with upstream(scripted(ok(headers=header + b"\r\n"))) as (server, transport):
        assert (await fetch(transport, build())).content == b"hello"
        assert server.open_streams == 0
        assert_clean(transport)


async def close_when_idle(peer: Peer) -> None:
    await peer.request()
    await peer.send(ok())


async def talk_when_idle(peer: Peer) -> None:
    await peer.request()
    await peer.send(ok())
    await trio.sleep(1)
    await peer.send(b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    await trio.sleep_forever()


@pytest.mark.parametrize("handler", [close_when_idle, talk_when_idle])
async def test_a_dead_idle_connection_is_noticed_before_it_is_used(
    handler: Callable[[Peer], Awaitable[None]],
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with upstream(handler) as (server, transport):
        await fetch(transport, build())
        await trio.sleep(2)
        assert (await fetch(transport, build(exchange=exchange))).status_code == 200
        assert exchange == Exchange(accepted=exchange.accepted, complete=True, reused=False)
        assert len(server.streams) == 2
        assert server.streams[0].closed
        assert transport.stats().stale_dropped == 1


async def test_surplus_bytes_are_never_taken_for_the_next_response(
    autojump_clock: MockClock,
) -> None:
    twice = ok(b"first") + ok(b"surplus")
    async with upstream(scripted(twice)) as (server, transport):
        assert (await fetch(transport, build())).content == b"first"
        assert (await fetch(transport, build())).content == b"first"
        assert len(server.streams) == 2


async def test_idle_connections_are_bounded(autojump_clock: MockClock) -> None:
    async with upstream(max_connections=2) as (server, transport):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(fetch, transport, build(exchange=Exchange(control=True)))
        assert len(server.streams) == 5
        assert transport.stats().idle == 2
        assert server.open_streams == 2


# --- a kept connection that fails while the request is sent --------------------------------------


async def keep_one(transport: TrioTransport) -> None:
    await fetch(transport, build())
    assert transport.stats().idle == 1


async def test_nothing_accepted_is_sent_again_on_a_fresh_connection(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):
        await keep_one(transport)
        server.streams[0].accept = 0
        request = build("POST", content=b"{}", exchange=exchange)
        assert (await fetch(transport, request)).content == b"2"
        assert exchange.complete
        assert not exchange.reused
        assert server.streams[0].closed
        assert transport.stats().stale_dropped == 1


async def test_it_is_sent_again_once_and_not_on_another_kept_connection(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(fetch, transport, build())
        assert transport.stats().idle == 2

        def broken(stream: FakeStream) -> None:
            stream.accept = 0

        server.prepare = broken
        for stream in server.streams:
            stream.accept = 0
        with pytest.raises(httpx.WriteError) as caught:
            await fetch(transport, build(exchange=exchange))
        assert len(server.streams) == 3
        assert caught.value.request.url == URL
        assert exchange == Exchange()
        assert transport.stats().idle == 1
        assert_clean(transport)


@pytest.mark.parametrize("accepted", [1, 30])
async def test_something_accepted_is_not_sent_again(
    accepted: int,
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):
        await keep_one(transport)
        server.streams[0].accept = accepted
        with pytest.raises(httpx.WriteError, match="the fake connection broke") as caught:
            await fetch(transport, build("POST", content=b"{}", exchange=exchange))
        assert isinstance(caught.value.__cause__, trio.BrokenResourceError)
        assert exchange == Exchange(accepted=accepted, complete=False, reused=True)
        assert len(server.streams) == 1
        assert_clean(transport)


async def test_a_stream_that_does_not_count_is_never_trusted_to_have_sent_nothing(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):

        async def uncounted(
            host: str, port: int, context: ssl.SSLContext | None
        ) -> trio.abc.Stream:
            stream = await server.open(host, port, context)
            assert isinstance(stream, FakeStream)
            return stream.inner

        transport._opener = uncounted
        await keep_one(transport)
        send_stream = server.streams[0].inner.send_stream

        async def fail() -> None:
            raise trio.BrokenResourceError("after the bytes were taken")

        send_stream.send_all_hook = fail
        with pytest.raises(httpx.WriteError):
            await fetch(transport, build(exchange=exchange))
        assert exchange.accepted
        assert not exchange.complete
        assert len(server.streams) == 1
        await server.streams[0].aclose()


async def test_accepted_in_full_and_then_closed_is_not_sent_again(
    autojump_clock: MockClock,
) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())
        await peer.request()

    exchange = Exchange()
    async with upstream(handler) as (server, transport):
        await keep_one(transport)
        with pytest.raises(httpx.RemoteProtocolError, match="without a response") as caught:
            await fetch(transport, build(exchange=exchange))
        assert caught.value.request.url == URL
        assert exchange.complete
        assert exchange.reused
        assert len(server.streams) == 1
        assert_clean(transport)


async def test_an_answer_to_half_a_request_is_handed_out(autojump_clock: MockClock) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.stream.receive_some(10)
        await peer.send(ok(b"too large", status=b"413 Content Too Large"))
        await trio.sleep_forever()

    exchange = Exchange()
    async with upstream(refuse) as (server, transport):

        def half(stream: FakeStream) -> None:
            stream.accept = 100

        server.prepare = half
        request = build("POST", content=b"x" * 1000, exchange=exchange)
        response = await fetch(transport, request)
        assert (response.status_code, response.content) == (413, b"too large")
        assert exchange == Exchange(accepted=100, complete=False)
        assert server.open_streams == 0
        assert_clean(transport)


async def test_half_a_request_without_an_answer_is_given_up_soon(autojump_clock: MockClock) -> None:
    async with upstream(silent) as (server, transport):

        def half(stream: FakeStream) -> None:
            stream.accept = 10

        server.prepare = half
        started = trio.current_time()
        with pytest.raises(httpx.WriteError):
            await fetch(transport, build())
        assert trio.current_time() - started == 1.0
        assert_clean(transport)


# --- places --------------------------------------------------------------------------------------


async def test_control_never_waits_behind_calls(autojump_clock: MockClock) -> None:
    release = trio.Event()

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            if b"/call" in request:
                await release.wait()
            await peer.send(ok(b"%d" % peer.number))

    async with upstream(handler) as (_, transport), trio.open_nursery() as nursery:
        for _ in range(70):
            nursery.start_soon(fetch, transport, build(url=f"{URL}/call"))
        await trio.testing.wait_all_tasks_blocked()
        stats = transport.stats()
        assert (stats.in_use, stats.waiting) == (64, 6)
        started = trio.current_time()
        pong = build("POST", content=b"{}", exchange=Exchange(control=True))
        assert (await fetch(transport, pong)).content == b"65"
        assert trio.current_time() == started
        release.set()
    assert_clean(transport)


async def test_open_get_streams_take_no_place_and_delay_no_pong(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        if (await peer.request()).startswith(b"GET"):
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await trio.sleep_forever()
        await peer.send(ok())
        await answer_all(peer)

    async with upstream(handler, max_connections=1) as (_, transport):
        streams = [
            await transport.handle_async_request(build(exchange=Exchange(control=True)))
            for _ in range(100)
        ]
        with trio.fail_after(1):
            await fetch(transport, build("POST", exchange=Exchange(control=True)))
            await fetch(transport, build("POST"))
        assert transport.stats().in_use == 100
        for stream in streams:
            await stream.aclose()
        assert_clean(transport, max_connections=1)


async def test_requests_wait_in_the_order_they_came(autojump_clock: MockClock) -> None:
    served = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            served.append(request.split()[1].decode())
            await trio.sleep(1)
            await peer.send(ok())

    async with upstream(handler, max_connections=1) as (server, transport):
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(fetch, transport, build(url=f"http://upstream.test/{number}"))
                await trio.testing.wait_all_tasks_blocked()
        assert served == [f"/{number}" for number in range(10)]
        assert len(server.streams) == 1


async def test_waiting_for_a_place_has_its_own_limit(autojump_clock: MockClock) -> None:
    exchange = Exchange()
    async with upstream(endless, max_connections=1) as (_, transport):
        response = await transport.handle_async_request(build())
        started = trio.current_time()
        with pytest.raises(httpx.PoolTimeout, match=r"more than 2\.5 s") as caught:
            await fetch(transport, build(pool=2.5, exchange=exchange))
        assert caught.value.request.url == URL
        assert trio.current_time() - started == 2.5
        assert exchange == Exchange()
        await response.aclose()
        assert_clean(transport, max_connections=1)


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


async def test_a_kept_connection_that_takes_nothing_is_a_timeout_and_not_tried_again(
    autojump_clock: MockClock,
) -> None:
    exchange = Exchange()
    async with upstream() as (server, transport):
        await keep_one(transport)
        server.streams[0].accept = 0
        server.streams[0].hang = True
        with pytest.raises(httpx.WriteTimeout):
            await fetch(transport, build(write=3, exchange=exchange))
        assert exchange == Exchange(reused=True)
        assert len(server.streams) == 1


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
            aclose = stream.aclose

            async def fail() -> None:
                await aclose()
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
