from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import trio
from attrs import define
from trio.testing import MockClock

from kars_router.testing import AsgiBridge, Received, Reply, RpcError
from kars_router.testing.stateless_server import (
    PROTOCOL,
    REVISION,
    StatelessCall,
    StatelessServer,
)

URL = "http://upstream.test/mcp"
NAMED = {"tools/call": "name", "prompts/get": "name", "resources/read": "uri"}
ELICITATION: Any = {"elicitation": {}}


@define
class Peer:
    server: StatelessServer
    client: httpx.AsyncClient

    def message(self, method: str, params: Mapping[str, Any], **meta: Any) -> Any:
        own = {"protocolVersion": REVISION, "clientCapabilities": ELICITATION, **meta}
        named = {PROTOCOL + name: value for name, value in own.items() if value is not None}
        return {
            "jsonrpc": "2.0",
            "id": "x",
            "method": method,
            "params": {**params, "_meta": {"progressToken": 7, **named}},
        }

    async def post(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        headers: Mapping[str, str | None] | None = None,
        body: bytes | None = None,
        **meta: Any,
    ) -> httpx.Response:
        content = msgspec.json.encode(self.message(method, params or {}, **meta))
        sent = headers_for(method, params or {}, headers)
        return await self.client.post(URL, content=content if body is None else body, headers=sent)

    async def call(self, tool: str, **arguments: Any) -> Any:
        """The result of a tool call."""
        response = await self.post("tools/call", {"name": tool, "arguments": arguments})
        assert response.status_code == 200, response.text
        return messages_in(response)[-1]["result"]

    @asynccontextmanager
    async def listen(self, **wanted: Any) -> AsyncIterator[list[Any]]:
        """What a stream of `subscriptions/listen` brings."""
        message = self.message("subscriptions/listen", {"notifications": wanted})
        headers = headers_for("subscriptions/listen", {}, None)
        found: list[Any] = []
        async with (
            trio.open_nursery() as nursery,
            self.client.stream(
                "POST", URL, content=msgspec.json.encode(message), headers=headers
            ) as response,
        ):
            assert response.status_code == 200

            async def read() -> None:
                try:
                    async for chunk in response.aiter_raw():
                        found.extend(chunk.decode().splitlines())
                except httpx.RemoteProtocolError:
                    found.append("cut")
                found.append("end")

            nursery.start_soon(read)
            await trio.sleep(0.1)
            yield found
            nursery.cancel_scope.cancel()


def headers_for(
    method: str, params: Mapping[str, Any], changed: Mapping[str, str | None] | None
) -> dict[str, str]:
    headers: dict[str, str | None] = {
        "accept": "application/json, text/event-stream",
        "content-type": "application/json",
        "mcp-protocol-version": REVISION,
        "mcp-method": method,
        "mcp-name": params.get(NAMED.get(method, "")),
        **(changed or {}),
    }
    return {name: value for name, value in headers.items() if value is not None}


def messages_in(response: httpx.Response) -> list[Any]:
    if response.headers["content-type"] == "application/json":
        return [response.json()]
    return data_of(response.text.splitlines())


def data_of(lines: list[str]) -> list[Any]:
    return [msgspec.json.decode(line[6:]) for line in lines if line.startswith("data: ")]


@asynccontextmanager
async def open_peer(**options: Any) -> AsyncIterator[Peer]:
    async with trio.open_nursery() as nursery, StatelessServer.open(**options) as server:
        transport = AsgiBridge(server.app, nursery)
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            yield Peer(server, client)
            nursery.cancel_scope.cancel()


async def test_discovery(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        result = (await peer.post("server/discover")).json()["result"]
        assert result["supportedVersions"] == [REVISION]
        assert result["resultType"] == "complete"
        assert result["cacheScope"] == "public"
        assert result["_meta"][f"{PROTOCOL}serverInfo"]["name"] == "stateless"


@pytest.mark.parametrize(
    ("status", "code", "change"),
    [
        (406, -32000, {"headers": {"accept": "application/json"}}),
        (400, -32700, {"body": b"{"}),
        (400, -32600, {"body": b'{"jsonrpc":"2.0","id":1,"result":{}}'}),
        (400, -32602, {"protocolVersion": None}),
        (400, -32602, {"clientCapabilities": None}),
        (400, -32020, {"headers": {"mcp-protocol-version": "2025-11-25"}}),
        (400, -32020, {"headers": {"mcp-protocol-version": None}}),
        (400, -32020, {"headers": {"mcp-method": "tools/list"}}),
        (400, -32020, {"headers": {"mcp-name": "other"}}),
        (400, -32020, {"headers": {"mcp-name": None}}),
        (400, -32022, {"protocolVersion": "1", "headers": {"mcp-protocol-version": "1"}}),
        (400, -32602, {"params": {"name": "none"}}),
    ],
)
async def test_what_is_refused_and_how(
    autojump_clock: MockClock, status: int, code: int, change: Any
) -> None:
    async with open_peer() as peer:
        options = {"params": {"name": "echo"}, **change}
        response = await peer.post("tools/call", **options)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)


