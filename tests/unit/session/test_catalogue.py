from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock
from unit.session.upstream_kit import open_rig, with_settings

from kars_router.errors import CallFailed
from kars_router.model import ServerInfo
from kars_router.session.catalogue import Definition, build, read_definitions
from kars_router.testing import Call, HeartbeatServer, Received, Reply

INFO = ServerInfo(name="s", allowed_tools=("*",))


def pages(*contents: Any) -> Any:
    """A `fetch` that serves these pages by cursors `1`, `2`, ..., and the last one for ever."""

    async def fetch(params: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        cursor = msgspec.json.decode(params)["cursor"] if params else "0"
        fetch.asked.append(cursor)  # type: ignore[attr-defined]
        n = min(int(cursor or 0), len(contents) - 1)
        return contents[n] if isinstance(contents[n], bytes) else msgspec.json.encode(contents[n])

    fetch.asked = []  # type: ignore[attr-defined]
    return fetch


def tool(name: Any, **more: Any) -> dict[str, Any]:
    return {"name": name, **more}


def names_of(definitions: list[Definition]) -> list[str]:
    return [definition.name for definition in definitions]


def defined(definition: dict[str, Any]) -> Definition:
    return Definition(definition["name"], definition, msgspec.json.encode(definition))


async def test_all_pages_are_read_in_order() -> None:
    fetch = pages(
        {"tools": [tool("a")], "nextCursor": "1"},
        {"tools": [tool("b")], "nextCursor": "2"},
        {"tools": [tool("c")]},
    )
    assert names_of(await read_definitions("s", fetch, limit=10)) == ["a", "b", "c"]


async def test_an_empty_cursor_is_a_cursor() -> None:
    fetch = pages({"tools": [tool("a")], "nextCursor": ""})
    await read_definitions("s", fetch, limit=10)
    assert fetch.asked == ["0", ""]


async def test_a_cycle_of_cursors_ends() -> None:
    fetch = pages(
        {"tools": [tool("a")], "nextCursor": "1"}, {"tools": [tool("b")], "nextCursor": "1"}
    )
    with capture_logs() as logs:
        assert set(names_of(await read_definitions("s", fetch, limit=10))) == {"a", "b"}
    assert fetch.asked == ["0", "1"]
    assert [entry["event"] for entry in logs] == ["tools_cursor_cycle"]


async def test_there_is_a_bound_on_pages_and_on_tools() -> None:
    count = 0

    async def fetch(_: bytes) -> bytes:
        nonlocal count
        count += 1
        await trio.lowlevel.checkpoint()
        return msgspec.json.encode({"tools": [tool(f"t{count}")], "nextCursor": str(count)})

    assert len(await read_definitions("s", fetch, limit=1000)) == 100
    count = 0
    assert len(await read_definitions("s", fetch, limit=7)) == 7


async def test_definitions_without_a_usable_name_are_left_out() -> None:
    odd = [5, None, {}, tool(""), tool(5), tool("x" * 257), tool("a\nb"), tool("a\x1b[0m")]
    fetch = pages({"tools": [*odd, tool("good")]})
    assert names_of(await read_definitions("s", fetch, limit=10)) == ["good"]


@pytest.mark.parametrize("page", [b"{", b"5", b"{}", b'{"tools":{}}', b'{"tools":null}'])
async def test_an_unusable_page_is_a_failure(page: bytes) -> None:
    with pytest.raises(CallFailed) as caught:
        await read_definitions("s", pages(page), limit=10)
    assert caught.value.failure.code == "protocol"


def test_a_name_that_occurs_twice_is_taken_the_first_time() -> None:
    with capture_logs() as logs:
        definitions = [defined(t) for t in (tool("a", n=1), tool("a", n=2), tool("b"))]
        found = build(INFO, definitions, lambda *_: True)
    assert list(found.tools) == ["a", "b"]
    assert found.tools["a"].definition["n"] == 1
    assert [entry["event"] for entry in logs] == ["tool_twice"]


def test_what_nobody_admits_is_hidden_and_unknown_fields_are_kept() -> None:
    definition = tool("a", inputSchema={"$defs": {}}, **{"x-new": [1.5, None]})
    both = [defined(definition), defined(tool("b"))]
    found = build(INFO, both, lambda _, name, __: name == "a")
    assert (list(found.tools), found.hidden) == (["a"], 1)
    assert msgspec.json.decode(found.tools["a"].own) == definition
    assert msgspec.json.decode(found.tools["a"].public) == {**definition, "name": "s__a"}


async def test_a_server_that_is_down_at_the_start_appears_later(
    autojump_clock: MockClock,
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        server.script = lambda _: Reply.cut()

    async with open_rig(prepare=prepare) as rig:
        changed: list[str] = []
        rig.router.supervisor.subscribe(changed.append)
        assert (rig.runtime.state, len(rig.runtime.catalogue.tools)) == ("down", 0)
        await trio.sleep(120)
        tries = [r.time for r in rig.server.requests("initialize")]
        assert 10 < len(tries) < 40
        assert changed == []
        rig.server.script = None
        await trio.sleep(11)
        assert rig.runtime.state == "ready"
        assert changed == ["s"]
        assert "increment" in rig.runtime.catalogue.tools
        assert await rig.text("increment") == "counter: 1"


async def test_the_catalogue_stays_while_the_server_is_down(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.script = lambda r: Reply.cut() if r.method == "initialize" else None
        rig.server.restart()
        await trio.sleep(60)
        assert rig.runtime.state == "down"
        assert "increment" in rig.runtime.catalogue.tools
        rig.server.script = None
        await trio.sleep(15)
        assert rig.runtime.state == "ready"


async def test_a_burst_of_changes_is_one_new_list(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await trio.sleep(1)
        changed: list[str] = []
        rig.router.supervisor.subscribe(changed.append)

        async def answer(_: Call) -> dict[str, object]:
            await trio.lowlevel.checkpoint()
            return {"content": []}

        before = len(rig.server.requests("tools/list"))
        for n in range(4):
            rig.server.add_tool(f"new{n}", answer)
            rig.server.notify_tools_changed()
            await trio.sleep(0.002)
        await trio.sleep(5)
        assert len(rig.server.requests("tools/list")) == before + 1
        assert changed == ["s"]
        assert "new3" in rig.runtime.catalogue.tools
        await rig.text("new3")


async def test_a_change_during_the_reading_is_read_too(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await trio.sleep(1)

        def script(received: Received) -> Reply | None:
            if received.method == "tools/list":
                rig.server.script = None
                rig.server.remove_tool("echo")
                rig.server.notify_tools_changed()
                result: dict[str, Any] = {"tools": [tool("old")]}
                answer = {"jsonrpc": "2.0", "id": received.id, "result": result}
                return Reply.json(answer, seconds=2.0)
            return None

        rig.server.script = script
        rig.server.notify_tools_changed()
        await trio.sleep(10)
        assert "old" not in rig.runtime.catalogue.tools
        assert "echo" not in rig.runtime.catalogue.tools
        assert "read" in rig.runtime.catalogue.tools


async def test_a_change_that_changes_nothing_is_not_passed_on(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await trio.sleep(1)
        changed: list[str] = []
        rig.router.supervisor.subscribe(changed.append)
        rig.server.notify_tools_changed()
        await trio.sleep(5)
        assert changed == []


async def test_pages_of_a_real_list(autojump_clock: MockClock) -> None:
    async with open_rig(page_size=2, cursor_cycle=True) as rig:
        assert list(rig.runtime.catalogue.tools) == list(rig.server.tools)
        # Seven tools are four pages; the fifth request finds out that the pages go round.
        assert len(rig.server.requests("tools/list")) == 5


async def test_no_tool_without_a_pattern(autojump_clock: MockClock) -> None:
    async with open_rig(settings=with_settings(allowed_tools=())) as rig:
        assert rig.runtime.state == "ready"
        assert not rig.runtime.catalogue.tools
        assert rig.runtime.catalogue.hidden == len(rig.server.tools)


@pytest.mark.parametrize(
    "answer",
    [
        {"result": {}},
        {"result": {"tools": 5}},
        {"error": {"code": -32603, "message": "no"}},
    ],
)
async def test_a_list_that_cannot_be_had_is_tried_again_in_the_same_session(
    autojump_clock: MockClock, answer: dict[str, Any]
) -> None:
    def prepare(server: HeartbeatServer) -> None:
        left = 3

        def script(received: Received) -> Reply | None:
            nonlocal left
            if received.method != "tools/list" or not left:
                return None
            left -= 1
            return Reply.json({"jsonrpc": "2.0", "id": received.id, **answer})

        server.script = script

    async with open_rig(prepare=prepare) as rig:
        assert rig.runtime.state == "down"
        await trio.sleep(30)
        assert rig.runtime.state == "ready"
        assert len(rig.server.requests("initialize")) == 1
        assert "increment" in rig.runtime.catalogue.tools
