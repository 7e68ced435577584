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
from kars_router.transports.client import new_client


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
