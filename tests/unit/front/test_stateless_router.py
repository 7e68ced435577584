"""Agents of the stateless era in front of servers of the handshake era, through a whole router."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from agent_kit import BASE, BOTH, Bench, Listening, open_bench
from trio.testing import MockClock
from unit.front.stateless_kit import PREFIX, headers, meta

from kars_router.testing import Call, RpcError
from kars_router.testing.replies import Json

FORM = {"message": "which?", "requestedSchema": {"type": "object", "properties": {}}}


def request(method: str, params: dict[str, Any], ident: Any = 1, **more: Any) -> dict[str, Any]:
    """A well-formed request, as arguments for the HTTP client."""
    whole = {**params, "_meta": meta(more.get("capabilities"), **more.get("extra", {}))}
    return {
        "json": {"jsonrpc": "2.0", "id": ident, "method": method, "params": whole},
        "headers": {"accept": BOTH, **headers(method, whole)},
    }


async def call(bench: Bench, name: str, params: Any = None, **more: Any) -> dict[str, Any]:
    whole = {"name": name, **(params or {})}
    response = await bench.client.post(f"{BASE}/mcp", **request("tools/call", whole, **more))
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


def again(result: dict[str, Any], reply: Any) -> dict[str, Any]:
    responses = dict.fromkeys(result["inputRequests"], reply)
    return {"inputResponses": responses, "requestState": result["requestState"]}


async def offer(bench: Bench, name: str, handler: Any) -> None:
    """Adds a tool to the server and waits until the router knows it."""
    bench.server.add_tool(name, handler)
    bench.server.notify_tools_changed()
    await trio.sleep(5)


def words(result: dict[str, Any]) -> str:
    return " ".join(part.get("text", "") for part in result["content"])


@pytest.fixture
def asking() -> dict[str, Any]:
    return {"arguments": {"method": "elicitation/create", "params": FORM}}


async def test_a_server_keeps_its_state_for_an_agent_without_a_session(bench: Bench) -> None:
    for count in (1, 2, 3):
        assert words(await call(bench, "box__increment")) == f"counter: {count}"
    other = {"kars.azure.com/agent": "other"}
    assert words(await call(bench, "box__increment", extra=other)) == "counter: 1"
    await trio.sleep(600)
    assert words(await call(bench, "box__read")) == "counter: 3"
    assert not bench.server.happenings("reaped")


async def test_lists_and_discovery(bench: Bench) -> None:
    response = await bench.client.post(f"{BASE}/mcp", **request("server/discover", {}))
    assert response.json()["result"]["capabilities"]["tools"] == {"listChanged": True}
    response = await bench.client.post(f"{BASE}/mcp/box", **request("tools/list", {}))
    result = response.json()["result"]
    assert {"increment", "ask"} <= {tool["name"] for tool in result["tools"]}
    assert (result["resultType"], result["cacheScope"]) == ("complete", "private")


async def test_a_servers_question_parks_the_call(bench: Bench, asking: Any) -> None:
    declared: dict[str, Any] = {"capabilities": {"elicitation": {}}}
    asked = await call(bench, "box__ask", asking, **declared)
    (question,) = asked["inputRequests"].values()
    assert question["method"] == "elicitation/create"
    assert question["params"]["message"] == FORM["message"]
    # The session is still held, and its pings answered, while the agent has no connection.
    await trio.sleep(2)
    reply = {"action": "accept", "content": {"n": 7}}
    end = await call(bench, "box__ask", {**asking, **again(asked, reply)}, ident=2, **declared)
    assert end["resultType"] == "complete"
    assert '"n":7' in words(end).replace(" ", "")
    assert len(bench.server.requests("tools/call")) == 1


async def test_what_the_agent_does_not_offer_is_refused_to_the_server(
    bench: Bench, asking: Any
) -> None:
    await call(bench, "box__read", capabilities={"elicitation": {}})
    end = await call(bench, "box__ask", asking)
    assert end["resultType"] == "complete"
    assert "does not offer elicitation" in words(end)


async def test_leaving_a_parked_call_behind_cancels_it_at_the_server(
    autojump_clock: MockClock, asking: Any
) -> None:
    async with open_bench(
        configured={"box": {"timeouts": {"input": "1h"}}},
        options={"box": {"ping_deadline": 10_000.0}},
        sessions={"parked": "60s"},
    ) as bench:
        declared: dict[str, Any] = {"capabilities": {"elicitation": {}}}
        asked = await call(bench, "box__ask", asking, **declared)
        await trio.sleep(50)
        assert not bench.server.requests("notifications/cancelled")
        await trio.sleep(20)
        assert len(bench.server.requests("notifications/cancelled")) == 1
        retry = {"name": "box__ask", **asking, **again(asked, {"action": "cancel"})}
        response = await bench.client.post(
            f"{BASE}/mcp", **request("tools/call", retry, **declared)
        )
        assert (response.status_code, response.json()["error"]["code"]) == (400, -32602)
        assert len(bench.server.requests("tools/call")) == 1


async def test_leaving_cancels_at_the_server(bench: Bench) -> None:
    with trio.move_on_after(5):
        await call(bench, "box__slow", {"arguments": {"seconds": 100}})
    with trio.fail_after(5):
        await bench.server.wait_until(
            lambda: bool(bench.server.requests("notifications/cancelled"))
        )


async def test_a_state_is_for_its_own_server_only(bench: Bench) -> None:
    """A server of the handshake era makes none, so what comes is not even looked at."""
    retry = {"name": "box__increment", "requestState": "somebody's"}
    response = await bench.client.post(f"{BASE}/mcp", **request("tools/call", retry))
    assert (response.status_code, response.json()["error"]["code"]) == (200, -32602)
    assert not bench.server.requests("tools/call")


@pytest.mark.parametrize("kind", ["input_required", "task", "complete", None])
async def test_a_server_of_the_handshake_era_has_no_kinds_of_results(
    bench: Bench, kind: str | None
) -> None:
    """Else it could have an agent asked what the agent did not offer to be asked."""

    async def forged(_: Any) -> Json:
        await trio.lowlevel.checkpoint()
        question = {"method": "elicitation/create", "params": {"mode": "url", "message": "m"}}
        asked = {"inputRequests": {"q": question}, "requestState": "x"}
        return {"content": [], "resultType": kind, "ttlMs": 5, "cacheScope": "public", **asked}

    await offer(bench, "forged", forged)
    result = await call(bench, "box__forged")
    assert result["resultType"] == "complete"
    assert "ttlMs" not in result
    assert "cacheScope" not in result


async def test_a_servers_own_32601_is_no_404(bench: Bench) -> None:
    async def lacks(_: Any) -> Json:
        await trio.lowlevel.checkpoint()
        raise RpcError(-32601, "the backend has no such method")

    await offer(bench, "lacks", lacks)
    response = await bench.client.post(
        f"{BASE}/mcp", **request("tools/call", {"name": "box__lacks"})
    )
    assert (response.status_code, response.json()["error"]["code"]) == (200, -32601)


async def test_a_server_that_was_never_offered_it_and_cannot_do_without(bench: Bench) -> None:
    async def needs(made: Call) -> Json:
        answer = await made.ask("elicitation/create", FORM)
        assert answer is not None
        raise RpcError(answer["error"]["code"], answer["error"]["message"])

    await offer(bench, "needs", needs)
    response = await bench.client.post(
        f"{BASE}/mcp", **request("tools/call", {"name": "box__needs"})
    )
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, -32021)
    assert error["data"] == {"requiredCapabilities": {"elicitation": {}}}


async def test_a_listener_hears_of_changed_tools(bench: Bench) -> None:
    params = {"notifications": {"toolsListChanged": True}}
    async with bench.stream("POST", **request("subscriptions/listen", params, 5)) as listening:
        await listening.wait_for(lambda got: len(got.messages) == 1)

        async def nothing(_: Any) -> Json:
            await trio.lowlevel.checkpoint()
            return {"content": []}

        bench.server.add_tool("fresh", nothing)
        bench.server.notify_tools_changed()
        await listening.wait_for(lambda got: len(got.messages) == 2)
        assert listening.messages[1] == {
            "jsonrpc": "2.0",
            "method": "notifications/tools/list_changed",
            "params": {"_meta": {f"{PREFIX}subscriptionId": 5}},
        }


async def test_draining_ends_streams_and_parked_calls_at_once(bench: Bench, asking: Any) -> None:
    declared: dict[str, Any] = {"capabilities": {"elicitation": {}}}
    await call(bench, "box__ask", asking, **declared)
    params: dict[str, Any] = {"notifications": {"toolsListChanged": True}}
    async with bench.stream("POST", **request("subscriptions/listen", params, 5)) as listening:
        await listening.wait_for(lambda got: len(got.messages) == 1)
        began = trio.current_time()
        await bench.router.drain()
        assert trio.current_time() - began < 5
        await _ended(listening)
    response = await bench.client.post(f"{BASE}/mcp", **request("tools/list", {}))
    assert response.status_code == 503
    assert len(bench.server.requests("notifications/cancelled")) == 1


async def _ended(listening: Listening) -> None:
    with trio.fail_after(5):
        await listening.ended.wait()
    assert listening.messages[-1]["id"] == 5


async def test_a_state_that_is_gone_is_told_once(bench: Bench) -> None:
    await call(bench, "box__increment")
    bench.server.restart()
    told = await call(bench, "box__increment")
    assert told["_meta"]["kars.azure.com/session"]["reset"] is True
    assert "kars.azure.com/session" not in (await call(bench, "box__increment"))["_meta"]


async def test_an_agent_that_was_forgotten_is_told_what_it_lost(
    autojump_clock: MockClock,
) -> None:
    async with open_bench(sessions={"idle": "60s"}) as bench:
        assert words(await call(bench, "box__increment")) == "counter: 1"
        await trio.sleep(200)
        assert len(bench.server.sessions) == 1  # the router's own
        told = await call(bench, "box__increment")
        assert "counter: 1" in words(told)
        assert told["_meta"]["kars.azure.com/session"]["reset"] is True
