from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest
import trio

from kars_router.testing import (
    HeartbeatServer,
    PlainAgent,
    Reply,
    SessionGoneError,
    serve,
    text_of,
)


@pytest.fixture
def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=10)


async def test_a_session_over_real_http(client: httpx.AsyncClient) -> None:
    with trio.fail_after(20):
        async with (
            client,
            HeartbeatServer.open(ping_deadline=0.2) as server,
            serve(server.app) as url,
        ):
            agent = PlainAgent(client, f"{url}/mcp")
            await agent.initialize()
            assert text_of(await agent.call("increment")) == "counter: 1"
            await server.wait_until(lambda: bool(server.happenings("reaped")))
            with pytest.raises(SessionGoneError):
                await agent.call("read")


async def test_events_arrive_as_they_are_sent(client: httpx.AsyncClient) -> None:
    with trio.fail_after(20):
        async with client, HeartbeatServer.open() as server, serve(server.app) as url:
            agent = PlainAgent(client, f"{url}/mcp")
            await agent.initialize()
            headers = {"accept": "text/event-stream", "mcp-session-id": agent.session or ""}
            async with client.stream("GET", f"{url}/mcp", headers=headers) as response:
                assert response.status_code == 200
                server.notify_tools_changed()
                server.drop_listen()
                assert b"list_changed" in await response.aread()
            await server.wait_until(lambda: bool(server.happenings("left")))


async def test_a_client_that_leaves_is_seen(client: httpx.AsyncClient) -> None:
    with trio.fail_after(20):
        async with client, HeartbeatServer.open() as server, serve(server.app) as url:
            agent = PlainAgent(client, f"{url}/mcp")
            await agent.initialize()
            headers = {"accept": "text/event-stream", "mcp-session-id": agent.session or ""}
            async with client.stream("GET", f"{url}/mcp", headers=headers):
                assert not server.happenings("left")
            await server.wait_until(lambda: bool(server.happenings("left")))


async def test_a_cut_breaks_the_response_off(client: httpx.AsyncClient) -> None:
    with trio.fail_after(20):
        async with client, HeartbeatServer.open() as server, serve(server.app) as url:
            agent = PlainAgent(client, f"{url}/mcp")
            server.reply_next(Reply.events({"method": "x"}, ending="cut"))
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
                await agent.initialize()


async def test_leaving_is_bounded_and_frees_the_port(client: httpx.AsyncClient) -> None:
    with trio.fail_after(20):
        async with client, HeartbeatServer.open() as server:
            async with serve(server.app, grace=0.1) as url:
                agent = PlainAgent(client, f"{url}/mcp")
                await agent.initialize()
                headers = {"accept": "text/event-stream", "mcp-session-id": agent.session or ""}
                request = client.build_request("GET", f"{url}/mcp", headers=headers)
                response = await client.send(request, stream=True)
                began = trio.current_time()
            assert trio.current_time() - began < 5
            with pytest.raises(httpx.RemoteProtocolError):
                await response.aread()
            with pytest.raises(httpx.ConnectError):
                await client.get(url)


async def test_a_running_response_may_end_within_the_grace(client: httpx.AsyncClient) -> None:
    leaving = trio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one ", "more_body": True})
        await leaving.wait()
        await trio.sleep(0.1)
        await send({"type": "http.response.body", "body": b"two"})

    with trio.fail_after(20):
        async with client:
            began = trio.current_time()
            async with serve(app, grace=10) as url:
                request = client.build_request("GET", url)
                response = await client.send(request, stream=True)
                leaving.set()
            assert trio.current_time() - began < 8  # it does not wait longer than it has to
            assert await response.aread() == b"one two"


async def test_an_address_in_use_is_an_error() -> None:
    async with HeartbeatServer.open() as server, serve(server.app) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(OSError, match="in use"):
            async with serve(server.app, port=port):
                raise AssertionError


async def test_quiet_except_for_errors(
    client: httpx.AsyncClient, caplog: pytest.LogCaptureFixture
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/broken":
            raise ZeroDivisionError
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with caplog.at_level(logging.DEBUG), trio.fail_after(20):
        async with client, serve(app) as url:
            assert (await client.get(url)).status_code == 204
            ours = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore"))]
            assert ours == []
            assert (await client.get(f"{url}/broken")).status_code == 500
    assert "ZeroDivisionError" in caplog.text
