from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import httpx
import msgspec
import pytest
import trio
from attrs import define, field
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

URL = "http://upstream.test/mcp"
ACCEPT = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@define
class Peer:
    """A server, a client of it, and an agent on that client."""

    server: HeartbeatServer
    client: httpx.AsyncClient
    agent: PlainAgent
    nursery: trio.Nursery

    def new_agent(self) -> PlainAgent:
        return PlainAgent(self.client, URL)

    async def post(self, message: Any, session: str | None = None, **headers: str) -> Any:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        ids = {"mcp-session-id": session} if session else {}
        content = message if isinstance(message, bytes) else msgspec.json.encode(message)
        return await self.client.post(URL, content=content, headers={**ACCEPT, **ids, **names})

    async def get(self, session: str | None = None, **headers: str) -> httpx.Response:
        """A GET that is expected to be refused, so that it ends."""
        ids = {"mcp-session-id": session} if session else {}
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.get(URL, headers={"accept": "text/event-stream", **ids, **names})


@asynccontextmanager
async def open_peer(**options: Any) -> AsyncIterator[Peer]:
    async with trio.open_nursery() as nursery, HeartbeatServer.open(**options) as server:
        bridge = AsgiBridge(server.app, nursery)
        nursery.start_soon(give_up)
        async with httpx.AsyncClient(transport=bridge, timeout=None) as client:
            yield Peer(server, client, PlainAgent(client, URL), nursery)
            nursery.cancel_scope.cancel()


async def give_up() -> None:
    """On a virtual clock a test that waits for nothing would never fail."""
    await trio.sleep(10_000)
    raise TimeoutError


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    async with open_peer() as one:
        yield one


@define
class Stream:
    """What came over an event stream."""

    raw: bytes = b""
    status: int = 0
    headers: Mapping[str, str] = field(factory=dict)
    error: str = ""
    ended: trio.Event = field(factory=trio.Event)
    ended_at: float = 0.0

    @property
    def messages(self) -> list[Any]:
        lines = self.raw.split(b"\n")
        return [msgspec.json.decode(line[6:]) for line in lines if line.startswith(b"data: {")]


async def follow(
    peer: Peer,
    stream: Stream,
    *,
    answer: Any = None,
    message: Any = None,
    session: str | None = None,
    last: str | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Read a GET stream (or with `message` a POST's); answer each request on it by `answer`."""
    session = session or peer.agent.session
    headers = {**ACCEPT, "mcp-session-id": session or ""}
    if last is not None:
        headers["last-event-id"] = last
    content = msgspec.json.encode(message) if message else None
    method = "POST" if message else "GET"
    async with (
        trio.open_nursery() as nursery,
        peer.client.stream(method, URL, headers=headers, content=content) as response,
    ):
        stream.status = response.status_code
        stream.headers = response.headers
        task_status.started()
        try:
            async for chunk in response.aiter_raw():
                seen = len(stream.messages)
                stream.raw += chunk
                for request in stream.messages[seen:]:
                    if answer is not None and "id" in request and "method" in request:
                        reply = {"jsonrpc": "2.0", "id": request["id"], **answer}
                        nursery.start_soon(peer.post, reply, session)
        except httpx.RemoteProtocolError:
            stream.error = "cut"
    stream.ended_at = trio.current_time()
    stream.ended.set()


PONG: dict[str, Any] = {"result": {}}


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
