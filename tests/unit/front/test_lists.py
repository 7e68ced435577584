"""Prompts, resources and completion as agents see them, over one server and over several."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from agent_kit import open_bench
from trio.testing import MockClock

from kars_router.testing import Call, HeartbeatServer, PlainAgent, RpcError
from kars_router.wire.names import public_name

RICH = {"prompts": {"listChanged": True}, "resources": {"subscribe": True}, "completions": {}}
LONG = "p" * 80


def library(server: HeartbeatServer, prompts: int = 2, resources: int = 3, page: int = 2) -> None:
    """Gives a server prompts and resources, in pages."""

    def listed(member: str, items: list[dict[str, Any]]) -> Callable[[Call], Any]:
        async def handle(call: Call) -> dict[str, Any]:
            cursor = call.params.get("cursor", "0")
            if not str(cursor).isdigit():
                raise RpcError(-32602, "no such cursor")
            start = int(cursor)
            more = {"nextCursor": str(start + page)} if start + page < len(items) else {}
            return {member: items[start : start + page], **more, "x-unknown": 1}

        return handle

    names = [f"prompt-{n}" for n in range(prompts)] + [LONG]
    server.add_method(
        "prompts/list",
        listed("prompts", [{"name": name, "x-unknown": {"n": 1}} for name in names]),
    )
    uris = [f"test://item/{n}" for n in range(resources)] + ["ui://app/page.html"]
    server.add_method(
        "resources/list", listed("resources", [{"uri": uri, "name": uri} for uri in uris])
    )
    server.add_method(
        "resources/templates/list",
        listed("resourceTemplates", [{"uriTemplate": "test://item/{n}", "name": "item"}]),
    )

    async def read(call: Call) -> dict[str, Any]:
        uri = call.params["uri"]
        if uri not in uris:
            raise RpcError(-32002, "Resource not found", {"uri": uri})
        return {"contents": [{"uri": uri, "text": f"at {uri}"}]}

    async def get(call: Call) -> dict[str, Any]:
        name = call.params["name"]
        link = {"type": "resource_link", "uri": "test://item/0", "name": "first"}
        embedded = {"type": "resource", "resource": {"uri": "ui://app/page.html", "text": ""}}
        unknown = {"type": "x-unknown", "uri": "test://item/0"}
        contents = [{"type": "text", "text": name}, link, embedded, unknown]
        return {"messages": [{"role": "user", "content": content} for content in contents]}

    async def complete(call: Call) -> dict[str, Any]:
        return {"completion": {"values": [msgspec.json.encode(call.params["ref"]).decode()]}}

    server.add_method("resources/read", read)
    server.add_method("prompts/get", get)
    server.add_method("completion/complete", complete)


@asynccontextmanager
async def shelves(**settings: Any) -> Any:
    """Two servers with the same things, and one that has nothing but tools."""
    async with (
        HeartbeatServer.open(capabilities=RICH) as one,
        HeartbeatServer.open(capabilities=RICH) as two,
        HeartbeatServer.open() as plain,
    ):
        library(one)
        library(two)
        configured = {"one": settings, "two": {}, "plain": {}}
        servers = {"one": one, "two": two, "plain": plain}
        async with open_bench(configured=configured, servers=servers) as bench:
            yield bench


async def everything(agent: PlainAgent, method: str, member: str, key: str) -> list[str]:
    """The names of all pages."""
    found, cursor = [], None
    while True:
        result = await agent.request(method, {} if cursor is None else {"cursor": cursor})
        found += [item[key] for item in result[member]]
        if (cursor := result.get("nextCursor")) is None:
            return found


PROMPTS = ["prompt-0", "prompt-1", LONG]
RESOURCES = ["test://item/0", "test://item/1", "test://item/2", "ui://app/page.html"]


async def test_one_server_is_shown_as_it_is(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        agent = await bench.connect("/mcp/one")
        assert await everything(agent, "prompts/list", "prompts", "name") == PROMPTS
        assert await everything(agent, "resources/list", "resources", "uri") == RESOURCES
        templates = await agent.request("resources/templates/list")
        assert templates["resourceTemplates"][0]["uriTemplate"] == "test://item/{n}"
        result = await agent.request("resources/read", {"uri": "test://item/1"})
        assert result == {"contents": [{"uri": "test://item/1", "text": "at test://item/1"}]}


async def test_several_are_told_apart(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        assert await everything(agent, "prompts/list", "prompts", "name") == [
            public_name(server, name) for server in ("one", "two") for name in PROMPTS
        ]
        assert await everything(agent, "resources/list", "resources", "uri") == [
            *(f"one+{uri}" for uri in RESOURCES[:3]),
            "ui://one/app/page.html",
            *(f"two+{uri}" for uri in RESOURCES[:3]),
            "ui://two/app/page.html",
        ]
        templates = await everything(
            agent, "resources/templates/list", "resourceTemplates", "uriTemplate"
        )
        assert templates == ["one+test://item/{n}", "two+test://item/{n}"]


@pytest.mark.parametrize("uri", ["two+test://item/2", "ui://two/app/page.html"])
async def test_a_uri_leads_back_to_its_server(autojump_clock: MockClock, uri: str) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        result = await agent.request("resources/read", {"uri": uri})
        assert result["contents"][0]["uri"] == uri
        (read,) = bench.servers["two"].requests("resources/read")
        assert read.params["uri"] in RESOURCES
        assert bench.servers["one"].requests("resources/read") == []


@pytest.mark.parametrize("name", PROMPTS)
async def test_a_prompts_name_leads_back_to_its_server(
    autojump_clock: MockClock, name: str
) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        # Not even listed before: the long one has to be found by what it was changed to.
        result = await agent.request("prompts/get", {"name": public_name("two", name)})
        contents = [message["content"] for message in result["messages"]]
        assert contents[0] == {"type": "text", "text": name}
        assert contents[1]["uri"] == "two+test://item/0"
        assert contents[2]["resource"]["uri"] == "ui://two/app/page.html"
        assert contents[3] == {"type": "x-unknown", "uri": "test://item/0"}


async def test_completion_goes_to_the_server_of_its_reference(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        argument = {"name": "n", "value": ""}
        for ref, own in (
            ({"type": "ref/prompt", "name": public_name("two", LONG)}, {"name": LONG}),
            ({"type": "ref/prompt", "name": "two__prompt-0"}, {"name": "prompt-0"}),
            ({"type": "ref/resource", "uri": "two+test://item/{n}"}, {"uri": "test://item/{n}"}),
        ):
            params = {"ref": ref, "argument": argument}
            result = await agent.request("completion/complete", params)
            (value,) = result["completion"]["values"]
            assert msgspec.json.decode(value) == {**ref, **own}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("resources/read", {"uri": "test://item/0"}),
        ("resources/read", {"uri": "three+test://item/0"}),
        ("resources/read", {"uri": "ui://three/x"}),
        ("resources/read", {}),
        ("resources/subscribe", {"uri": "x"}),
        ("resources/unsubscribe", {"uri": "x"}),
        ("prompts/get", {"name": "prompt-0"}),
        ("prompts/get", {"name": "three__prompt-0"}),
        ("prompts/get", {"name": f"two__{'x' * 80}"}),
        ("prompts/get", {}),
        ("completion/complete", {}),
        ("completion/complete", {"ref": {"type": "ref/x"}}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "x"}}),
        ("prompts/list", {"cursor": "x"}),
        ("prompts/list", {"cursor": 1}),
        ("prompts/list", {"cursor": "WyJ0aHJlZSIsbnVsbF0="}),
        ("prompts/list", {"cursor": "WyJvbmUiLCJ4Il0="}),
    ],
)
async def test_what_leads_nowhere_is_refused(
    autojump_clock: MockClock, method: str, params: dict[str, Any]
) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        with pytest.raises(RpcError) as caught:
            await agent.request(method, params)
        assert caught.value.code == -32602


async def test_a_servers_own_error_is_passed_on(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        with pytest.raises(RpcError) as caught:
            await agent.request("resources/read", {"uri": "one+test://item/9"})
        assert (caught.value.code, caught.value.data) == (-32002, {"uri": "test://item/9"})


async def test_what_is_not_allowed_is_not_there(autojump_clock: MockClock) -> None:
    allowed = {"allowedResources": ["test://item/[01]"], "allowedPrompts": []}
    async with shelves(**allowed) as bench:
        agent = await bench.connect("/mcp/one")
        assert await everything(agent, "prompts/list", "prompts", "name") == []
        assert await everything(agent, "resources/list", "resources", "uri") == RESOURCES[:2]
        for method, params in (
            ("resources/read", {"uri": "test://item/2"}),
            ("resources/subscribe", {"uri": "test://item/2"}),
            ("prompts/get", {"name": "prompt-0"}),
            ("completion/complete", {"ref": {"type": "ref/prompt", "name": "prompt-0"}}),
        ):
            with pytest.raises(RpcError) as caught:
                await agent.request(method, params)
            assert caught.value.code == -32602
        assert bench.servers["one"].requests("resources/read") == []


async def test_a_server_without_any_allowed_tool_shows_nothing(
    autojump_clock: MockClock,
) -> None:
    async with shelves(allowedTools=[]) as bench:
        agent = await bench.connect("/mcp/one")
        assert await everything(agent, "prompts/list", "prompts", "name") == []
        assert await everything(agent, "resources/list", "resources", "uri") == []


async def test_one_server_that_cannot_list_hides_nothing_of_the_others(
    autojump_clock: MockClock,
) -> None:
    async with shelves() as bench:

        async def broken(call: Call) -> dict[str, Any]:
            raise RpcError(-32603, "out of order")

        bench.servers["one"].add_method("prompts/list", broken)
        agent = await bench.connect()
        assert await everything(agent, "prompts/list", "prompts", "name") == [
            public_name("two", name) for name in PROMPTS
        ]


async def test_a_cursor_that_goes_round_ends(autojump_clock: MockClock) -> None:
    async with shelves() as bench:

        async def round_and_round(call: Call) -> dict[str, Any]:
            return {"prompts": [{"name": "again"}], "nextCursor": "same"}

        bench.servers["one"].add_method("prompts/list", round_and_round)
        agent = await bench.connect("/mcp/one")
        assert await everything(agent, "prompts/list", "prompts", "name") == ["again", "again"]


async def test_what_a_list_holds_beside_is_kept(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        agent = await bench.connect()
        result = await agent.request("prompts/list")
        assert result["prompts"][0] == {"name": "one__prompt-0", "x-unknown": {"n": 1}}


async def test_the_capabilities_are_those_of_the_servers(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        found = {}
        for path in ("/mcp", "/mcp/one", "/mcp/plain"):
            agent = bench.agent(path)
            found[path] = (await agent.initialize())["capabilities"]
        assert found["/mcp"] == {
            "tools": {"listChanged": True},
            "prompts": {"listChanged": True},
            "resources": {"subscribe": True},
            "completions": {},
        }
        assert found["/mcp/one"] == {**RICH, "tools": {"listChanged": True}}
        assert found["/mcp/plain"] == {"tools": {"listChanged": True}}


async def test_lists_use_the_session_that_the_agent_has(autojump_clock: MockClock) -> None:
    async with shelves() as bench:
        one = bench.servers["one"]
        agent = await bench.connect("/mcp/one")
        await agent.request("prompts/list")
        await agent.call("increment")
        await agent.request("prompts/list")
        sessions = [received.session for received in one.requests("prompts/list")]
        assert sessions[0] != one.requests("tools/call")[0].session
        assert sessions[-1] == one.requests("tools/call")[0].session


async def test_what_a_capability_holds_beside_is_kept(autojump_clock: MockClock) -> None:
    odd = {"a": [1, None, {"b": "c"}]}
    offered = {"tools": {"x-new": odd}, "resources": {"x-new": odd}, "x-new": odd, "tasks": {}}
    async with (
        HeartbeatServer.open(capabilities=offered) as server,
        open_bench(servers={"box": server}) as bench,
    ):
        agent = bench.agent("/mcp/box")
        assert (await agent.initialize())["capabilities"] == {
            "tools": {"x-new": odd, "listChanged": True},
            "resources": {"x-new": odd},
            "x-new": odd,
        }
