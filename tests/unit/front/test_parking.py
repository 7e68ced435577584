"""Calls that wait for a stateless agent's input: parked, resumed, refused, given up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from unit.front.stateless_kit import KEY, PREFIX, Rig, fixed, open_rig

from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.operations import Answer
from kars_router.front.parking import ParkingLot
from kars_router.front.sealing import Sealer, Ticket
from kars_router.session.caller import Reply
from kars_router.wire import jsonrpc

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


async def test_a_question_parks_the_call_and_the_answer_resumes_it(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_once
        more: dict[str, Any] = {"capabilities": ALL, "path": "/mcp/box"}
        first = await rig.post("tools/call", {"name": "n", "arguments": {"a": 1}}, **more)
        assert first.headers["content-type"] == "application/json"
        result = first.json()["result"]
        (key,) = result["inputRequests"]
        assert result["inputRequests"] == {key: {"method": ASK, "params": FORM}}
        assert result["_meta"][f"{PREFIX}serverInfo"]["name"] == "kars-router"
        assert "ttlMs" not in result
        await trio.sleep(500)
        assert (len(rig.lot), rig.operations.in_flight, rig.operations.unsent) == (1, 1, 0)
        reply = {"action": "accept", "content": {"n": 1}}
        # The same request, however it is spelled.
        retry = again(result, reply, arguments={"a": 1})
        end = await rig.call("n", retry, **more, extra={"traceparent": "00"})
        assert (end["resultType"], end["replies"]) == ("complete", [reply])
        assert (len(rig.lot), rig.operations.in_flight) == (0, 0)
        assert len(rig.operations.performed) == 1


async def test_prompts_and_resources_may_ask_too(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        for method, params in (("prompts/get", {"name": "p"}), ("resources/read", {"uri": "u"})):
            rig.operations.handlers[method] = asks_once
            response = await rig.post(method, params, capabilities=ALL)
            retry = {**params, **again(response.json()["result"])}
            response = await rig.post(method, retry, capabilities=ALL)
            assert response.json()["result"]["replies"] == [{"action": "accept"}]


async def test_all_that_is_open_is_asked_at_once(autojump_clock: MockClock) -> None:
    async def asks_three(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        replies: dict[str, Reply] = {}

        async def one(method: str, params: bytes) -> None:
            replies[method] = await caller.ask(method, params)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, ASK, b'{"message":"m"}')
            nursery.start_soon(one, "sampling/createMessage", b'{"maxTokens":1}')
            nursery.start_soon(one, "roots/list", b"")
        return answer(*(replies[method] for method in sorted(replies)))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_three
        result = await rig.call("n", capabilities=ALL)
        asked = {one["method"]: key for key, one in result["inputRequests"].items()}
        assert sorted(asked) == [ASK, "roots/list", "sampling/createMessage"]
        some = {
            asked[ASK]: {"action": "decline"},
            "unknown": {},
            asked["roots/list"]: {"roots": []},
        }
        state = {"requestState": result["requestState"]}
        result = await rig.call("n", {"inputResponses": some, **state}, capabilities=ALL)
        # Only what is missing is asked again, under the same key.
        assert list(result["inputRequests"]) == [asked["sampling/createMessage"]]
        assert result["requestState"] != state["requestState"]
        result = await rig.call("n", again(result, {"model": "m"}), capabilities=ALL)
        assert result["replies"] == [{"action": "decline"}, {"roots": []}, {"model": "m"}]


@pytest.mark.parametrize("responses", [None, {}, {"unknown": {}}])
async def test_a_retry_without_the_answer_is_asked_again(
    autojump_clock: MockClock, responses: Any
) -> None:
    async with open_rig() as rig:
        result = await ask_once(rig)
        retry = {"requestState": result["requestState"]}
        if responses is not None:
            retry["inputResponses"] = responses
        second = await rig.call("n", retry, capabilities=ALL)
        assert second["inputRequests"] == result["inputRequests"]
        assert (await rig.call("n", again(second), capabilities=ALL))["replies"]


async def test_several_rounds_and_not_more_than_ten(autojump_clock: MockClock) -> None:
    async def asks_on(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        return answer(*[await caller.ask(ASK, b"{}") for _ in range(12)])

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_on
        result = await rig.call("n", capabilities=ALL)
        keys, rounds = set(), 0
        while result["resultType"] == "input_required":
            rounds += 1
            keys |= set(result["inputRequests"])
            result = await rig.call("n", again(result), capabilities=ALL)
        assert rounds == len(keys) == 10
        assert ["code" in reply for reply in result["replies"]] == [False] * 10 + [True] * 2


async def test_what_was_not_declared_is_refused_at_once(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_once
        result = await rig.call("n", capabilities={"sampling": {}})
        assert result["resultType"] == "complete"
        assert "elicitation" in result["replies"][0]["message"]


async def test_a_method_that_cannot_ask_is_not_parked(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["completion/complete"] = asks_once
        params = {"ref": {"type": "ref/prompt", "name": "p"}}
        response = await rig.post("completion/complete", params, capabilities=ALL)
        result = response.json()["result"]
        assert result["resultType"] == "complete"
        assert "cannot ask for input" in result["replies"][0]["message"]
        assert len(rig.lot) == 0


@pytest.mark.parametrize(
    ("code", "status", "told"), [(-32601, 400, -32021), (-32603, 200, -32603), (7, 200, 7)]
)
async def test_a_server_that_cannot_do_without_is_said_to_need_it(
    autojump_clock: MockClock, code: int, status: int, told: int
) -> None:
    """Servers hand the refusal on as their own error; a 404 would say that there are no tools."""

    async def insists(_: Requester, params: Any, caller: AgentCaller) -> Answer:
        if params["name"] == "asks":
            await caller.ask(ASK, b'{"mode":"url"}')
        elif params["name"] == "never offered":
            caller.lacks("elicitation.url")
        return Answer(error=jsonrpc.error_object(code, "the client does not offer it"))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = insists
        declared: dict[str, Any] = {"elicitation": {"form": {}}}
        for name in ("asks", "never offered"):
            response = await rig.post("tools/call", {"name": name}, capabilities=declared)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (status, told)
            if told == -32021:
                assert error["data"] == {"requiredCapabilities": {"elicitation": {"url": {}}}}
        # Without a question the error is about something else.
        response = await rig.post("tools/call", {"name": "n"}, capabilities=declared)
        assert response.json()["error"]["code"] == code


async def test_what_counts_is_what_the_round_declares(autojump_clock: MockClock) -> None:
    async def asks_twice(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        return answer(*[await caller.ask(ASK, b"{}") for _ in range(2)])

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_twice
        result = await rig.call("n", capabilities=ALL)
        result = await rig.call("n", again(result), capabilities={})
        assert ["code" in reply for reply in result["replies"]] == [False, True]


async def test_each_round_has_its_own_stream_token_and_level(autojump_clock: MockClock) -> None:
    async def tells(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        caller.notify("notifications/progress", b'{"progressToken":0,"progress":1}')
        caller.notify("notifications/message", b'{"level":"info","data":1}')
        reply = await caller.ask(ASK, b"{}")
        caller.notify("notifications/progress", b'{"progressToken":0,"progress":2}')
        caller.notify("notifications/message", b'{"level":"info","data":2}')
        return answer(reply)

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = tells
        extra: dict[str, Any] = {"progressToken": "one", f"{PREFIX}logLevel": "debug"}
        more: dict[str, Any] = {"capabilities": ALL, "path": "/mcp/box"}
        async with rig.stream("tools/call", {"name": "n"}, extra=extra, **more) as first:
            await first.ended.wait()
        told = [m.get("params") for m in first.messages]
        assert told == [{"progressToken": "one", "progress": 1}, {"level": "info", "data": 1}, None]
        retry = {"name": "n", **again(first.messages[-1]["result"])}
        extra = {"progressToken": 2}
        async with rig.stream("tools/call", retry, extra=extra, **more) as second:
            await second.ended.wait()
        told = [m.get("params") for m in second.messages]
        assert told == [{"progressToken": 2, "progress": 2}, None]
        assert second.messages[-1]["result"]["resultType"] == "complete"


async def test_a_state_opens_once(autojump_clock: MockClock) -> None:
    async def asks_twice(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        return answer(*[await caller.ask(ASK, b"{}") for _ in range(2)])

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_twice
        first = await rig.call("n", capabilities=ALL)
        second = await rig.call("n", again(first), capabilities=ALL)
        await refused(rig, again(first))
        end = await rig.call("n", again(second), capabilities=ALL)
        assert len(end["replies"]) == 2
        await refused(rig, again(second))


async def test_of_two_retries_at_once_one_wins(autojump_clock: MockClock) -> None:
    statuses: list[int] = []

    async def asks_and_works(who: Requester, params: Any, caller: AgentCaller) -> Answer:
        found = await asks_once(who, params, caller)
        await trio.sleep(5)
        return found

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = asks_and_works
        result = await ask_once(rig)

        async def retry() -> None:
            params = {"name": "n", **again(result)}
            response = await rig.post("tools/call", params, capabilities=ALL)
            statuses.append(response.status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(retry)
        assert sorted(statuses) == [200, 400, 400]
        assert len(rig.operations.performed) == 1


async def test_a_state_is_good_for_its_own_request_only(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        key = {"kars.azure.com/agent": "one"}
        arguments = {"arguments": {"a": 1, "b": [1, 2]}}
        result = await ask_once(rig, params=arguments, extra=key, path="/mcp/box")
        good = {**arguments, **again(result)}
        at_home: dict[str, Any] = {"extra": key, "path": "/mcp/box"}
        await refused(rig, {**good, "name": "other"}, **at_home)
        await refused(rig, {**good, "arguments": {"a": 1, "b": [2, 1]}}, **at_home)
        await refused(rig, {**good, "arguments": {"a": 1.5, "b": [1, 2]}}, **at_home)
        await refused(rig, {**good, "new": None}, **at_home)
        await refused(rig, again(result), **at_home)
        await refused(rig, good, path="/mcp/box")
        await refused(rig, good, path="/mcp/box", extra={"kars.azure.com/agent": "two"})
        await refused(rig, good, extra=key)
        rig.operations.handlers["prompts/get"] = fixed({})
        response = await rig.post("prompts/get", {"name": "n", **good}, **at_home)
        assert response.json()["error"]["code"] == jsonrpc.INVALID_PARAMS
        rig.scope["state"] = {"kars.principal": "one"}
        await refused(rig, good, **at_home)
        rig.scope.clear()
        # None of that took anything away from the one who may.
        good = {**again(result), "arguments": {"b": [1, 2], "a": 1}}
        assert (await rig.call("n", good, capabilities=ALL, **at_home))["replies"]


async def test_a_state_that_was_tampered_with_opens_nothing(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        result = await ask_once(rig)
        state = result["requestState"]
        head, _, sealed = state.rpartition(".")
        ticket = Sealer(KEY).seal(Ticket("a", "2025-11-25", "", 0.0))
        for bad in (
            f"{head}.",
            f"{head}.{sealed[:-1]}",
            f"{head}.{'B' if sealed[0] == 'A' else 'A'}{sealed[1:]}",
            f"{head}.{sealed[:40]}{'B' if sealed[40] == 'A' else 'A'}{sealed[41:]}",
            f"{state}=",
            f"{state} ",
            f"{head}.{ticket}",
            f"{head}." + "A" * 100_000,
            f"{head}.ä",
        ):
            await refused(rig, {**again(result), "requestState": bad})
        assert (await rig.call("n", again(result), capabilities=ALL))["replies"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputResponses": []},
        {"inputResponses": "x"},
        {"inputResponses": {"question-1": "accept"}},
        {"inputResponses": {"question-1": None}},
        {"requestState": 1},
        {"requestState": {}},
    ],
)
async def test_answers_of_a_wrong_kind_are_refused_and_cost_nothing(
    autojump_clock: MockClock, wrong: dict[str, Any]
) -> None:
    async with open_rig() as rig:
        result = await ask_once(rig)
        await refused(rig, {**again(result), **wrong})
        assert (await rig.call("n", again(result), capabilities=ALL))["replies"]


async def test_another_routers_state_is_its_own_servers_business(
    autojump_clock: MockClock,
) -> None:
    """A router may stand behind a router; its states begin like ours, but for the key's digest."""
    async with open_rig() as rig:
        state = (await ask_once(rig))["requestState"]
        prefix = state[: state.rindex(".") + 1]
        assert prefix.startswith("kars1.")
        assert not ParkingLot(KEY[::-1], limit=1, seconds=1).made(state)
        rig.operations.handlers["tools/call"] = fixed({})
        foreign = "kars1.00000000." + state[len(prefix) :]
        await rig.call("n", {"requestState": foreign}, capabilities=ALL)
        assert jsonrpc.decode(rig.operations.performed[-1][2])["requestState"] == foreign
