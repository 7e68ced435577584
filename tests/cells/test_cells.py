"""Each feature of the protocol, between an agent and a server of each era.

docs/eras.md says what a cell cannot carry; all else is here, once for each of the four.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
import pytest
import trio
from cells.cell_kit import QUESTIONS, Cell, open_cell
from trio.testing import MockClock

from kars_router.testing import RpcError, text_of

CELLS = [(agent, server) for agent in ("handshake", "stateless") for server in ("hand", "free")]
each_cell = pytest.mark.parametrize(("agent", "server"), CELLS, ids=lambda value: value)
each_view = pytest.mark.parametrize("prefixed", [False, True], ids=["one", "all"])


async def listed(cell: Cell, method: str, member: str, key: str) -> list[str]:
    """The names of a list's items that are the server's."""
    result = await cell.agent.request(method)
    names = [item[key] for item in result[member]]
    return [name for name in names if not cell.prefixed or cell.server in name]


@each_cell
@each_view
async def test_tools(autojump_clock: MockClock, agent: str, server: str, prefixed: bool) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        names = await listed(cell, "tools/list", "tools", "name")
        assert cell.name("echo") in names
        result = await cell.call("echo", n=1, text="\u2028")
        # What the router does not know it passes on.
        assert result["structuredContent"] == {"n": 1, "text": "\u2028"}
        assert result["content"][0]["x-unknown"] == {"kept": True}
        assert result["x-unknown"] == [0, None, "kept"]
        assert result["_meta"]["kars.test/params"]["name"] == "echo"


@each_cell
async def test_tool_errors(autojump_clock: MockClock, agent: str, server: str) -> None:
    async with open_cell(agent, server) as cell:
        assert (await cell.call("fail", message="no"))["isError"] is True
        with pytest.raises(RpcError) as caught:
            await cell.call("error", code=-31234, message="broken", data={"x": 1})
        assert (caught.value.code, caught.value.data) == (-31234, {"x": 1})
        with pytest.raises(RpcError) as caught:
            await cell.call("no-such-tool")
        assert caught.value.code == -32602


@each_cell
async def test_fields_of_a_call_reach_the_server(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        meta = {"traceparent": "00-1-2-03", "x.test/y": {"n": [1]}}
        params = {"name": "echo", "arguments": {}, "x-unknown": True, "_meta": meta}
        result = await cell.agent.request("tools/call", params)
        got = result["_meta"]["kars.test/params"]
        assert got["x-unknown"] is True
        assert {key: got["_meta"][key] for key in meta} == meta
        ours = [key for key in got["_meta"] if key.startswith("io.modelcontextprotocol/")]
        assert bool(ours) == (server == "free")


@each_cell
@each_view
async def test_resources(
    autojump_clock: MockClock, agent: str, server: str, prefixed: bool
) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        uri = cell.uri("test://static")
        assert uri in await listed(cell, "resources/list", "resources", "uri")
        templates = await listed(
            cell, "resources/templates/list", "resourceTemplates", "uriTemplate"
        )
        assert templates == [cell.uri("test://item/{id}")]
        result = await cell.agent.request("resources/read", {"uri": uri})
        assert result["contents"][0]["uri"] == uri
        assert result["contents"][0]["text"] == "static"


@each_cell
async def test_a_resource_that_is_not_there(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:

        async def missing(_: Any) -> Any:
            raise RpcError(-32002, "Resource not found")

        cell.hand.add_method("resources/read", missing)
        with pytest.raises(RpcError) as caught:
            await cell.agent.request("resources/read", {"uri": "test://none"})
        assert caught.value.code == (-32002 if (agent, server) == ("handshake", "hand") else -32602)


@each_cell
@each_view
async def test_prompts(autojump_clock: MockClock, agent: str, server: str, prefixed: bool) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        assert cell.name("greet") in await listed(cell, "prompts/list", "prompts", "name")
        result = await cell.agent.request("prompts/get", {"name": cell.name("greet")})
        assert result["messages"][0]["content"]["text"].startswith("Say hello")
        assert cell.received("prompts/get")[0].params["name"] == "greet"


@each_cell
@each_view
async def test_completion(
    autojump_clock: MockClock, agent: str, server: str, prefixed: bool
) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        ref = {"type": "ref/prompt", "name": cell.name("greet")}
        params = {"ref": ref, "argument": {"name": "name", "value": ""}}
        result = await cell.agent.request("completion/complete", params)
        assert result["completion"]["values"]
        (got,) = cell.received("completion/complete")
        assert got.params["ref"]["name"] == "greet"


@each_cell
@each_view
async def test_progress(autojump_clock: MockClock, agent: str, server: str, prefixed: bool) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        params = {
            "name": cell.name("slow"),
            "arguments": {"seconds": 2},
            "_meta": {"progressToken": "mine"},
        }
        await cell.agent.request("tools/call", params)
        (said,) = [m for m in cell.agent.said if m["method"] == "notifications/progress"]
        assert said["params"]["progressToken"] == "mine"
        (call,) = cell.received("tools/call")
        assert call.params["_meta"]["progressToken"] != "mine"


@each_cell
async def test_no_progress_without_a_token(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        await cell.call("slow", seconds=2)
        assert cell.agent.said == []


@each_cell
@each_view
async def test_logging(autojump_clock: MockClock, agent: str, server: str, prefixed: bool) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        await cell.agent.want_logs("warning")
        await cell.call("log")
        said = [m["params"] for m in cell.agent.said if m["method"] == "notifications/message"]
        assert [m["data"] for m in said] == ["said at warning", "said at error"]
        if prefixed:
            assert all(m["logger"].startswith(server) for m in said)


@pytest.mark.parametrize("server", ["hand", "free"])
async def test_a_stateless_agent_that_wants_no_logs_gets_none(
    autojump_clock: MockClock, server: str
) -> None:
    async with open_cell("stateless", server) as cell:
        await cell.call("log")
        assert cell.agent.said == []


@each_cell
async def test_a_cancelled_call_ends_at_the_server(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        params = {"name": "slow", "arguments": {"seconds": 100}}
        with trio.fail_after(20):
            await cell.agent.abandon(params, partial(cell.wait_for, "tools/call"))
            if server == "hand":
                await cell.wait_for("notifications/cancelled")
                (said,) = cell.received("notifications/cancelled")
                assert said.params["requestId"] == cell.received("tools/call")[0].id
            else:
                left = partial(cell.free.happenings, "left", "tools/call")
                await cell.free.wait_until(lambda: bool(left()))


@each_cell
@each_view
@pytest.mark.parametrize("kind", QUESTIONS)
async def test_questions(
    autojump_clock: MockClock, agent: str, server: str, prefixed: bool, kind: str
) -> None:
    method, params, answer = QUESTIONS[kind]
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        cell.agent.answers = {method: answer}
        result = await cell.call("question", method=method, params=params)
        assert msgspec.json.decode(text_of(result)) == {"result": answer}
        ((asked, got),) = cell.agent.asked
        assert asked == method
        assert {key: got[key] for key in params} == params
        # Nothing was carried out twice.
        calls = [r for r in cell.received("tools/call") if "inputResponses" not in r.params]
        assert len(calls) == 1


@each_cell
@pytest.mark.parametrize("kind", QUESTIONS)
async def test_nobody_is_asked_what_was_not_declared(
    autojump_clock: MockClock, agent: str, server: str, kind: str
) -> None:
    method, params, _ = QUESTIONS[kind]
    async with open_cell(agent, server, capabilities={}) as cell:
        start = trio.current_time()
        if server == "hand":
            result = await cell.call("question", method=method, params=params)
            assert "error" in msgspec.json.decode(text_of(result))
        else:
            with pytest.raises(RpcError) as caught:
                await cell.call("question", method=method, params=params)
            assert caught.value.code == -32021
        assert cell.agent.asked == []
        assert trio.current_time() - start < 1


@each_cell
@each_view
@pytest.mark.parametrize("what", ["tools", "prompts", "resources"])
async def test_lists_that_change(
    autojump_clock: MockClock, agent: str, server: str, prefixed: bool, what: str
) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        await cell.agent.watch()
        await cell.call("echo")
        await trio.sleep(5)
        cell.agent.heard.clear()
        if what == "tools":
            cell.hand.add_tool("more", cell.hand.tools["echo"][2])
            cell.free.add_tool("more", cell.free.tools["echo"][2])
        await cell.call("trigger", list=what)
        await trio.sleep(5)
        methods = [m["method"] for m in cell.agent.heard]
        assert methods == [f"notifications/{what}/list_changed"]
        if what == "tools":
            assert cell.name("more") in await listed(cell, "tools/list", "tools", "name")


@each_cell
@each_view
async def test_resources_that_change(
    autojump_clock: MockClock, agent: str, server: str, prefixed: bool
) -> None:
    async with open_cell(agent, server, prefixed=prefixed) as cell:
        uri = cell.uri("test://static")
        await cell.agent.watch(uri)
        await cell.call("change")
        await trio.sleep(5)
        updated = [
            m["params"]["uri"]
            for m in cell.agent.heard
            if m["method"] == "notifications/resources/updated"
        ]
        assert updated == [uri]


@each_cell
async def test_what_is_offered_is_what_the_server_can_do(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        for name in ("tools", "prompts", "resources", "completions", "logging"):
            assert name in cell.capabilities
        assert "tasks" not in cell.capabilities


@pytest.mark.parametrize("agent", ["handshake", "stateless"])
async def test_a_stateful_server_keeps_its_state_for_agents_of_both_eras(
    autojump_clock: MockClock, agent: str
) -> None:
    async with open_cell(agent, "hand") as cell:
        assert text_of(await cell.call("increment")) == "counter: 1"
        await trio.sleep(1800)
        assert text_of(await cell.call("increment")) == "counter: 2"
        assert cell.hand.happenings("reaped") == []
        cell.hand.forget()
        result = await cell.call("increment")
        assert text_of(result).startswith("Notice: the state")
        assert result["_meta"]["kars.azure.com/session"]["reset"] is True


@pytest.mark.parametrize("agent", ["handshake", "stateless"])
async def test_a_stateless_server_has_nothing_to_lose(
    autojump_clock: MockClock, agent: str
) -> None:
    async with open_cell(agent, "free") as cell:
        await cell.call("counter")
        cell.free.drop_listens(cut=True)
        await trio.sleep(60)
        assert text_of(await cell.call("counter")) == "counter: 2"
        assert [r.method for r in cell.free.log if r.method == "initialize"] == []


async def test_a_server_of_both_eras_is_spoken_to_in_the_agents_own(
    autojump_clock: MockClock,
) -> None:
    """It keeps something for its clients in one of the two only."""
    async with open_cell("handshake", "both") as cell:
        assert text_of(await cell.call("increment")) == "counter: 1"
        assert text_of(await cell.call("increment")) == "counter: 2"
        other = cell.connect("stateless")
        await other.start({})
        echo = {"name": "echo", "arguments": {}}
        result = await other.request("tools/call", echo)
        got = result["_meta"]["kars.test/params"]["_meta"]
        assert got["io.modelcontextprotocol/protocolVersion"] == "2026-07-28"
