"""What stateless agents hear outside of their requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest
import trio
from agent_kit import BASE, Listening
from trio.testing import MockClock
from unit.front.stateless_kit import CAPABILITIES, PREFIX, Rig, ScriptedOperations, open_rig

from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

TOOLS = "notifications/tools/list_changed"
PROMPTS = "notifications/prompts/list_changed"
RESOURCES = "notifications/resources/list_changed"
UPDATED = "notifications/resources/updated"
ID = f"{PREFIX}subscriptionId"
EVERYTHING: Mapping[str, Any] = {
    "toolsListChanged": True,
    "promptsListChanged": True,
    "resourcesListChanged": True,
    "resourceSubscriptions": ["a://one", "a://two"],
}


@asynccontextmanager
async def listen(
    rig: Rig, wanted: Mapping[str, Any], path: str = "/mcp/box", **more: Any
) -> AsyncIterator[Listening]:
    """A stream that is acknowledged."""
    params = {"notifications": wanted}
    async with rig.stream("subscriptions/listen", params, path, **more) as listening:
        await listening.wait_for(lambda got: bool(got.messages))
        yield listening


def say(rig: Rig, method: str, params: Any = None, *, server: str = "box", to: str = "") -> None:
    written = b"" if params is None else jsonrpc.encode(params)
    rig.joined[to or "listener"].notify(server, method, written)


def heard(listening: Listening) -> list[str]:
    """The methods of what came after the acknowledgement."""
    return [m["method"] for m in listening.messages[1:]]


async def test_the_acknowledgement_comes_first_and_everything_is_marked(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig, listen(rig, EVERYTHING, ident="L 1") as listening:
        assert listening.response.headers["content-type"] == "text/event-stream"
        assert listening.response.headers["x-accel-buffering"] == "no"
        assert listening.messages == [
            {
                "jsonrpc": "2.0",
                "method": "notifications/subscriptions/acknowledged",
                "params": {"notifications": EVERYTHING, "_meta": {ID: "L 1"}},
            }
        ]
        say(rig, TOOLS)
        say(rig, UPDATED, {"uri": "a://one", "new": 1, "_meta": {"kept": 2}})
        await rig.settled()
        assert [m["params"] for m in listening.messages[1:]] == [
            {"_meta": {ID: "L 1"}},
            {"uri": "a://one", "new": 1, "_meta": {"kept": 2, ID: "L 1"}},
        ]


@pytest.mark.parametrize(
    ("offered", "honoured"),
    [
        ({}, {}),
        ({"tools": {}, "prompts": {"listChanged": False}, "resources": {"subscribe": False}}, {}),
        ({"tools": {"listChanged": True}}, {"toolsListChanged": True}),
        ({"prompts": {"listChanged": True}}, {"promptsListChanged": True}),
        ({"resources": {"listChanged": True}}, {"resourcesListChanged": True}),
        (
            {"resources": {"subscribe": True}},
            {"resourceSubscriptions": EVERYTHING["resourceSubscriptions"]},
        ),
    ],
)
async def test_only_what_can_be_delivered_is_acknowledged(
    autojump_clock: MockClock, offered: Mapping[str, Any], honoured: Mapping[str, Any]
) -> None:
    async with open_rig() as rig:
        rig.operations.offered = offered
        async with listen(rig, {**EVERYTHING, "taskIds": ["x"], "unknown": True}) as listening:
            assert listening.messages[0]["params"]["notifications"] == honoured
            if "resourceSubscriptions" not in honoured:
                assert not rig.operations.watched


async def test_nothing_comes_that_was_not_asked_for(autojump_clock: MockClock) -> None:
    wanted = {"promptsListChanged": True, "toolsListChanged": False, "resourcesListChanged": 1}
    async with open_rig() as rig, listen(rig, wanted) as listening:
        assert listening.messages[0]["params"]["notifications"] == {"promptsListChanged": True}
        for method in (TOOLS, RESOURCES, "notifications/message", "notifications/acme"):
            say(rig, method, {"level": "error"})
        say(rig, UPDATED, {"uri": "a://one"})
        say(rig, PROMPTS, server="other")
        await rig.settled()
        assert heard(listening) == []
        say(rig, PROMPTS)
        await rig.settled()
        assert heard(listening) == [PROMPTS]


async def test_the_same_news_is_told_once(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, listen(rig, EVERYTHING) as listening:
        for _ in range(5):
            say(rig, TOOLS)
            say(rig, UPDATED, {"uri": "a://one"})
            say(rig, UPDATED, {"uri": "a://two"})
        await rig.settled()
        assert heard(listening) == [TOOLS, UPDATED, UPDATED]
        say(rig, TOOLS, ["no params"])
        say(rig, TOOLS)
        await rig.settled()
        assert heard(listening)[3:] == [TOOLS]


async def test_the_endpoint_of_all_servers_hears_all_of_them(autojump_clock: MockClock) -> None:
    async with (
        open_rig() as rig,
        listen(rig, {"toolsListChanged": True}, path="/mcp") as listening,
    ):
        for server in ("box", "other"):
            say(rig, TOOLS, server=server)
            await rig.settled()
        assert heard(listening) == [TOOLS, TOOLS]


async def test_resources_are_watched_and_left_again(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.refused["a://refused"] = "no"
        uris = ["a://one", "unknown://x", "a://refused", "a://one", "a://tree/"]
        async with listen(rig, {"resourceSubscriptions": uris}) as listening:
            acknowledged = listening.messages[0]["params"]["notifications"]
            assert acknowledged == {"resourceSubscriptions": ["a://one", "a://tree/"]}
            for uri in ("a://one", "a://one/part", "a://tree/leaf", "a://tree/", "a://oneself"):
                say(rig, UPDATED, {"uri": uri})
            odd: list[Any] = [{"uri": 1}, {}, [], None, {"uri": "a://refused"}]
            for params in odd:
                say(rig, UPDATED, params)
            await rig.settled()
            assert [m["params"]["uri"] for m in listening.messages[1:]] == [
                "a://one",
                "a://one/part",
                "a://tree/leaf",
                "a://tree/",
            ]
            left = {uri for what, _, uri in rig.operations.watched if what == "unsubscribe"}
            assert left == {"unknown://x", "a://refused"}
            rig.operations.watched.clear()
        await rig.settled()
        assert sorted(rig.operations.watched) == [
            ("unsubscribe", "listener", "a://one"),
            ("unsubscribe", "listener", "a://tree/"),
        ]


async def test_a_resource_is_left_when_its_last_stream_ends(autojump_clock: MockClock) -> None:
    wanted = {"resourceSubscriptions": ["a://one"]}
    async with open_rig() as rig:
        async with listen(rig, wanted):
            async with listen(rig, wanted):
                pass
            await rig.settled()
            assert [what for what, *_ in rig.operations.watched] == ["subscribe", "subscribe"]
        await rig.settled()
        assert [what for what, *_ in rig.operations.watched][2:] == ["unsubscribe"]


async def test_a_server_that_does_not_answer_delays_the_others_for_seconds_only(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.hanging.add("a://one")
        began = trio.current_time()
        async with listen(rig, EVERYTHING) as listening:
            assert trio.current_time() - began <= 10
            honoured = {**EVERYTHING, "resourceSubscriptions": ["a://two"]}
            assert listening.messages[0]["params"]["notifications"] == honoured
            assert ("unsubscribe", "listener", "a://one") in rig.operations.watched


async def test_what_happens_before_the_acknowledgement_comes_after_it(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.hanging.add("a://one")
        params = {"notifications": EVERYTHING}
        async with rig.stream("subscriptions/listen", params, "/mcp/box") as listening:
            await listening.wait_for(lambda got: bool(got.chunks))
            say(rig, TOOLS)
            await listening.wait_for(lambda got: len(got.messages) == 2)
            assert heard(listening) == [TOOLS]


async def test_leaving_before_the_acknowledgement_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.hanging.add("a://one")
        params = {"notifications": EVERYTHING}
        async with rig.stream("subscriptions/listen", params, "/mcp/box") as listening:
            await listening.wait_for(lambda got: bool(got.chunks))
            await rig.settled()
        await rig.settled()
        left = {uri for what, _, uri in rig.operations.watched if what == "unsubscribe"}
        assert left == {"a://one", "a://two"}
        assert not rig.identities.all()[0].ears


async def test_silence_is_filled_with_comments(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, listen(rig, {}) as listening:
        began = trio.current_time()
        await trio.sleep(46)
        waited = [round(when - began) for when in listening.comments]
        assert waited == [0, 15, 30, 45]


@pytest.mark.parametrize("way", ["drain", "forgotten"])
async def test_a_stream_ends_in_order(autojump_clock: MockClock, way: str) -> None:
    async with open_rig() as rig, listen(rig, {"toolsListChanged": True}, ident=8) as listening:
        say(rig, TOOLS)
        if way == "drain":
            rig.server.close()
        else:
            rig.identities.end(rig.identities.all()[0], "a test says so")
        with trio.fail_after(1):
            await listening.ended.wait()
        assert listening.messages[1]["method"] == TOOLS
        assert listening.messages[2:] == [
            {
                "jsonrpc": "2.0",
                "id": 8,
                "result": {
                    "resultType": "complete",
                    "_meta": {
                        ID: 8,
                        f"{PREFIX}serverInfo": {"name": "kars-router", "version": "1.2.3"},
                    },
                },
            }
        ]


@pytest.mark.parametrize("way", ["drain", "forgotten"])
async def test_a_stream_that_opens_as_the_others_end_ends_too(
    autojump_clock: MockClock, way: str
) -> None:
    go = trio.Event()
    written = jsonrpc.encode(CAPABILITIES)

    class Slow(ScriptedOperations):
        async def capabilities(self, endpoint: str) -> bytes:
            await go.wait()
            return written

    async with open_rig() as rig:
        slow = Slow()
        rig.server._subscriptions._operations = slow
        messages: list[Any] = []

        async def opens() -> None:
            params = {"notifications": EVERYTHING}
            messages.extend(await rig.stream_to_end("subscriptions/listen", params, ident=8))

        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(opens)
                await rig.settled()
                if way == "drain":
                    rig.server.close()
                else:
                    rig.identities.end(rig.identities.all()[0], "a test says so")
                go.set()
        assert [m.get("id") for m in messages] == [None, 8]
        assert not slow.watched


async def test_agents_do_not_hear_each_other(autojump_clock: MockClock) -> None:
    def key(name: str) -> dict[str, str]:
        return {"kars.azure.com/agent": name}

    async with (
        open_rig() as rig,
        listen(rig, EVERYTHING, extra=key("one")) as one,
        listen(rig, EVERYTHING, extra=key("two")) as two,
    ):
        say(rig, UPDATED, {"uri": "a://one"}, to="agent:one")
        await rig.settled()
        assert (heard(one), heard(two)) == ([UPDATED], [])


async def test_each_stream_of_an_agent_has_its_own_filter(autojump_clock: MockClock) -> None:
    async with (
        open_rig() as rig,
        listen(rig, {"toolsListChanged": True}, ident=1) as one,
        listen(rig, {"toolsListChanged": True, "promptsListChanged": True}, ident="1") as two,
    ):
        say(rig, TOOLS)
        say(rig, PROMPTS)
        await rig.settled()
        assert (heard(one), heard(two)) == ([TOOLS], [TOOLS, PROMPTS])
        assert [m["params"]["_meta"][ID] for m in (*one.messages, *two.messages)] == [
            1,
            1,
            "1",
            "1",
            "1",
        ]


async def test_an_agent_has_a_bounded_number_of_streams(autojump_clock: MockClock) -> None:
    async with open_rig() as rig, AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(listen(rig, {}, ident=n)) for n in range(17)]
        with trio.fail_after(1):
            await streams[0].ended.wait()
        assert streams[0].messages[-1]["id"] == 0
        await rig.settled()
        assert not any(stream.ended.is_set() for stream in streams[1:])


async def test_a_reader_that_is_stuck_holds_nothing_up(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        request = rig.build("subscriptions/listen", {"notifications": EVERYTHING})
        sent = rig.client.build_request("POST", f"{BASE}/mcp/box", **request)
        response: httpx.Response = await rig.client.send(sent, stream=True)
        await rig.settled()
        for number in range(1000):
            say(rig, TOOLS)
            # Large enough that a socket does not hold many.
            say(rig, UPDATED, {"uri": f"a://one/{number}", "x": "x" * 3000})
            if number % 10 == 0:
                await rig.settled()
        rig.server.close()
        listening = Listening(response)
        with trio.fail_after(60):
            await listening.read()
        # The same news is queued once, and what there is too much of is dropped, oldest first.
        assert len(listening.messages) < 450
        assert "result" in listening.messages[-1]
        assert listening.messages[-2]["params"]["uri"] == "a://one/999"
        assert rig.metrics.notifications_dropped._value.get() > 500


async def test_what_waits_for_a_slow_reader_is_bounded_in_bytes(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        request = rig.build("subscriptions/listen", {"notifications": EVERYTHING})
        sent = rig.client.build_request("POST", f"{BASE}/mcp/box", **request)
        response: httpx.Response = await rig.client.send(sent, stream=True)
        await rig.settled()
        for number in range(200):
            say(rig, UPDATED, {"uri": f"a://one/{number}", "x": "x" * 100_000})
        rig.server.close()
        listening = Listening(response)
        with trio.fail_after(60):
            await listening.read()
        uris = [m["params"].get("uri") for m in listening.messages if "params" in m]
        assert uris[-1] == "a://one/199"
        assert sum(uri is not None for uri in uris) < 45
        assert rig.metrics.notifications_dropped._value.get() > 150


async def test_what_is_no_filter_is_refused(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        many: list[Any] = [
            None,
            [],
            "all",
            {"resourceSubscriptions": "a://one"},
            {"resourceSubscriptions": [1]},
            {"resourceSubscriptions": [f"a://{n}" for n in range(257)]},
        ]
        for wrong in many:
            params = {} if wrong is None else {"notifications": wrong}
            response = await rig.post("subscriptions/listen", params)
            assert response.status_code == 400
            assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
        assert not rig.joined
