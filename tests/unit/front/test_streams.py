from __future__ import annotations

import pytest
import trio
from agent_kit import BOTH, REVISIONS, Bench, events, open_bench, rpc
from trio.testing import MockClock, wait_all_tasks_blocked

pytestmark = pytest.mark.usefixtures("each_listener")

CHANGED = {"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}


def change_tools(bench: Bench) -> None:
    """Makes the server's list another one, and says so."""
    server = bench.server
    if "read" in server.tools:
        server.remove_tool("read")
    else:
        server.add_tool("read", server.tools["increment"][2])
    server.notify_tools_changed()


async def settle(bench: Bench) -> None:
    """Waits until a change of tools has gone all the way."""
    await trio.sleep(1)
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("path", ["/mcp", "/mcp/box"])
async def test_a_change_is_told_on_the_stream_once(bench: Bench, path: str) -> None:
    agent = await bench.connect(path)
    await settle(bench)
    async with bench.listen(agent.session, path) as listening:
        await settle(bench)
        before = len(listening.messages)
        change_tools(bench)
        change_tools(bench)
        change_tools(bench)
        await settle(bench)
        assert listening.messages[before:] == [CHANGED]


async def test_a_change_waits_for_a_stream_and_is_told_once(bench: Bench) -> None:
    agent = await bench.connect()
    async with bench.listen(agent.session):
        await settle(bench)
    for _ in range(3):
        change_tools(bench)
        await settle(bench)
    async with bench.listen(agent.session) as listening:
        await settle(bench)
        assert listening.messages == [CHANGED]
    async with bench.listen(agent.session) as listening:
        await settle(bench)
        assert listening.messages == []


async def test_a_change_is_told_on_the_newest_stream_only(bench: Bench) -> None:
    agent = await bench.connect()
    async with bench.listen(agent.session) as old, bench.listen(agent.session) as new:
        await settle(bench)
        before = len(old.messages), len(new.messages)
        change_tools(bench)
        await settle(bench)
        assert (len(old.messages), len(new.messages)) == (before[0], before[1] + 1)


async def test_a_change_of_another_server_is_none_of_an_endpoints_business(
    autojump_clock: MockClock,
) -> None:
    async with open_bench(configured={"box": {}, "other": {}}) as bench:
        agent = await bench.connect("/mcp/box")
        async with bench.listen(agent.session, "/mcp/box") as listening:
            await settle(bench)
            before = len(listening.messages)
            bench.servers["other"].remove_tool("read")
            bench.servers["other"].notify_tools_changed()
            await settle(bench)
            assert len(listening.messages) == before
            bench.servers["box"].remove_tool("read")
            bench.servers["box"].notify_tools_changed()
            await settle(bench)
            assert len(listening.messages) == before + 1


async def test_what_is_told_of_a_list_that_stayed_the_same_is_nothing(bench: Bench) -> None:
    agent = await bench.connect()
    async with bench.listen(agent.session) as listening:
        await settle(bench)
        before = len(listening.messages)
        bench.server.notify_tools_changed()
        await settle(bench)
        assert len(listening.messages) == before


@pytest.mark.parametrize("revision", REVISIONS)
async def test_an_open_stream_gets_something_at_once_and_every_fifteen_seconds(
    bench: Bench, revision: str
) -> None:
    agent = await bench.connect(version=revision)
    await settle(bench)
    start = trio.current_time()
    async with bench.listen(agent.session) as listening:
        await listening.wait_for(lambda it: len(it.chunks) == 5, seconds=100)
    after = [when - start for when, _ in listening.chunks]
    assert after == pytest.approx([0, 15, 30, 45, 60], abs=0.5)
    assert all(chunk.endswith(b"\n\n") for _, chunk in listening.chunks)


@pytest.mark.parametrize(("seconds", "comments"), [(20, 1), (31, 2), (100, 6)])
async def test_a_long_call_turns_into_a_stream_with_comments(
    bench: Bench, seconds: float, comments: int
) -> None:
    agent = await bench.connect()
    call = rpc("tools/call", {"name": "box__slow", "arguments": {"seconds": seconds}}, "long")
    headers = {
        "accept": BOTH,
        "content-type": "application/json",
        "mcp-session-id": agent.session or "",
    }
    async with bench.stream("POST", json=call, headers=headers) as listening:
        start = trio.current_time()
        assert listening.response.headers["content-type"] == "text/event-stream"
        assert "no-transform" in listening.response.headers["cache-control"]
        with trio.fail_after(200):
            await listening.ended.wait()
    # The head itself came with the event that has an id only.
    assert [when - start for when in listening.comments] == pytest.approx(
        [15.0 * n for n in range(1, comments)], abs=0.5
    )
    (answer,) = listening.messages
    assert answer["id"] == "long"
    assert answer["result"]["content"][0]["text"] == f"slept {seconds} s"


async def test_a_long_batch_is_one_event(bench: Bench) -> None:
    agent = await bench.connect(version="2025-03-26")
    slow = {"name": "box__slow", "arguments": {"seconds": 20}}
    response = await bench.post([rpc("tools/call", slow), rpc("ping", ident=2)], agent.session)
    assert response.headers["content-type"] == "text/event-stream"
    data = [line for line in response.content.splitlines() if line.startswith(b"data:")]
    assert len(data) == 1
    assert data[0].startswith((b"data: [", b"data:["))


@pytest.mark.parametrize("seconds", [0, 1, 14])
async def test_a_short_answer_is_plain_json(bench: Bench, seconds: float) -> None:
    agent = await bench.connect()
    call = rpc("tools/call", {"name": "box__slow", "arguments": {"seconds": seconds}})
    response = await bench.post(call, agent.session)
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(response.content)


async def test_an_answer_with_a_separator_inside_stays_one_event(bench: Bench) -> None:
    agent = await bench.connect()

    async def separated(_: object) -> dict[str, object]:
        await trio.sleep(20)
        return {"content": [{"type": "text", "text": "a\u2028b\nc\r\nd"}]}

    bench.server.add_tool("read", separated)
    response = await bench.post(rpc("tools/call", {"name": "box__read"}), agent.session)
    (answer,) = events(response.content)
    assert answer["result"]["content"][0]["text"] == "a\u2028b\nc\r\nd"


async def test_a_call_goes_on_when_the_agent_leaves(bench: Bench) -> None:
    agent = await bench.connect()
    call = {"name": "box__slow", "arguments": {"seconds": 30}}
    with trio.move_on_after(5):
        await bench.post(rpc("tools/call", call), agent.session)
    await trio.sleep(60)
    assert b'code="ok",fate="executed",server="box"} 1.0' in bench.router.metrics.render()
    assert bench.server.requests("notifications/cancelled") == []
    assert bench.router.operations.in_flight == 0


async def test_an_agent_that_leaves_its_stream_leaves_nothing_behind(bench: Bench) -> None:
    agent = await bench.connect()
    for _ in range(20):
        async with bench.listen(agent.session):
            await wait_all_tasks_blocked()
    await wait_all_tasks_blocked()
    (session,) = bench.router.agents.all()
    assert list(session.streams) == []


async def test_of_too_many_streams_the_oldest_ends(bench: Bench) -> None:
    agent = await bench.connect()
    async with (
        bench.listen(agent.session) as oldest,
        bench.listen(agent.session) as second,
        bench.listen(agent.session),
        bench.listen(agent.session),
        bench.listen(agent.session) as newest,
    ):
        with trio.fail_after(1):
            await oldest.ended.wait()
        assert not second.ended.is_set()
        assert not newest.ended.is_set()


async def test_streams_of_a_deleted_session_end(bench: Bench) -> None:
    agent = await bench.connect()
    async with bench.listen(agent.session) as listening:
        await agent.delete()
        with trio.fail_after(1):
            await listening.ended.wait()


async def test_streams_end_when_the_router_stops_and_new_ones_are_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_bench() as bench:
        agent = await bench.connect()
        async with bench.listen(agent.session) as listening, trio.open_nursery() as nursery:
            nursery.start_soon(bench.post, rpc("tools/call", SLOW), agent.session)
            await settle(bench)
            nursery.start_soon(bench.router.drain)
            with trio.fail_after(1):
                await listening.ended.wait()
            with trio.fail_after(1):
                assert (await bench.get(agent.session)).status_code == 503


SLOW = {"name": "box__slow", "arguments": {"seconds": 10}}