async def test_other_refusals(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        assert (await peer.client.get(URL)).status_code == 405
        assert (await peer.client.delete(URL)).status_code == 405
        unknown = await peer.post("ping")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, -32601)
        assert unknown.json()["id"] == "x"
        old = await peer.post("initialize", {"protocolVersion": "2025-11-25"})
        assert old.json()["error"]["data"] == {
            "supported": [REVISION],
            "requested": "2025-11-25",
        }
        dropped = await peer.post("", body=b'{"jsonrpc":"2.0","method":"notifications/x"}')
        assert dropped.status_code == 202
        peer.server.listen = False
        refused = await peer.post("subscriptions/listen")
        assert refused.status_code == 404


async def test_arguments_are_held_against_their_headers(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        params: Any = {"name": "region", "arguments": {"region": "\u00fc"}}
        encoded = f"=?base64?{base64.b64encode(params['arguments']['region'].encode()).decode()}?="
        for header, status in ((encoded, 200), ("u", 400), (None, 400)):
            response = await peer.post("tools/call", params, headers={"mcp-param-region": header})
            assert response.status_code == status
        peer.server.check_headers = False
        assert (await peer.post("tools/call", params)).status_code == 200


async def test_lists_have_pages(autojump_clock: MockClock) -> None:
    async with open_peer(page_size=4) as peer:
        names: list[str] = []
        params: dict[str, str] = {}
        while True:
            result = (await peer.post("tools/list", params)).json()["result"]
            names += [tool["name"] for tool in result["tools"]]
            assert result["ttlMs"] == 60_000
            if "nextCursor" not in result:
                break
            params = {"cursor": result["nextCursor"]}
        assert names == list(peer.server.tools)
        assert (await peer.post("tools/list", {"cursor": "x"})).status_code == 400
        for method, name in (
            ("prompts/list", "prompts"),
            ("resources/list", "resources"),
            ("resources/templates/list", "resourceTemplates"),
        ):
            assert (await peer.post(method)).json()["result"][name]


async def test_resources_prompts_and_completion(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        for uri, text in (("test://static", "static"), ("test://item/5", "5")):
            read = await peer.post("resources/read", {"uri": uri})
            assert read.json()["result"]["contents"][0]["text"] == text
        assert (await peer.post("resources/read", {"uri": "test://no"})).status_code == 400
        greet = await peer.post("prompts/get", {"name": "greet", "arguments": {"name": "Ada"}})
        assert "Ada" in greet.text
        assert (await peer.post("prompts/get", {"name": "no"})).status_code == 400
        argument = {"argument": {"name": "city", "value": "par"}}
        complete = await peer.post("completion/complete", argument)
        assert complete.json()["result"]["completion"]["values"] == ["paris", "park", "party"]


async def test_tools(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        assert (await peer.call("echo", a=1))["structuredContent"] == {"a": 1}
        assert (await peer.call("counter"))["content"][0]["text"] == "counter: 1"
        assert (await peer.call("fail"))["isError"]
        error = await peer.post("tools/call", {"name": "error", "arguments": {"data": [1]}})
        assert error.json()["error"] == {"code": -31000, "message": "the tool raised", "data": [1]}
        start = trio.current_time()
        await peer.call("slow", seconds=3)
        assert trio.current_time() - start == pytest.approx(3.0)


async def test_progress_and_log_come_on_the_calls_stream(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        response = await peer.post("tools/call", {"name": "progress"})
        *steps, answer = messages_in(response)
        assert [step["params"]["progress"] for step in steps] == [1, 2, 3]
        assert all(step["params"]["progressToken"] == 7 for step in steps)
        assert answer["id"] == "x"
        said = messages_in(await peer.post("tools/call", {"name": "log"}, logLevel="alert"))
        assert [one["params"]["level"] for one in said[:-1]] == ["alert", "emergency"]
        silent = await peer.post("tools/call", {"name": "log"})
        assert silent.headers["content-type"] == "application/json"
        peer.server.responses = "sse"
        stream = await peer.post("tools/call", {"name": "log"})
        assert stream.headers["content-type"] == "text/event-stream"


async def test_a_slow_answer_has_comments_before_it(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        params = {"name": "slow", "arguments": {"seconds": 40}}
        response = await peer.post("tools/call", params, headers={})
        assert response.text.count(": keepalive") == 2
        assert trio.current_time() == pytest.approx(40.0)


async def test_asking_in_rounds(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        first = await peer.call("ask_twice")
        assert first["resultType"] == "input_required"
        assert first["inputRequests"]["name"]["method"] == "elicitation/create"
        state = first["requestState"]
        answers = {"name": {"action": "accept"}}
        again = {"name": "ask_twice", "inputResponses": answers}
        wrong = await peer.post("tools/call", {**again, "requestState": state + " "})
        assert wrong.json()["error"]["code"] == -32602
        second = (await peer.post("tools/call", {**again, "requestState": state})).json()["result"]
        assert second["requestState"] != state
        last = await peer.post("tools/call", {**again, "requestState": second["requestState"]})
        text = last.json()["result"]["content"][0]["text"]
        assert msgspec.json.decode(text) == [answers, answers]
        lacking = await peer.post("tools/call", {"name": "ask"}, clientCapabilities={})
        assert lacking.status_code == 400
        assert lacking.json()["error"]["data"] == {"requiredCapabilities": {"elicitation": {}}}
        peer.server.check_capabilities = False
        assert (
            await peer.post("tools/call", {"name": "ask"}, clientCapabilities={})
        ).status_code == 200


async def test_a_client_that_leaves_cancels(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        with trio.move_on_after(2):
            await peer.call("slow", seconds=100)
        await peer.server.wait_until(lambda: bool(peer.server.happenings("left")))
        (left,) = peer.server.happenings("left")
        assert (left.session, left.time) == ("tools/call", 2.0)
        assert peer.server.happenings("answered") == []


async def test_listening(autojump_clock: MockClock) -> None:
    async with open_peer(honours=frozenset({"toolsListChanged", "resourceSubscriptions"})) as peer:
        wanted: dict[str, Any] = {
            "toolsListChanged": True,
            "promptsListChanged": True,
            "resourceSubscriptions": ["test://changing"],
        }
        async with peer.listen(**wanted) as lines:
            peer.server.notify_changed("tools")
            peer.server.notify_changed("prompts")
            peer.server.change_resource("test://changing", "5")
            peer.server.change_resource("test://static", "5")
            await peer.call("trigger", list="tools")
            await trio.sleep(20)
            peer.server.end_listens()
            await trio.sleep(1)
            found = data_of(lines)
            assert all(
                (one.get("params") or one["result"])["_meta"] == {f"{PROTOCOL}subscriptionId": "x"}
                for one in found
            )
            assert [one.get("method") for one in found] == [
                "notifications/subscriptions/acknowledged",
                "notifications/tools/list_changed",
                "notifications/resources/updated",
                "notifications/tools/list_changed",
                None,
            ]
            wanted.pop("promptsListChanged")
            assert found[0]["params"]["notifications"] == wanted
            assert lines.count(": keepalive") == 1
            assert lines[-1] == "end"
            assert "cut" not in lines
        assert peer.server.listens == []


@pytest.mark.parametrize("cut", [True, False])
async def test_a_stream_that_is_dropped(autojump_clock: MockClock, cut: bool) -> None:
    async with open_peer() as peer, peer.listen(toolsListChanged=True) as lines:
        peer.server.drop_listens(cut=cut)
        peer.server.notify_changed("tools")  # nobody hears it
        await trio.sleep(1)
        assert lines[-1] == "end"
        assert ("cut" in lines) is cut
        assert len(data_of(lines)) == 1


async def test_what_a_test_may_do_to_it(autojump_clock: MockClock) -> None:
    async def own(call: StatelessCall) -> Any:
        await trio.lowlevel.checkpoint()
        raise RpcError(-32021, "?")

    def script(received: Received) -> Reply | None:
        return Reply.text(418) if received.method == "tools/list" else None

    async with open_peer(script=script) as peer:
        assert (await peer.post("tools/list")).status_code == 418
        peer.server.reply_next(Reply.text(503), method="tools/call", times=2)
        peer.server.reply_next(Reply.text(200, execute=True), method="tools/call")
        statuses = [(await peer.post("tools/call", {"name": "counter"})).status_code for _ in "123"]
        assert statuses == [503, 503, 200]
        assert peer.server.counter == 1
        peer.server.add_tool("own", own)
        assert (await peer.post("tools/call", {"name": "own"})).status_code == 400
        peer.server.remove_tool("own")
        assert len(peer.server.requests("tools/call")) == 4
    with pytest.raises(TypeError):
        async with StatelessServer.open(colour="red"):
            pass


async def test_replies_that_do_not_end(autojump_clock: MockClock) -> None:
    async with open_peer() as peer:
        peer.server.reply_next(Reply.hang())
        with trio.move_on_after(1):
            await peer.post("tools/list")
        await peer.server.wait_until(lambda: bool(peer.server.happenings("left")))
        peer.server.reply_next(Reply.cut())
        with pytest.raises(httpx.RemoteProtocolError):
            await peer.post("tools/list")
        peer.server.reply_next(Reply(body=b"half", ending="cut"))
        with pytest.raises(httpx.RemoteProtocolError):
            await peer.post("tools/list")


async def test_the_lifespan_is_answered(autojump_clock: MockClock) -> None:
    sent: list[Any] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> Any:
        await trio.lowlevel.checkpoint()
        return next(events)

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message["type"])

    async with StatelessServer.open() as server:
        await server.app({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
