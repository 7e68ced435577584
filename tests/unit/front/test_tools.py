from __future__ import annotations

from typing import Any

import pytest
from agent_kit import CALL, Bench, configuration, open_bench, rpc
from attrs import evolve
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.config.frozenmap import FrozenMap
from kars_router.front.tools import PAGE_SIZE
from kars_router.testing import Call, HeartbeatServer, Received, Reply, RpcError, text_of
from kars_router.wire import jsonrpc
from kars_router.wire.names import public_name

BUILT_IN = ["ask", "echo", "error", "fail", "increment", "read", "slow"]


async def nothing(call: Call) -> dict[str, Any]:
    return {"content": [{"type": "text", "text": f"called {call.params['name']}"}]}


def crowd(server: HeartbeatServer, count: int) -> None:
    """Gives a server so many tools more."""
    for number in range(count):
        server.add_tool(f"tool-{number:04}", nothing)


async def names(bench: Bench, path: str = "/mcp") -> list[str]:
    return [tool["name"] for tool in await (await bench.connect(path)).list_tools()]


async def test_names_are_prefixed_where_all_servers_are(autojump_clock: MockClock) -> None:
    async with open_bench(configured={"box": {}, "other": {}}) as bench:
        both = [f"{server}__{tool}" for server in ("box", "other") for tool in BUILT_IN]
        assert await names(bench) == both
        assert await names(bench, "/mcp/box") == BUILT_IN


async def test_a_definition_is_passed_on_whole(autojump_clock: MockClock) -> None:
    definition = {
        "name": "echo",
        "title": "Echo",
        "inputSchema": {"type": "object", "properties": {"é": {"default": 1.50}}},
        "outputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": True},
        "_meta": {"x": None},
        "execution": {"taskSupport": "forbidden"},
        "x-unknown": [1],
    }

    def script(received: Received) -> Reply | None:
        if received.method != "tools/list":
            return None
        return Reply.json({"jsonrpc": "2.0", "id": received.id, "result": {"tools": [definition]}})

    async with (
        HeartbeatServer.open(script=script) as server,
        open_bench(servers={"box": server}) as bench,
    ):
        (own,) = await (await bench.connect("/mcp/box")).list_tools()
        (public,) = await (await bench.connect("/mcp")).list_tools()
    assert own == definition
    assert public == {**definition, "name": "box__echo"}


