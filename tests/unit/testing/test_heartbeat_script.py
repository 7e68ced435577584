from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import httpx
import pytest
import trio
from heartbeat_kit import URL, Peer, Stream, follow, open_peer
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.testing import (
    AsgiBridge,
    Call,
    HeartbeatServer,
    HttpStatusError,
    NoAnswerError,
    PlainAgent,
    Received,
    Reply,
    RpcError,
    SessionGoneError,
    text_of,
)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with open_peer() as one:
        yield one


async def test_a_cancelled_call_ends_without_a_message(
    peer: Peer, autojump_clock: MockClock
) -> None:
    peer.server.ping_interval = None
    await peer.agent.initialize()
    params = {"name": "slow", "arguments": {"seconds": 60}}
    stream = Stream()
    call = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    await peer.nursery.start(partial(follow, peer, stream, message=call))
    await wait_all_tasks_blocked()
    await peer.agent.notify("notifications/cancelled", {"requestId": "5"})
    await trio.sleep(1)
    assert not stream.ended.is_set()
    await peer.agent.notify("notifications/cancelled", {"requestId": 5})
    await stream.ended.wait()
    assert stream.raw == b""
    assert stream.ended_at == pytest.approx(1)


async def test_a_client_that_leaves_does_not_stop_its_call(
    peer: Peer, autojump_clock: MockClock
) -> None:
    async def later(call: Call) -> Mapping[str, Any]:
        await trio.sleep(3)
        call.session.counter += 10
        return {"content": []}

    peer.server.add_tool("later", later)
    await peer.agent.initialize()
    with trio.move_on_after(1):
        await peer.agent.call("later")
    await trio.sleep(3)
    assert text_of(await peer.agent.call("read")) == "counter: 10"


