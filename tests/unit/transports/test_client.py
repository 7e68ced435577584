"""What every client has in common."""

from __future__ import annotations

import gc

import http_kit
import httpx
import pytest
import trio
from http_kit import URL, Peer, fetch, ok, upstream
from trio.testing import MockClock

from kars_router._version import __version__
from kars_router.transports.client import Reply, new_client
from kars_router.transports.http import Exchange


async def test_clients_have_their_own_cookies_on_shared_connections(
    autojump_clock: MockClock,
) -> None:
    seen = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            await peer.send(ok(headers=b"Set-Cookie: who=%d\r\n" % len(seen)))

    async with upstream(handler) as (server, transport):
        async with new_client(transport) as first:
            await first.get(URL)
            async with new_client(transport) as second:
                await second.get(URL)
            await first.get(URL)
        assert len(server.streams) == 1
        assert server.open_streams == 1
    assert b"cookie" not in seen[0].lower()
    assert b"cookie" not in seen[1].lower()
    assert b"Cookie: who=1\r\n" in seen[2]


async def test_what_every_request_says(autojump_clock: MockClock) -> None:
    seen = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            await peer.send(ok())

    async with upstream(handler) as (_, transport):
        async with new_client(transport, headers={"x-a": "1"}) as client:
            await client.get(URL)
        async with new_client(transport, headers={"User-Agent": "mine"}) as client:
            await client.get(URL)
    assert f"user-agent: kars-router/{__version__}\r\n".encode() in seen[0].lower()
    assert b"accept-encoding: identity\r\n" in seen[0].lower()
    assert b"x-a: 1\r\n" in seen[0]
    assert seen[0].count(b"\r\nhost: ") == 1
    assert b"user-agent: mine\r\n" in seen[1].lower()


async def test_redirects_are_the_callers_business(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(headers=b"Location: /there\r\n", status=b"307 Temporary Redirect"))
        assert not await peer.request()

    async with upstream(handler) as (_, transport), new_client(transport) as client:
        assert (await client.get(URL)).status_code == 307


