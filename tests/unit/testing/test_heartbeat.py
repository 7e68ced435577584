from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from heartbeat_kit import PONG, URL, Peer, Stream, follow, open_peer
from trio.testing import MockClock

from kars_router.testing import (
    NoAnswerError,
    PlainAgent,
    RpcError,
    SessionGoneError,
    text_of,
)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with open_peer() as one:
        yield one


# The handshake and the life of a session


async def test_initialize(peer: Peer, autojump_clock: MockClock) -> None:
    result = await peer.agent.initialize()
    assert result["protocolVersion"] == "2025-11-25"
    assert result["capabilities"] == {"tools": {"listChanged": True}}
    assert peer.agent.session == peer.server.session.id
    assert [received.method for received in peer.server.log] == [
        "initialize",
        "notifications/initialized",
    ]
    assert peer.server.log[1].headers["mcp-protocol-version"] == "2025-11-25"


@pytest.mark.parametrize(
    ("asked", "given"),
    [("2025-03-26", "2025-03-26"), ("2025-06-18", "2025-06-18"), ("2099-01-01", "2025-11-25")],
)
async def test_version_is_negotiated(
    peer: Peer, asked: str, given: str, autojump_clock: MockClock
) -> None:
    agent = PlainAgent(peer.client, URL, version=asked)
    assert (await agent.initialize())["protocolVersion"] == given