async def test_pages(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    names = list(peer.server.tools)
    assert [tool["name"] for tool in await peer.agent.list_tools()] == names
    peer.server.page_size = 3
    page = await peer.agent.request("tools/list", {})
    assert ([tool["name"] for tool in page["tools"]], page["nextCursor"]) == (names[:3], "page-1")
    assert [tool["name"] for tool in await peer.agent.list_tools()] == names
    assert len(peer.server.requests("tools/list")) == 1 + 1 + 3
    with pytest.raises(RpcError, match="-32602"):
        await peer.agent.request("tools/list", {"cursor": "page-9"})
    peer.server.cursor_cycle = True
    last = await peer.agent.request("tools/list", {"cursor": "page-2"})
    assert last["nextCursor"] == "page-0"
    first = await peer.agent.request("tools/list", {"cursor": "page-0"})
    assert [tool["name"] for tool in first["tools"]] == names[:3]


async def test_list_changed(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    stream = Stream()
    await peer.nursery.start(follow, peer, stream)
    peer.server.remove_tool("slow")
    peer.server.notify_tools_changed()
    await wait_all_tasks_blocked()
    assert stream.messages == [{"method": "notifications/tools/list_changed", "jsonrpc": "2.0"}]
    assert "slow" not in [tool["name"] for tool in await peer.agent.list_tools()]


async def test_asking_on_the_get_stream(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    assert await peer.server.ask("roots/list") is None
    stream = Stream()
    answer: dict[str, Any] = {"result": {"roots": []}}
    await peer.nursery.start(partial(follow, peer, stream, answer=answer))
    got = await peer.server.ask("roots/list", {"a": 1})
    assert got == {"jsonrpc": "2.0", "id": 1, "result": {"roots": []}}
    assert stream.messages[0]["params"] == {"a": 1}


# Losing things on demand


async def test_forget(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    listen, post = Stream(), Stream()
    await peer.nursery.start(follow, peer, listen)
    params = {"name": "slow", "arguments": {"seconds": 60}}
    call = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    await peer.nursery.start(partial(follow, peer, post, message=call))
    peer.server.forget(peer.agent.session)
    await listen.ended.wait()
    await post.ended.wait()
    assert (listen.error, post.error, post.raw) == ("", "", b"")
    with pytest.raises(SessionGoneError):
        await peer.agent.call("read")


async def test_forget_and_keep_the_streams(peer: Peer, autojump_clock: MockClock) -> None:
    peer.server.ping_interval = None
    await peer.agent.initialize()
    listen = Stream()
    await peer.nursery.start(follow, peer, listen)
    peer.server.forget(keep_streams=True)
    with pytest.raises(SessionGoneError):
        await peer.agent.call("read")
    await trio.sleep(60)
    assert not listen.ended.is_set()


async def test_restart_breaks_every_stream_off(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    listen, post = Stream(), Stream()
    await peer.nursery.start(follow, peer, listen)
    params = {"name": "slow", "arguments": {"seconds": 60}}
    call = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
    await peer.nursery.start(partial(follow, peer, post, message=call))
    peer.server.restart()
    await listen.ended.wait()
    await post.ended.wait()
    assert (listen.error, post.error) == ("cut", "cut")
    with pytest.raises(SessionGoneError):
        await peer.agent.call("read")
    await peer.agent.initialize()


@pytest.mark.parametrize("cut", [True, False])
async def test_dropping_the_get_stream_keeps_the_session(
    peer: Peer, cut: bool, autojump_clock: MockClock
) -> None:
    await peer.agent.initialize()
    stream = Stream()
    await peer.nursery.start(follow, peer, stream)
    peer.server.drop_listen(cut=cut)
    await stream.ended.wait()
    assert stream.error == ("cut" if cut else "")
    assert text_of(await peer.agent.call("read")) == "counter: 0"


async def test_without_ids_what_nobody_reads_is_lost(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    peer.server.notify_tools_changed()
    stream = Stream()
    await peer.nursery.start(partial(follow, peer, stream, last="get/0"))
    peer.server.notify("later")
    await wait_all_tasks_blocked()
    assert [message["method"] for message in stream.messages] == ["later"]


async def test_with_ids_a_listener_goes_on_where_it_was(autojump_clock: MockClock) -> None:
    async with open_peer(event_ids=True, retry=250) as peer:
        await peer.agent.initialize()
        first, second = Stream(), Stream()
        await peer.nursery.start(follow, peer, first)
        peer.server.notify("one")
        await wait_all_tasks_blocked()
        peer.server.drop_listen()
        await first.ended.wait()
        assert first.raw == (
            b"id: get/0\nretry: 250\ndata: \n\n"
            b'event: message\nid: get/1\ndata: {"method":"one","jsonrpc":"2.0"}\n\n'
        )
        peer.server.notify("two")
        await peer.nursery.start(partial(follow, peer, second, last="get/1"))
        await wait_all_tasks_blocked()
        assert [message["method"] for message in second.messages] == ["two"]
        assert b"id: get/2" in second.raw
        assert (await peer.get(peer.agent.session, last_event_id="nonsense")).status_code == 400
        assert (await peer.get(peer.agent.session, last_event_id="none/1")).status_code == 400


async def test_with_ids_an_answer_can_be_fetched_later(autojump_clock: MockClock) -> None:
    async with open_peer(event_ids=True, ping_interval=None) as peer:
        await peer.agent.initialize()
        params = {"name": "slow", "arguments": {"seconds": 60}}
        call = {"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": params}
        post, poll = Stream(), Stream()
        await peer.nursery.start(partial(follow, peer, post, message=call))
        await wait_all_tasks_blocked()
        peer.server.drop_posts()
        await post.ended.wait()
        assert (post.error, post.messages) == ("", [])
        last = post.raw.split(b"\n")[0].removeprefix(b"id: ").decode()
        await peer.nursery.start(partial(follow, peer, poll, last=last))
        await poll.ended.wait()
        [answer] = poll.messages
        assert (answer["id"], text_of(answer["result"])) == (5, "slept 60 s")


async def test_no_priming_event_before_2025_11_25(autojump_clock: MockClock) -> None:
    async with open_peer(event_ids=True) as peer:
        agent = PlainAgent(peer.client, URL, version="2025-06-18")
        await agent.initialize()
        response = await peer.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, agent.session)
        assert response.content.startswith(b"event: message\nid: post-")


# Scripts


async def test_script_answers_instead(peer: Peer, autojump_clock: MockClock) -> None:
    def script(received: Received) -> Reply | None:
        return Reply.text(503, "busy") if received.method == "tools/call" else None

    peer.server.script = script
    await peer.agent.initialize()
    with pytest.raises(HttpStatusError, match="status 503: busy"):
        await peer.agent.call("increment")
    peer.server.script = None
    assert text_of(await peer.agent.call("read")) == "counter: 0"


async def test_queued_replies_are_served_in_order(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    peer.server.reply_next(Reply.text(429, headers={"retry-after": "1"}), method="tools/call")
    peer.server.reply_next(Reply.text(401), method="tools/call", times=2)
    peer.server.reply_next(Reply.text(500), http_method="GET")
    statuses = []
    for _ in range(4):
        try:
            await peer.agent.call("increment")
        except HttpStatusError as error:
            statuses.append(error.status)
    assert statuses == [429, 401, 401]
    assert (await peer.get(peer.agent.session)).status_code == 500
    assert text_of(await peer.agent.call("read")) == "counter: 1"


@pytest.mark.parametrize(
    ("reply", "error", "counter"),
    [
        (Reply.cut(), httpx.RemoteProtocolError, 0),
        (Reply.cut(execute=True), httpx.RemoteProtocolError, 1),
        (Reply.hang(), trio.TooSlowError, 0),
        (Reply.hang(execute=True), trio.TooSlowError, 1),
        (Reply.events(), NoAnswerError, 0),
        (Reply.events(execute=True), NoAnswerError, 1),
        (
            Reply.events({"jsonrpc": "2.0", "method": "x"}, ending="cut"),
            httpx.RemoteProtocolError,
            0,
        ),
        (Reply.json({"jsonrpc": "2.0", "id": "other", "result": {}}), NoAnswerError, 0),
        (Reply(status=200, body=b"", ending="hang"), trio.TooSlowError, 0),
    ],
)
async def test_replies(
    peer: Peer, reply: Reply, error: type[Exception], counter: int, autojump_clock: MockClock
) -> None:
    await peer.agent.initialize()
    peer.server.reply_next(reply, method="tools/call")
    with pytest.raises(error), trio.fail_after(2):
        await peer.agent.call("increment")
    assert text_of(await peer.agent.call("read")) == f"counter: {counter}"


async def test_a_late_reply(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    peer.server.reply_next(Reply.text(500, seconds=3), method="ping")
    with pytest.raises(HttpStatusError):
        await peer.agent.request("ping")
    assert trio.current_time() == pytest.approx(3)


# The server's own end


async def test_a_closed_server_breaks_streams_off_and_answers_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    async with HeartbeatServer.open() as server:
        client = httpx.AsyncClient(transport=AsgiBridge(server.app, nursery), timeout=None)
        peer = Peer(server, client, PlainAgent(client, URL), nursery)
        await peer.agent.initialize()
        stream = Stream()
        await peer.nursery.start(follow, peer, stream)
    await stream.ended.wait()
    assert stream.error == "cut"
    with pytest.raises(httpx.RemoteProtocolError):
        await peer.agent.initialize()


async def test_an_error_inside_the_block_comes_out_as_it_was(autojump_clock: MockClock) -> None:
    with pytest.raises(ZeroDivisionError):
        async with HeartbeatServer.open():
            raise ZeroDivisionError


async def test_an_option_that_does_not_exist(autojump_clock: MockClock) -> None:
    with pytest.raises(TypeError, match="pings"):
        async with HeartbeatServer.open(pings=3):
            raise AssertionError


async def test_the_log_tells_what_came(peer: Peer, autojump_clock: MockClock) -> None:
    await peer.agent.initialize()
    await peer.post({"jsonrpc": "2.0", "id": 0, "result": {}}, peer.agent.session, x_a="1")
    answer = peer.server.log[-1]
    assert answer.is_answer
    assert (answer.id, answer.method, answer.params) == (0, None, {})
    assert (answer.http_method, answer.path, answer.headers["x-a"]) == ("POST", "/mcp", "1")
    assert answer.session == peer.agent.session
    assert not peer.server.log[0].is_answer
    assert peer.server.log[0].params["clientInfo"]["name"] == "plain-agent"