async def test_there_is_no_hidden_time_limit(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await trio.sleep(10_000)
        await peer.send(ok())

    async with upstream(handler) as (_, transport), new_client(transport) as client:
        assert (await client.get(URL)).status_code == 200


async def test_a_time_limit_of_the_caller_holds(autojump_clock: MockClock) -> None:
    async with upstream(http_kit.endless) as (_, transport), new_client(transport) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.get(URL, timeout=httpx.Timeout(5))


async def test_the_environment_is_ignored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.invalid:1")
    monkeypatch.setenv("ALL_PROXY", "http://proxy.invalid:1")
    async with upstream() as (_, transport), new_client(transport) as client:
        assert (await client.get(URL)).status_code == 200
        assert not client.trust_env


async def test_a_stand_in_is_not_closed_either() -> None:
    class StandIn(httpx.MockTransport):
        closed = False

        async def aclose(self) -> None:
            self.closed = True

    transport = StandIn(lambda request: httpx.Response(204))
    async with new_client(transport) as client:
        assert (await client.get(URL)).status_code == 204
    assert not transport.closed
    assert (await fetch(transport, httpx.Request("GET", URL))).status_code == 204


async def test_a_body_left_early_can_be_cleared_away(autojump_clock: MockClock) -> None:
    """Reading on after closing ends httpx's nested generators, which nobody else can reach."""
    async with upstream(http_kit.endless) as (server, transport), new_client(transport) as client:
        response = await client.send(client.build_request("GET", URL), stream=True)
        chunks = response.aiter_bytes()
        assert await anext(chunks) == b"hello"
        await response.aclose()
        assert server.open_streams == 0
        with pytest.raises(httpx.ReadError, match="closed before its end"):
            await anext(chunks)
        del chunks
        gc.collect()  # would bring up a generator that was left behind, as a warning


async def test_a_body_may_be_cancelled(autojump_clock: MockClock) -> None:
    async with upstream(http_kit.endless) as (server, transport), new_client(transport) as client:
        with trio.move_on_after(5):
            async with client.stream("GET", URL) as response:
                await response.aread()
        assert response.is_closed
        assert server.open_streams == 0


# --- Many similar requests -----------------------------------------------------------------------

HEADERS = {"accept": "application/json", "content-type": "application/json", "x-id": "\N{SNOWMAN}"}
LIMITS = {"connect": 5.0, "write": 5.0, "read": None, "pool": None}


async def read(reply: Reply) -> bytes:
    return b"".join([chunk async for chunk in reply])


async def test_the_short_way_sends_what_httpx_would(autojump_clock: MockClock) -> None:
    seen = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            await peer.send(ok(b"x" * 100_000, headers=b"Content-Type: a/b\r\nX: 1\r\nX: 2\r\n"))

    async with upstream(handler) as (server, transport):
        async with new_client(transport, headers={"x-a": "1"}) as client:
            outline = client.outline("POST", httpx.URL(URL), HEADERS)
            exchange = Exchange()
            for _ in range(2):
                reply = await client.exchange(outline, b"{}", exchange, LIMITS)
                assert (reply.status, reply.url) == (200, URL)
                assert reply.header("content-type") == "a/b"
                assert reply.header("x") == "1, 2"
                assert reply.header("absent") == ""
                assert await read(reply) == b"x" * 100_000
                assert reply.is_closed
                assert exchange.complete
                assert exchange.accepted == len(seen[-1])
            assert exchange.reused
            headers = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            await client.post(URL, content=b"{}", headers=headers)
        assert len(server.streams) == 1
    assert seen[0] == seen[1]
    assert sorted(seen[0].lower().split(b"\r\n")) == sorted(seen[2].lower().split(b"\r\n"))


async def test_cookies_go_the_short_way_too(autojump_clock: MockClock) -> None:
    seen = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request)
            await peer.send(ok(headers=b"Set-Cookie: a=%d; Path=/mcp\r\n" % len(seen)))

    async with upstream(handler) as (_, transport), new_client(transport) as client:
        here = client.outline("POST", httpx.URL(URL), {"x-a": "1"})
        elsewhere = client.outline("POST", httpx.URL(URL).join("/other"), {})
        for outline in (here, here, elsewhere, here):
            await read(await client.exchange(outline, b"{}", Exchange(), LIMITS))
        assert client.cookies["a"] == "4"
    assert b"cookie" not in seen[0].lower()
    assert b"cookie: a=1\r\n" in seen[1].lower()
    assert b"x-a: 1\r\n" in seen[1]
    assert b"cookie" not in seen[2].lower()
    assert b"cookie: a=3\r\n" in seen[3].lower()


async def test_what_cannot_be_sent_is_refused_before(autojump_clock: MockClock) -> None:
    async with upstream() as (server, transport), new_client(transport) as client:
        with pytest.raises(httpx.LocalProtocolError, match=r"for http://upstream\.test only"):
            client.outline("POST", httpx.URL("http://other.test/mcp"), {})
        with pytest.raises(httpx.LocalProtocolError, match="not allowed"):
            client.outline("POST", httpx.URL(URL), {"a": "b\r\nhost: evil"})
        assert not server.streams


async def test_a_reply_left_early_gives_its_connection_up(autojump_clock: MockClock) -> None:
    async with upstream(http_kit.endless) as (server, transport), new_client(transport) as client:
        outline = client.outline("GET", httpx.URL(URL), {})
        reply = await client.exchange(outline, None, Exchange(), LIMITS)
        assert await anext(aiter(reply)) == b"hello"
        before = reply.is_closed
        await reply.aclose()
        assert (before, reply.is_closed) == (False, True)
        assert server.open_streams == 0
        http_kit.assert_clean(transport)


async def test_a_stand_in_goes_the_long_way() -> None:
    requests = []

    def answer(request: httpx.Request) -> httpx.Response:
        requests.append(request)
        return httpx.Response(
            201,
            headers=[("x", "1"), ("x", "2"), ("set-cookie", "a=b")],
            stream=httpx.ByteStream(b"hello"),
        )

    async with new_client(httpx.MockTransport(answer)) as client:
        outline = client.outline("POST", httpx.URL(URL), HEADERS)
        for _ in range(2):
            reply = await client.exchange(outline, b"{}", Exchange(), LIMITS)
            assert (reply.status, reply.header("x"), reply.url) == (201, "1, 2", URL)
            assert await read(reply) == b"hello"
            assert reply.is_closed
    assert [request.content for request in requests] == [b"{}", b"{}"]
    assert [request.headers.get("cookie") for request in requests] == [None, "a=b"]
    assert requests[0].extensions["timeout"] == LIMITS
