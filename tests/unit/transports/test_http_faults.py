"""Every way to break an exchange in the middle: cut, reset or cancelled at each point there is."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import httpx
import pytest
import trio
from http_kit import (
    Authority,
    FakeStream,
    Peer,
    Upstream,
    answer_all,
    assert_clean,
    build,
    cancel_at,
    fetch,
    ok,
    upstream,
)
from trio.testing import MockClock

from kars_router.transports.http import Exchange, TrioTransport

BODY = b"data: 1\n\ndata: 2\n\n"
CHUNKS = b"9\r\ndata: 1\n\n\r\n9\r\ndata: 2\n\n\r\n0\r\nTrailer: x\r\n\r\n"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
RESPONSES = {
    "sized": INTERIM + ok(BODY),
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS,
    "to the end": b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + BODY,
    "empty": b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n",
}


def head_length(response: bytes) -> int:
    return (
        response.removeprefix(INTERIM).find(b"\r\n\r\n")
        + 4
        + len(INTERIM) * response.startswith(INTERIM)
    )


@pytest.mark.parametrize("kind", RESPONSES)
async def test_a_connection_that_ends_after_n_bytes(kind: str, autojump_clock: MockClock) -> None:
    """An end in the middle is an error, unless the body has no other end (RFC 9112 6.3)."""
    response = RESPONSES[kind]
    length = 0

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(response[:length])

    async with upstream(handler) as (server, transport):
        for length in range(len(response) + 1):
            exchange = Exchange()
            ends_well = length == len(response)
            if kind == "to the end":
                ends_well = length >= head_length(response)
            if ends_well:
                received = await fetch(transport, build(exchange=exchange))
                body = b"" if kind == "empty" else BODY
                missing = len(response) - length
                assert received.content == body[: len(body) - missing]
            else:
                with pytest.raises(httpx.RemoteProtocolError, match="closed the connection"):
                    await fetch(transport, build(exchange=exchange))
            assert exchange.complete
            # A complete answer leaves an idle connection, which the next round finds dead.
            assert transport.stats().in_use == 0
        await transport.aclose()
        assert server.open_streams == 0
        assert_clean(transport)


@pytest.mark.parametrize("kind", RESPONSES)
async def test_a_connection_that_is_reset_after_n_bytes(
    kind: str, autojump_clock: MockClock
) -> None:
    """A reset is an error at every point, also where an end would have been the end."""
    response = RESPONSES[kind]

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(response)
        await trio.sleep_forever()

    async with upstream(handler) as (server, transport):
        for length in range(len(response) + (kind == "to the end")):

            def reset(stream: FakeStream, length: int = length) -> None:
                stream.deliver = length

            server.prepare = reset
            with pytest.raises(httpx.ReadError, match="was reset"):
                await fetch(transport, build())
            assert server.open_streams == 0
            assert_clean(transport)


async def test_a_request_that_is_cut_after_n_bytes(autojump_clock: MockClock) -> None:
    """The exchange says exactly what was accepted; the server never gets a request twice."""
    whole = 0
    content = b'{"jsonrpc":"2.0"}'

    async def handler(peer: Peer) -> None:
        nonlocal whole
        while await peer.request():
            whole += 1
            await peer.send(ok())

    async with upstream(handler) as (server, transport):
        request = build("POST", content=content)
        await fetch(transport, request)
        size = server.streams[0].sent
        for accepted in range(size):
            whole = 0
            exchange = Exchange()
            for stream in server.streams:
                stream.accept = accepted
            opened = len(server.streams)
            request = build("POST", content=content, exchange=exchange)
            if accepted == 0:
                await fetch(transport, request)
                assert len(server.streams) == opened + 1
                assert exchange == Exchange(accepted=size, complete=True)
                assert whole == 1
                continue
            with pytest.raises(httpx.WriteError):
                await fetch(transport, request)
            assert exchange == Exchange(accepted=accepted, complete=False, reused=True)
            assert whole == 0
            assert_clean(transport)
            await fetch(transport, build())  # leaves a kept connection for the next round


# --- cancelled at the n-th checkpoint ------------------------------------------------------------

Scenario = Callable[[Upstream, TrioTransport], Awaitable[None]]


async def fresh(server: Upstream, transport: TrioTransport) -> None:
    """Nothing to reuse."""


async def kept(server: Upstream, transport: TrioTransport) -> None:
    """A live connection to reuse."""
    await fetch(transport, build())


async def dead(server: Upstream, transport: TrioTransport) -> None:
    """Two kept connections, one dead to be found out, one that takes nothing."""
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(fetch, transport, build(exchange=Exchange(control=True)))
    server.streams[-1].deliver = 0
    server.streams[-2].accept = 0


async def expired(server: Upstream, transport: TrioTransport) -> None:
    """A kept connection whose time is over."""
    await fetch(transport, build())
    await trio.sleep(5)


async def in_pieces(peer: Peer) -> None:
    """Answer so that reading takes many waits."""
    while await peer.request():
        for piece in (b"HTTP/1.1 200 OK\r\nTransfer-", b"Encoding: chunked\r\n\r\n5\r\nhe", b"llo"):
            await peer.send(piece)
            await trio.sleep(1)
        await peer.send(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("scenario", [fresh, kept, dead, expired])
async def test_cancelled_at_the_nth_checkpoint(
    scenario: Scenario, control: bool, autojump_clock: MockClock
) -> None:
    """Wherever it is cancelled: no place lost, no half-used connection kept, nothing leaked."""
    checkpoint = 0
    while True:
        checkpoint += 1
        async with upstream(in_pieces, max_connections=2) as (server, transport):
            await scenario(server, transport)
            exchange = Exchange(control=control)
            request = build("POST", content=b"{}", exchange=exchange)

            async def action(
                transport: TrioTransport = transport, request: httpx.Request = request
            ) -> None:
                await fetch(transport, request)

            with trio.fail_after(60):
                cancelled = await cancel_at(checkpoint, action)
            assert_clean(transport, max_connections=2)
            assert server.open_streams == transport.stats().idle
            if cancelled and not exchange.accepted:
                assert not exchange.complete
            for stream in server.streams:
                stream.deliver = stream.accept = 10**9
            assert (await fetch(transport, build())).content == b"hello"
        if not cancelled:
            break
    assert checkpoint > 6
    assert exchange.complete


async def test_cancelled_while_waiting_for_a_place(autojump_clock: MockClock) -> None:
    async with upstream(in_pieces, max_connections=1) as (_, transport):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fetch, transport, build())
            await trio.testing.wait_all_tasks_blocked()
            for timeout in (0.0, 0.5, 1.0):
                with trio.move_on_after(timeout) as scope:
                    await transport.handle_async_request(build())
                assert scope.cancelled_caught
                assert transport.stats().waiting == 0
        assert_clean(transport, max_connections=1)
        await fetch(transport, build())


async def test_a_place_that_comes_free_as_its_waiter_is_cancelled_goes_to_the_next(
    autojump_clock: MockClock,
) -> None:
    async with upstream(max_connections=1) as (server, transport):
        gate = trio.Event()

        async def handler(peer: Peer) -> None:
            await peer.request()
            await gate.wait()
            await peer.send(ok())
            await answer_all(peer)

        server.handler = handler
        done = []
        first_done = trio.Event()

        async def request(name: str, scope: trio.CancelScope) -> None:
            with scope:
                await fetch(transport, build())
                done.append(name)
                first_done.set()

        scopes = [trio.CancelScope() for _ in range(3)]
        async with trio.open_nursery() as nursery:
            for number, scope in enumerate(scopes):
                nursery.start_soon(request, str(number), scope)
                await trio.testing.wait_all_tasks_blocked()
            gate.set()
            await first_done.wait()
            scopes[1].cancel()
        assert done[0] == "0"
        assert done[-1] == "2"
        assert_clean(transport, max_connections=1)


async def test_tls_cancelled_at_the_nth_checkpoint(
    tmp_path_factory: pytest.TempPathFactory, autojump_clock: MockClock
) -> None:
    """The same over TLS on memory streams, handshake included."""
    authority = Authority.create(tmp_path_factory.mktemp("tls"))
    server_side = authority.server_context("upstream.test")

    async def handler(peer: Peer) -> None:
        peer.stream = trio.SSLStream(
            peer.stream, server_side, server_side=True, https_compatible=True
        )
        await in_pieces(peer)

    client_side = ssl.create_default_context(cafile=str(authority.ca_file))
    checkpoint = 0
    cancelled = True
    while cancelled:
        checkpoint += 1
        async with trio.open_nursery() as nursery:
            server = Upstream(nursery, handler)

            async def opener(
                host: str, port: int, context: ssl.SSLContext | None, server: Upstream = server
            ) -> trio.abc.Stream:
                tls = trio.SSLStream(
                    await server.open(host, port, None),
                    client_side,
                    server_hostname=host,
                    https_compatible=True,
                )
                try:
                    await tls.do_handshake()
                except BaseException:
                    with trio.CancelScope(shield=True):
                        await trio.aclose_forcefully(tls)
                    raise
                return tls

            transport = TrioTransport("https://upstream.test/", opener=opener)
            transport._context = client_side  # reading the system's takes long
            url = "https://upstream.test/mcp"

            async def action(transport: TrioTransport = transport, url: str = url) -> None:
                for _ in range(2):  # the second goes over the kept connection
                    await fetch(transport, build("POST", content=b"{}", url=url))

            cancelled = await cancel_at(checkpoint, action)
            assert_clean(transport)
            assert server.open_streams == transport.stats().idle
            assert len(server.streams) <= 1
            response = await fetch(transport, build(url=url))
            assert response.content == b"hello"
            await transport.aclose()
            assert server.open_streams == 0
            nursery.cancel_scope.cancel()
    assert checkpoint > 10
