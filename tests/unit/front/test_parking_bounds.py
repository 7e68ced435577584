"""How long calls of stateless agents may be parked, how many, and what ends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from agent_kit import BASE
from trio.testing import MockClock
from unit.front.stateless_kit import KEY, PREFIX, Rig, ScriptedOperations, open_rig

from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.operations import Answer
from kars_router.front.parking import ParkingLot
from kars_router.session.caller import Reply
from kars_router.session.pending import Pending
from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

ASK = "elicitation/create"
ALL: dict[str, Any] = {"elicitation": {}, "sampling": {}, "roots": {}}
FORM = {"message": "which one?", "requestedSchema": {"type": "object", "future": 1}}


def answer(*replies: Reply) -> Answer:
    """Tells what the server was answered."""
    told = [jsonrpc.decode(reply.result or reply.error or b"null") for reply in replies]
    return Answer(result=jsonrpc.encode({"content": [], "replies": told}))


async def asks_once(_: Requester, params: Any, caller: AgentCaller) -> Answer:
    return answer(await caller.ask(ASK, jsonrpc.encode(FORM)))


async def ask_once(rig: Rig, name: str = "n", **more: Any) -> dict[str, Any]:
    """The `input_required` result of a call that asks."""
    rig.operations.handlers.setdefault("tools/call", asks_once)
    result = await rig.call(name, **{"capabilities": ALL, **more})
    assert result["resultType"] == "input_required"
    return result


def again(result: Mapping[str, Any], reply: Any = None, **more: Any) -> dict[str, Any]:
    """The params to add for the retry that answers every question alike."""
    value = {"action": "accept"} if reply is None else reply
    responses = dict.fromkeys(result.get("inputRequests", {}), value)
    return {"inputResponses": responses, "requestState": result["requestState"], **more}


async def refused(rig: Rig, params: Mapping[str, Any], **more: Any) -> None:
    """A retry that leads nowhere and makes nothing."""
    before = len(rig.operations.performed)
    whole = {"name": "n", **params}
    response = await rig.post("tools/call", whole, **{"capabilities": ALL, **more})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
    assert len(rig.operations.performed) == before


async def test_what_the_agent_does_not_come_back_for_is_given_up(
    autojump_clock: MockClock,
) -> None:
    reasons: list[bytes] = []

    async def asks(who: Requester, params: Any, caller: AgentCaller) -> Answer:
        caller.pending = Pending(b"1", "tools/call", b"{}")
        found = await asks_once(who, params, caller)
        reasons.append(caller.pending.reason)
        return found

    async with open_rig(seconds=600.0) as rig:
        rig.operations.handlers["tools/call"] = asks
        result = await ask_once(rig)
        await trio.sleep(599)
        assert len(rig.lot) == 1
        await trio.sleep(2)
        assert (len(rig.lot), rig.operations.in_flight) == (0, 0)
        assert b"did not come back" in reasons[0]
        await refused(rig, again(result))


async def test_a_state_expires_by_the_wall_clock_too(autojump_clock: MockClock) -> None:
    wall = [1000.0]
    async with open_rig(seconds=600.0, clock=lambda: wall[0]) as rig:
        result = await ask_once(rig)
        wall[0] += 601
        await refused(rig, again(result))


async def test_time_in_rounds_does_not_count_as_parked(autojump_clock: MockClock) -> None:
    async def slow_rounds(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        first = await caller.ask(ASK, b"{}")
        await trio.sleep(1000)
        return answer(first, await caller.ask(ASK, b"{}"))

    async with open_rig(seconds=600.0) as rig:
        rig.operations.handlers["tools/call"] = slow_rounds
        result = await rig.call("n", capabilities=ALL)
        retry = {"name": "n", **again(result)}
        async with rig.stream("tools/call", retry, capabilities=ALL) as listening:
            await listening.ended.wait()
        result = listening.messages[-1]["result"]
        assert result["resultType"] == "input_required"
        await trio.sleep(590)
        assert len((await rig.call("n", again(result), capabilities=ALL))["replies"]) == 2


async def test_a_call_that_ends_while_parked_keeps_its_end_for_the_retry(
    autojump_clock: MockClock,
) -> None:
    async def gives_up(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        with trio.move_on_after(60):
            await caller.ask(ASK, b"{}")
        return Answer(result=b'{"content":[],"given up":true}')

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = gives_up
        result = await rig.call("n", capabilities=ALL)
        await trio.sleep(100)
        assert rig.operations.in_flight == 0
        end = await rig.call("n", again(result), capabilities=ALL)
        assert end["given up"] is True


async def test_an_end_that_nobody_fetches_is_undone(autojump_clock: MockClock) -> None:
    undone: list[str] = []

    async def gives_up(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        with trio.move_on_after(60):
            await caller.ask(ASK, b"{}")
        return Answer(result=b"{}", undo=(lambda: undone.append("told"),))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = gives_up
        await rig.call("n", capabilities=ALL)
        await trio.sleep(500)
        assert not undone
        await trio.sleep(200)
        assert undone == ["told"]


async def test_leaving_while_parked_is_no_cancel_but_leaving_a_retry_is(
    autojump_clock: MockClock,
) -> None:
    callers: list[AgentCaller] = []

    async def works_on(who: Requester, params: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        found = await asks_once(who, params, caller)
        await trio.sleep(1000)
        return found

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = works_on
        result = await ask_once(rig)
        await rig.settled()
        assert [caller.withdrawn for caller in callers] == [False]
        with trio.move_on_after(10):
            await rig.post("tools/call", {"name": "n", **again(result)}, capabilities=ALL)
        await rig.settled()
        assert callers[0].withdrawn
        await refused(rig, again(result))


async def test_the_number_of_parked_calls_is_bounded(autojump_clock: MockClock) -> None:
    async with open_rig(parked=4) as rig:
        one, two, three = [{"kars.azure.com/agent": name} for name in ("one", "two", "three")]
        kept = [await ask_once(rig, extra=one) for _ in range(2)]
        # One agent may hold half of the places.
        beyond = await rig.call("n", capabilities=ALL, extra=one)
        assert "code" in beyond["replies"][0]
        for _ in range(2):
            await ask_once(rig, extra=two)
        beyond = await rig.call("n", capabilities=ALL, extra=three)
        assert "code" in beyond["replies"][0]
        assert len(rig.lot) == 4
        assert (await rig.call("n", again(kept[0]), capabilities=ALL, extra=one))["replies"]
        await ask_once(rig, extra=three)


async def test_draining_ends_what_is_parked_and_parks_nothing_more(
    autojump_clock: MockClock,
) -> None:
    callers: list[AgentCaller] = []
    go = trio.Event()

    async def asks_later(_: Requester, params: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        if params["name"] == "later":
            await go.wait()
        return answer(await caller.ask(ASK, b"{}"))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_later
        await rig.call("n", capabilities=ALL)
        async with rig.stream("tools/call", {"name": "later"}, capabilities=ALL) as listening:
            await trio.sleep(20)
            rig.operations.accepting = False
            rig.server.close()
            await rig.settled()
            assert callers[0].withdrawn
            assert b"shutting down" in callers[0].reason
            assert (len(rig.lot), rig.operations.in_flight) == (0, 1)
            go.set()
            await listening.ended.wait()
        assert "code" in listening.messages[-1]["result"]["replies"][0]


async def test_a_question_that_is_taken_back_is_not_asked_any_more(
    autojump_clock: MockClock,
) -> None:
    async def asks_again(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        with trio.move_on_after(30):
            await caller.ask(ASK, b'{"message":"old"}')
        return answer(await caller.ask(ASK, b'{"message":"new"}'))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_again
        old = await rig.call("n", capabilities=ALL)
        await trio.sleep(60)
        new = await rig.call("n", {"requestState": old["requestState"]}, capabilities=ALL)
        (question,) = new["inputRequests"].values()
        assert question["params"]["message"] == "new"
        assert not set(new["inputRequests"]) & set(old["inputRequests"])
        assert len((await rig.call("n", again(new), capabilities=ALL))["replies"]) == 1


async def test_a_first_request_may_carry_what_a_retry_carries(autojump_clock: MockClock) -> None:
    """Whatever a client sends along at first has no part in what the retry is held against."""
    async with open_rig() as rig:
        stray = {"inputResponses": {"a": {}}, "requestState": "somebody's"}
        result = await ask_once(rig, params=stray)
        assert (await rig.call("n", again(result), capabilities=ALL))["replies"]


@pytest.mark.parametrize("value", [b"1e400", b"9" * 5000, b"[" * 300 + b"]" * 300])
async def test_arguments_that_no_type_holds_park_and_come_back(
    autojump_clock: MockClock, value: bytes
) -> None:
    class Unread(ScriptedOperations):
        async def perform(
            self, who: Requester, method: str, params: bytes, caller: AgentCaller
        ) -> Answer:
            return await asks_once(who, None, caller)

    def with_value(request: dict[str, Any], written: bytes) -> dict[str, Any]:
        return {**request, "content": request["content"].replace(b'"mark"', written)}

    async with open_rig() as rig:
        rig.server._operations = Unread()
        params = {"name": "n", "arguments": {"n": "mark"}}
        request = rig.build("tools/call", params, capabilities=ALL)
        response = await rig.client.post(f"{BASE}/mcp", **with_value(request, value))
        result = response.json()["result"]
        assert result["resultType"] == "input_required"
        retry = rig.build("tools/call", {**params, **again(result)}, capabilities=ALL)
        response = await rig.client.post(f"{BASE}/mcp", **with_value(retry, b"0"))
        assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
        response = await rig.client.post(f"{BASE}/mcp", **with_value(retry, value))
        assert response.json()["result"]["replies"]
        assert (len(rig.lot), rig.operations.unsent) == (0, 0)


# How deep is too deep depends on what is on the stack already, so it may be either.
@pytest.mark.parametrize("depth", [*range(300, 940, 80), *range(940, 1000, 4)])
async def test_nesting_of_any_depth_parks_or_is_refused(
    autojump_clock: MockClock, depth: int
) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_once
        request = rig.build("tools/call", {"name": "n", "arguments": "mark"}, capabilities=ALL)
        deep = b'{"a":' + b"[" * depth + b"]" * depth + b"}"
        request["content"] = request["content"].replace(b'"mark"', deep)
        response = await rig.client.post(f"{BASE}/mcp", **request)
        assert response.json()["jsonrpc"] == "2.0"
        parked = response.status_code == 200 and "requestState" in response.json()["result"]
        assert len(rig.lot) == parked
        await rig.settled()
        assert rig.operations.unsent == 0


async def test_a_parked_call_holds_a_bounded_amount(autojump_clock: MockClock) -> None:
    callers: list[AgentCaller] = []

    async def chatters(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller.ask, "roots/list", b"")
            await trio.sleep(1)
            for number in range(200):
                written = b'{"level":"info","data":"%d %b"}' % (number, b"x" * 100_000)
                caller.notify("notifications/message", written)
                caller.notify("notifications/acme/x", written)
        return Answer(result=b"{}")

    async def told(**more: Any) -> list[Any]:
        result = await rig.call("n", capabilities=ALL, **more)
        await trio.sleep(5)
        retry = {"name": "n", **again(result, {"roots": []})}
        messages = await rig.stream_to_end("tools/call", retry, capabilities=ALL, **more)
        assert "result" in messages[-1]
        return [m for m in messages if "method" in m]

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = chatters
        silent = await told()
        # Log messages that nobody wants take no room from the others.
        assert {m["method"] for m in silent} == {"notifications/acme/x"}
        assert len(silent) == (4 << 20) // 100_030
        assert silent[-1]["params"]["data"].startswith("199 ")
        assert rig.metrics.notifications_dropped._value.get() == 200 - len(silent)
        both = await told(extra={f"{PREFIX}logLevel": "debug"})
        assert len(both) == len(silent)
        assert len({m["method"] for m in both}) == 2


async def test_one_notification_may_be_larger_than_all_that_wait(
    autojump_clock: MockClock,
) -> None:
    async def says(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        caller.notify("notifications/acme/x", b'{"n":1}')
        caller.notify("notifications/acme/x", b'{"n":2,"x":"%b"}' % (b"x" * (5 << 20)))
        return Answer(result=b"{}")

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = says
        messages = await rig.stream_to_end("tools/call", {"name": "n"})
        assert [m["params"]["n"] for m in messages[:-1]] == [2]


async def test_without_a_task_to_hold_calls_none_is_made(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        lot = ParkingLot(KEY, limit=1, seconds=1)
        rig.server._lot = lot
        response = await rig.post("tools/call", {"name": "n"})
        assert response.status_code == 503