@pytest.mark.parametrize("responses", ["sse", "json"])
async def test_answers(peer: Peer, responses: Any, autojump_clock: MockClock) -> None:
    peer.server.responses = responses
    await peer.agent.initialize()
    message = {"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {"name": "read"}}
    response = await peer.post(message, peer.agent.session)
    kind = {"sse": "text/event-stream", "json": "application/json"}[responses]
    assert response.headers["content-type"] == kind
    assert response.headers["mcp-session-id"] == peer.agent.session
    body = response.content.removeprefix(b"event: message\ndata: ").removesuffix(b"\n\n")
    answer = msgspec.json.decode(body)
    assert answer["id"] == "a"
    assert answer["result"] == {
        "content": [{"type": "text", "text": "counter: 0"}],
        "isError": False,
    }


async def test_sessions_have_their_own_counters(peer: Peer, autojump_clock: MockClock) -> None:
    other = peer.new_agent()
    await peer.agent.initialize()
    await other.initialize()
    assert text_of(await peer.agent.call("increment")) == "counter: 1"
    assert text_of(await peer.agent.call("increment")) == "counter: 2"
    assert text_of(await other.call("increment")) == "counter: 1"
    assert text_of(await peer.agent.call("read")) == "counter: 2"
    with pytest.raises(LookupError, match="2 sessions"):
        _ = peer.server.session


async def test_delete(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    session, stream = peer.agent.session, Stream()
    await peer.nursery.start(follow, peer, stream)
    assert await peer.agent.delete() == 200
    await stream.ended.wait()
    assert stream.error == ""
    assert [event.what for event in peer.server.history] == [
        "opened",
        "listening",
        "deleted",
        "left",
    ]
    assert [r.session for r in peer.server.requests(http_method="DELETE")] == [session]
    for response in (await peer.get(session), await peer.post({"id": 1, "method": "x"}, session)):
        assert response.status_code == 404


async def test_not_found_is_bare_text(peer: Peer, autojump_clock: MockClock) -> None:
    response = await peer.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, "nobody")
    assert (response.status_code, response.content) == (404, b"Session not found")
    assert dict(response.headers) == {"content-length": "17"}


async def test_refusals(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    sid = peer.agent.session
    ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    statuses = {
        "no session": (await peer.post(ping)).status_code,
        "twice": (await peer.post({**ping, "method": "initialize"}, sid)).status_code,
        "accept": (await peer.post(ping, sid, accept="application/json")).status_code,
        "type": (await peer.post(ping, sid, content_type="text/plain")).status_code,
        "bad json": (await peer.post(b"{", sid)).status_code,
        "batch": (await peer.post([ping], sid)).status_code,
        "version": (await peer.post(ping, sid, mcp_protocol_version="1999-01-01")).status_code,
        "get without session": (await peer.get()).status_code,
        "get accept": (await peer.get(sid, accept="application/json")).status_code,
        "get version": (await peer.get(sid, mcp_protocol_version="1")).status_code,
        "put": (await peer.client.put(URL)).status_code,
        "delete without session": (await peer.client.delete(URL)).status_code,
        "delete unknown": (
            await peer.client.delete(URL, headers={"mcp-session-id": "x"})
        ).status_code,
    }
    assert statuses == {
        "no session": 400,
        "twice": 400,
        "accept": 406,
        "type": 415,
        "bad json": 400,
        "batch": 400,
        "version": 400,
        "get without session": 400,
        "get accept": 406,
        "get version": 400,
        "put": 405,
        "delete without session": 400,
        "delete unknown": 404,
    }


async def test_one_listener_per_session(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    stream = Stream()
    await peer.nursery.start(follow, peer, stream)
    second = await peer.get(peer.agent.session)
    assert second.status_code == 409
    assert second.json()["error"]["code"] == -32000
    peer.server.drop_listen()
    await stream.ended.wait()
    again = Stream()
    await peer.nursery.start(follow, peer, again)
    assert again.status == 200


async def test_get_can_be_absent(peer: Peer, autojump_clock: MockClock) -> None:
    peer.server.offers_get = False
    await peer.agent.initialize()
    assert (await peer.get(peer.agent.session)).status_code == 405


# The heartbeat


async def test_an_idle_client_without_a_stream_is_reaped(
    peer: Peer, autojump_clock: MockClock
) -> None:
    await peer.agent.initialize()
    await trio.sleep(60)
    assert text_of(await peer.agent.call("increment")) == "counter: 1"  # no call, no heartbeat
    await trio.sleep(4.9)
    assert text_of(await peer.agent.call("read")) == "counter: 1"
    await trio.sleep(0.2)
    with pytest.raises(SessionGoneError):
        await peer.agent.call("read")
    [reaped] = peer.server.happenings("reaped")
    assert reaped.time == pytest.approx(65)
    await peer.agent.initialize()
    assert text_of(await peer.agent.call("read")) == "counter: 0"


async def test_a_listener_that_answers_is_kept(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    stream = Stream()
    await peer.nursery.start(partial(follow, peer, stream, answer=PONG))
    await peer.agent.call("increment")
    await trio.sleep(100)
    assert text_of(await peer.agent.call("read")) == "counter: 1"
    pings = peer.server.happenings("ping")
    assert [ping.detail for ping in pings] == [str(n) for n in range(len(pings))]
    gaps = [b.time - a.time for a, b in pairwise(pings)]
    assert gaps == pytest.approx([3.0] * 33)
    first = b'event: message\ndata: {"method":"ping","jsonrpc":"2.0","id":0}\n\n'
    assert stream.raw.startswith(first)


async def test_an_unanswered_ping_ends_everything(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    listen, post = Stream(), Stream()
    await peer.nursery.start(follow, peer, listen)
    call = {
        "jsonrpc": "2.0",
        "id": 9,
        "method": "tools/call",
        "params": {"name": "slow", "arguments": {"seconds": 12}},
    }
    await peer.nursery.start(partial(follow, peer, post, message=call))
    await listen.ended.wait()
    await post.ended.wait()
    assert listen.error == ""
    assert listen.ended_at == pytest.approx(5)
    assert (post.status, post.raw, post.error) == (200, b"", "")
    assert post.ended_at == pytest.approx(5)
    assert len(listen.messages) == 1
    with pytest.raises(SessionGoneError, match="Session not found"):
        await peer.agent.call("read")


async def test_a_reaped_call_in_json_is_an_empty_200(peer: Peer, autojump_clock: MockClock) -> None:
    peer.server.responses = "json"
    await peer.agent.initialize()
    with pytest.raises(NoAnswerError):
        await peer.agent.call("slow", seconds=12)
    assert trio.current_time() == pytest.approx(5)


@pytest.mark.parametrize("wrong_id", ["0", 0.0, False, 1, None])
async def test_a_pong_needs_the_same_id_of_the_same_type(
    peer: Peer, wrong_id: Any, autojump_clock: MockClock
) -> None:
    await peer.agent.initialize()
    await peer.agent.call("increment")
    answer = {"jsonrpc": "2.0", "id": wrong_id, "result": {}}
    assert (await peer.post(answer, peer.agent.session)).status_code == 202
    await trio.sleep(6)
    assert not peer.server.sessions


async def test_an_error_as_a_pong_ends_the_session_at_once(
    peer: Peer, autojump_clock: MockClock
) -> None:
    await peer.agent.initialize()
    stream, error = Stream(), {"error": {"code": -32601, "message": "no"}}
    await peer.nursery.start(partial(follow, peer, stream, answer=error))
    await peer.agent.call("increment")
    await stream.ended.wait()
    assert stream.ended_at == pytest.approx(0)
    assert not peer.server.sessions


async def test_a_late_get_does_not_help_the_old_server(
    peer: Peer, autojump_clock: MockClock
) -> None:
    await peer.agent.initialize()
    await peer.agent.call("increment")
    await trio.sleep(1)
    stream = Stream()
    await peer.nursery.start(partial(follow, peer, stream, answer=PONG))
    await stream.ended.wait()
    assert stream.raw == b""
    assert stream.ended_at == pytest.approx(5)


async def test_the_new_server_beats_only_after_a_get(autojump_clock: MockClock) -> None:
    async with open_peer(heartbeat_without_get=False) as peer:
        await peer.agent.initialize()
        await peer.agent.call("increment")
        await trio.sleep(100)
        assert text_of(await peer.agent.call("read")) == "counter: 1"
        stream = Stream()
        await peer.nursery.start(follow, peer, stream)
        await stream.ended.wait()
        assert stream.messages == [{"method": "ping", "jsonrpc": "2.0", "id": 0}]
        assert stream.ended_at == pytest.approx(105)


async def test_a_refused_get_starts_the_new_servers_heartbeat(autojump_clock: MockClock) -> None:
    async with open_peer(heartbeat_without_get=False) as peer:
        await peer.agent.initialize()
        await peer.agent.call("increment")
        assert (await peer.get(peer.agent.session, accept="application/json")).status_code == 406
        await trio.sleep(6)
        assert not peer.server.sessions


async def test_heartbeat_options(autojump_clock: MockClock) -> None:
    async with open_peer(ping_interval=None) as peer:
        await peer.agent.initialize()
        await peer.agent.call("increment")
        await trio.sleep(1000)
        assert text_of(await peer.agent.call("read")) == "counter: 1"
    async with open_peer(first_ping_after=0.5, ping_deadline=1.0) as peer:
        began = trio.current_time()
        await peer.agent.initialize()
        await peer.agent.call("increment")
        await peer.server.wait_until(lambda: bool(peer.server.happenings("reaped")))
        assert trio.current_time() - began == pytest.approx(1.5)


# Tools


async def test_echo_returns_unknown_fields(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    params = {"name": "echo", "arguments": {"a": [1, None]}, "x": {"y": 1}, "_meta": {"z": 2}}
    result = await peer.agent.request("tools/call", params)
    assert result["structuredContent"] == {"a": [1, None]}
    assert text_of(result) == '{"a":[1,null]}'
    assert result["_meta"]["kars.test/params"] == params
    assert result["x-unknown"] == [0, None, "kept"]


async def test_failing_tools(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    failed = await peer.agent.call("fail", message="no luck")
    assert (failed["isError"], text_of(failed)) == (True, "no luck")
    with pytest.raises(RpcError, match="-32042: denied") as caught:
        await peer.agent.call("error", code=-32042, message="denied", data=[1])
    assert caught.value.data == [1]
    with pytest.raises(RpcError, match="-32602"):
        await peer.agent.call("nothing")
    with pytest.raises(RpcError, match="-32601"):
        await peer.agent.request("prompts/list")
    assert await peer.agent.request("ping") == {}


async def test_slow_reports_progress_on_its_own_stream(
    peer: Peer, autojump_clock: MockClock
) -> None:
    peer.server.ping_interval = None
    await peer.agent.initialize()
    params = {"name": "slow", "arguments": {"seconds": 7}, "_meta": {"progressToken": 0}}
    stream = Stream()
    call = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    await peer.nursery.start(partial(follow, peer, stream, message=call))
    await stream.ended.wait()
    progress, answer = stream.messages
    assert progress["method"] == "notifications/progress"
    assert progress["params"]["progressToken"] == 0
    assert (answer["id"], text_of(answer["result"])) == (5, "slept 7 s")
    assert stream.ended_at == pytest.approx(7)


async def test_requests_on_a_posts_own_stream(peer: Peer, autojump_clock: MockClock) -> None:
    peer.server.ping_interval = None
    await peer.agent.initialize()
    answers: dict[str, Any] = {"ping": PONG, "roots/list": {"error": {"code": -32601}}}
    for method, answer in answers.items():
        stream = Stream()
        params = {"name": "ask", "arguments": {"method": method}}
        call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        await peer.nursery.start(partial(follow, peer, stream, answer=answer, message=call))
        await stream.ended.wait()
        request, result = stream.messages
        assert request["method"] == method
        assert msgspec.json.decode(text_of(result["result"])) == answer
    result = await peer.agent.call("ask")  # nobody answers
    assert (result["isError"], text_of(result)) == (True, "no answer")
