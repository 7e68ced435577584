"""Kept connections and places, on memory streams and virtual time."""

from __future__ import annotations

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
    scripted,
    silent,
    upstream,
)
from trio.testing import MockClock

from kars_router.transports.http import Exchange, TrioTransport

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
    opened_late: list[bool] = []

    async def handler(peer: Peer) -> None:
        while await peer.request():
            await peer.send(ok(headers=header))

    async with upstream(handler) as (server, transport):
        await fetch(transport, build())
        await trio.sleep(fresh_after - 0.1)
        await fetch(transport, build())
        assert len(server.streams) == 1
        await trio.sleep(fresh_after + 0.1)
        server.prepare = lambda stream: opened_late.append(server.streams[0].closed)
        await fetch(transport, build())
        assert opened_late == [True]
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


async def test_half_a_request_and_an_end_is_the_error_of_the_sending(
    autojump_clock: MockClock,
) -> None:
    async def leave(peer: Peer) -> None:
        await peer.stream.receive_some(5)

    async with upstream(leave) as (server, transport):

        def half(stream: FakeStream) -> None:
            stream.accept = 10

        server.prepare = half
        with pytest.raises(httpx.WriteError, match="sending the request: the fake"):
            await fetch(transport, build())
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