async def test_pages_are_whole_and_small(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open() as server:
        crowd(server, 2 * PAGE_SIZE)
        async with open_bench(servers={"box": server}) as bench:
            agent = await bench.connect()
            pages = [await agent.request("tools/list")]
            while "nextCursor" in pages[-1]:
                cursor = pages[-1]["nextCursor"]
                pages.append(await agent.request("tools/list", {"cursor": cursor}))
            assert [len(page["tools"]) for page in pages] == [PAGE_SIZE, PAGE_SIZE, len(BUILT_IN)]
            listed = [tool["name"] for page in pages for tool in page["tools"]]
            assert sorted(listed) == listed
            assert len(set(listed)) == 2 * PAGE_SIZE + len(BUILT_IN)


async def test_the_last_full_page_has_no_cursor(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open() as server:
        crowd(server, PAGE_SIZE - len(BUILT_IN))
        async with open_bench(servers={"box": server}) as bench:
            page = await (await bench.connect()).request("tools/list")
            assert len(page["tools"]) == PAGE_SIZE
            assert "nextCursor" not in page


async def test_pages_hold_while_the_list_changes(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open() as server:
        crowd(server, 2 * PAGE_SIZE)
        async with open_bench(servers={"box": server}) as bench:
            agent = await bench.connect()
            first = await agent.request("tools/list")
            before = {tool["name"] for tool in first["tools"]}
            # Gone before and after the place, the very tool at the place, and new on both sides.
            last = first["tools"][-1]["name"].removeprefix("box__")
            for tool in ("ask", last, f"tool-{2 * PAGE_SIZE - 1:04}"):
                server.remove_tool(tool)
            server.add_tool("a-new-one", nothing)
            server.add_tool("z-new-one", nothing)
            async with bench.listen(agent.session) as listening:
                await wait_all_tasks_blocked()
                heard = len(listening.messages)  # that the server is there, if it came later
                server.notify_tools_changed()
                await listening.wait_for(lambda it: len(it.messages) > heard)
            after: list[str] = []
            page = first
            while "nextCursor" in page:
                page = await agent.request("tools/list", {"cursor": page["nextCursor"]})
                after += [tool["name"] for tool in page["tools"]]
            assert not before & set(after)  # nothing twice
            stayed = {f"box__{tool}" for tool in server.tools} - {"box__a-new-one"}
            assert stayed - before - set(after) == set()  # and nothing left out
            assert "box__z-new-one" in after


@pytest.mark.parametrize("cursor", ["", "x", "é", "WzEsMl0=", "W10=", "bnVsbA==", 1, [], {}])
async def test_a_cursor_of_somebody_else_is_refused(bench: Bench, cursor: Any) -> None:
    agent = await bench.connect()
    with pytest.raises(RpcError) as caught:
        await agent.request("tools/list", {"cursor": cursor})
    assert caught.value.code == jsonrpc.INVALID_PARAMS


async def test_a_cursor_of_null_means_the_first_page(bench: Bench) -> None:
    agent = await bench.connect()
    assert len((await agent.request("tools/list", {"cursor": None}))["tools"]) == len(BUILT_IN)


@pytest.mark.parametrize(
    ("path", "name"),
    [("/mcp", "box__increment"), ("/mcp", "box.increment"), ("/mcp/box", "increment")],
)
async def test_a_tool_is_called_by_each_of_its_names(bench: Bench, path: str, name: str) -> None:
    agent = await bench.connect(path)
    assert text_of(await agent.call(name)) == "counter: 1"
    (call,) = bench.server.requests("tools/call")
    assert call.params["name"] == "increment"


LONG = "a-tool-with-a-name-that-goes-on-and-on-for-more-than-sixty-four-characters"


@pytest.mark.parametrize("tool", [LONG, LONG + "-too", "with.dot", "mit ümlaut", "a/b", "x" * 256])
async def test_a_name_that_has_to_be_changed_can_be_called(
    autojump_clock: MockClock, tool: str
) -> None:
    async with HeartbeatServer.open() as server:
        server.add_tool(tool, nothing)
        async with open_bench(servers={"box": server}) as bench:
            (listed,) = set(await names(bench)) - {f"box__{name}" for name in BUILT_IN}
            assert len(listed) <= 64
            assert listed == public_name("box", tool)
            for path, name in (("/mcp", listed), ("/mcp", f"box.{tool}"), ("/mcp/box", tool)):
                agent = await bench.connect(path)
                assert text_of(await agent.call(name)) == f"called {tool}"


async def refusal(bench: Bench, name: Any, path: str = "/mcp") -> tuple[int, str]:
    """How a call is refused, without the name in question."""
    agent = await bench.connect(path)
    with pytest.raises(RpcError) as caught:
        await agent.request("tools/call", {"name": name})
    return caught.value.code, caught.value.message.removesuffix(str(name))


async def test_a_hidden_tool_looks_like_one_that_is_not_there(autojump_clock: MockClock) -> None:
    config = configuration({"box": {"allowedTools": ["re*"]}, "other": {}})
    async with open_bench(config) as bench:
        assert [n for n in await names(bench) if n.startswith("box")] == ["box__read"]
        assert await names(bench, "/mcp/box") == ["read"]
        unknown = (jsonrpc.INVALID_PARAMS, "unknown tool: ")
        for name in ("box__echo", "box.echo", "box__none", "none__echo", "echo", "read", "", "__"):
            assert await refusal(bench, name) == unknown
        for name in ("echo", "none", "box__read", "box.read", "other__read", "other.read"):
            assert await refusal(bench, name, "/mcp/box") == unknown
        assert bench.servers["box"].requests("tools/call") == []


@pytest.mark.parametrize("settings", [{}, {"allowedTools": []}])
async def test_without_allowed_tools_there_are_none(
    autojump_clock: MockClock, settings: dict[str, Any]
) -> None:
    config = configuration({"box": {"allowedTools": ["x"]}})
    box = evolve(config.servers["box"], allowed_tools=tuple(settings.get("allowedTools", ())))
    async with open_bench(evolve(config, servers=FrozenMap({"box": box}))) as bench:
        assert await names(bench) == []
        assert await names(bench, "/mcp/box") == []
        assert await refusal(bench, "box__read") == await refusal(bench, "box__none")


@pytest.mark.parametrize("params", [{}, {"name": 1}, {"name": None}, {"name": ["box__read"]}, []])
async def test_a_call_needs_a_name(bench: Bench, params: Any) -> None:
    agent = await bench.connect()
    response = await bench.post(rpc("tools/call", params), agent.session)
    assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS


@pytest.mark.parametrize("arguments", [None, 1, "x", [], True])
async def test_arguments_are_an_object(bench: Bench, arguments: Any) -> None:
    agent = await bench.connect()
    params = {"name": "box__read", "arguments": arguments}
    response = await bench.post(rpc("tools/call", params), agent.session)
    assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
    assert bench.server.requests("tools/call") == []


async def test_a_server_that_is_down_at_the_start_hides_no_other(autojump_clock: MockClock) -> None:
    async with HeartbeatServer.open(script=lambda _: Reply.cut()) as down:
        config = configuration({"box": {}, "down": {}})
        async with open_bench(config, servers={"down": down}) as bench:
            assert await names(bench) == [f"box__{tool}" for tool in BUILT_IN]
            agent = await bench.connect()
            failed = await agent.call("down__read")
            assert failed["isError"] is True
            assert failed["_meta"][CALL]["code"] == "upstream_unavailable"
            async with bench.listen(agent.session) as listening:
                down.script = None
                await listening.wait_for(lambda it: bool(it.messages))
            assert text_of(await agent.call("down__read")) == "counter: 0"
