"""What agents of the stateless era get for their requests, but for what is parked."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from agent_kit import Listening
from trio.testing import MockClock
from unit.front.stateless_kit import CAPABILITIES, PREFIX, REVISION, fixed, open_rig

from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.operations import Answer
from kars_router.session.pending import Pending
from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

INFO = {"name": "kars-router", "version": "1.2.3"}
SERVER = f"{PREFIX}serverInfo"
CACHEABLE: dict[str, dict[str, Any]] = {
    "tools/list": {"tools": []},
    "prompts/list": {"prompts": []},
    "resources/list": {"resources": []},
    "resources/templates/list": {"resourceTemplates": []},
    "resources/read": {"contents": []},
}
OTHERS: dict[str, dict[str, Any]] = {
    "tools/call": {"content": []},
    "prompts/get": {"messages": []},
    "completion/complete": {"completion": {"values": []}},
}


async def test_discover_says_what_there_is(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        for path, name in (("/mcp", "all"), ("/mcp/box", "box")):
            response = await rig.post("server/discover", path=path)
            assert response.headers["content-type"] == "application/json"
            assert response.json()["result"] == {
                "resultType": "complete",
                "supportedVersions": [REVISION],
                "capabilities": CAPABILITIES,
                "instructions": f"how to use {name}",
                "ttlMs": 0,
                "cacheScope": "private",
                "_meta": {SERVER: INFO},
            }
        # Asking what there is makes nobody an agent.
        assert len(rig.identities) == 0


@pytest.mark.parametrize("method", [*CACHEABLE, *OTHERS])
async def test_results_say_what_results_of_this_era_say(
    autojump_clock: MockClock, method: str
) -> None:
    plain = {**CACHEABLE, **OTHERS}[method]
    stamps: dict[str, Any] = {"resultType": "complete", "_meta": {SERVER: INFO}}
    if method in CACHEABLE:
        stamps |= {"ttlMs": 0, "cacheScope": "private"}
    async with open_rig() as rig:
        rig.operations.handlers[method] = fixed(plain)
        response = await rig.post(method, {"name": "n", "uri": "u"})
        assert response.json()["result"] == {**plain, **stamps}


async def test_what_a_server_of_this_era_says_of_its_result_stays(
    autojump_clock: MockClock,
) -> None:
    result = (
        b'{"contents":[],"resultType":"complete","ttlMs":5.0e3,"cacheScope":"public","new":{"a":1e2},'
        b'"_meta":{"io.modelcontextprotocol/serverInfo":{"name":"box","version":"0"}}}'
    )
    async with open_rig() as rig:
        rig.operations.handlers["resources/read"] = fixed(result)
        response = await rig.post("resources/read", {"uri": "u"}, ident=1)
        assert response.content == b'{"jsonrpc":"2.0","id":1,"result":%b}' % result


async def test_what_a_server_asks_passes_byte_for_byte(autojump_clock: MockClock) -> None:
    result = (
        b'{ "resultType":"input_required", "requestState":"kars1.not \\u006furs",'
        b'"inputRequests":{"b":{"method":"roots/list"},"a":{"method":"x/y","params":{"n":1.50}}}}'
    )
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = fixed(result)
        response = await rig.post("tools/call", {"name": "n"}, ident=1)
        assert response.content == b'{"jsonrpc":"2.0","id":1,"result":%b}' % result
        # And so does the way back, the envelope apart.
        again = {"name": "n", "inputResponses": {"b": {"roots": []}}, "requestState": "kars1.x"}
        await rig.post("tools/call", again)
        assert jsonrpc.decode(rig.operations.performed[-1][2]) == again


async def test_requests_lose_the_envelope_and_nothing_else(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = fixed({})
        extra = {"traceparent": "00-1", "progressToken": 1, f"{PREFIX}logLevel": "debug"}
        await rig.post("tools/call", {"name": "n", "future": [1.0]}, path="/mcp/box", extra=extra)
        who, _, params = rig.operations.performed[0]
        assert who == Requester(agent="listener", endpoint="box", client="test")
        assert jsonrpc.decode(params) == {
            "name": "n",
            "future": [1.0],
            "_meta": {"traceparent": "00-1", "progressToken": 1},
        }


async def test_an_answer_is_json_if_nothing_was_said_before(autojump_clock: MockClock) -> None:
    async def slow(_: Requester, __: Any, ___: AgentCaller) -> Answer:
        await trio.sleep(14.9)
        return Answer(result=b"{}")

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = slow
        response = await rig.post("tools/call", {"name": "n"})
        assert response.headers["content-type"] == "application/json"


async def test_a_long_silence_is_filled_with_comments(autojump_clock: MockClock) -> None:
    async def slow(_: Requester, __: Any, ___: AgentCaller) -> Answer:
        await trio.sleep(50)
        return Answer(error=b'{"code":-32602,"message":"late"}')

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = slow
        began = trio.current_time()
        async with rig.stream("tools/call", {"name": "n"}) as listening:
            await listening.ended.wait()
            assert listening.response.status_code == 200
            assert listening.response.headers["x-accel-buffering"] == "no"
            assert [round(when - began) for when in listening.comments] == [15, 30, 45]
            assert [m["error"]["code"] for m in listening.messages] == [-32602]


async def _says(_: Requester, __: Any, caller: AgentCaller) -> Answer:
    for level in ("debug", "warning", "nonsense", 5):
        caller.notify("notifications/message", jsonrpc.encode({"level": level, "data": level}))
    caller.notify("notifications/message", b'{"data":"no level"}')
    caller.notify("notifications/message", b"[]")
    for done in (1, 2):
        params = {"progressToken": "the server's", "progress": done, "kept": 1}
        caller.notify("notifications/progress", jsonrpc.encode(params))
    for other in ("tools/list_changed", "resources/updated", "cancelled", "elicitation/complete"):
        caller.notify(f"notifications/{other}", b"{}")
    caller.notify("notifications/acme/novelty", b'{"a":1}')
    await trio.sleep(1)
    caller.notify("notifications/progress", b'{"progressToken":0,"progress":3}')
    return Answer(result=b"{}")


def _told(listening: Listening) -> list[Any]:
    return [
        (m["method"].removeprefix("notifications/"), m["params"])
        for m in listening.messages
        if "method" in m
    ]


async def test_what_belongs_to_a_request_comes_on_its_stream(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = _says
        extra = {"progressToken": "mine", f"{PREFIX}logLevel": "warning"}
        async with rig.stream("tools/call", {"name": "n"}, "/mcp/box", extra=extra) as listening:
            await listening.ended.wait()
        assert _told(listening) == [
            ("message", {"level": "warning", "data": "warning"}),
            ("message", {"level": "nonsense", "data": "nonsense"}),
            ("progress", {"progressToken": "mine", "progress": 1, "kept": 1}),
            ("progress", {"progressToken": "mine", "progress": 2, "kept": 1}),
            ("acme/novelty", {"a": 1}),
            ("progress", {"progressToken": "mine", "progress": 3}),
        ]
        assert listening.messages[-1]["result"]["resultType"] == "complete"


async def test_without_a_level_or_a_token_nothing_of_that_is_said(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = _says
        async with rig.stream("tools/call", {"name": "n"}) as listening:
            await listening.ended.wait()
        assert [name for name, _ in _told(listening)] == ["acme/novelty"]


async def test_a_reader_that_is_stuck_holds_nothing_up(autojump_clock: MockClock) -> None:
    ended = trio.Event()

    async def floods(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        for number in range(1000):
            caller.notify("notifications/acme", b'{"n":%d}' % number)
            if number % 100 == 0:
                await trio.sleep(1)
        ended.set()
        return Answer(result=b"{}")

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = floods
        request = rig.client.build_request(
            "POST", "http://127.0.0.1/mcp", **rig.build("tools/call", {"name": "n"})
        )
        response = await rig.client.send(request, stream=True)
        with trio.fail_after(60):
            await ended.wait()
        listening = Listening(response)
        with trio.fail_after(60):
            await listening.read()
        numbers = [m["params"]["n"] for m in listening.messages if "params" in m]
        assert len(numbers) < 600
        assert numbers[-1] == 999
        assert "result" in listening.messages[-1]
        assert rig.metrics.notifications_dropped._value.get() == 1000 - len(numbers)


async def test_leaving_cancels(autojump_clock: MockClock) -> None:
    withdrawn = trio.Event()
    undone: list[str] = []

    async def endless(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        caller.pending = Pending(b"1", "tools/call", b"{}")
        with caller.pending.scope:
            await trio.sleep_forever()
        withdrawn.set()
        await trio.sleep(1)
        # It was too late; what the answer would have told must be told again.
        return Answer(result=b"{}", undo=(lambda: undone.append("told"),))

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = endless
        with trio.move_on_after(5):
            await rig.post("tools/call", {"name": "n"})
        with trio.fail_after(5):
            await withdrawn.wait()
        assert rig.operations.unsent == 0
        assert rig.operations.in_flight == 1
        assert not undone
        await trio.sleep(2)
        assert undone == ["told"]
        assert rig.operations.in_flight == 0


async def test_leaving_in_the_middle_of_a_stream_cancels(autojump_clock: MockClock) -> None:
    callers: list[AgentCaller] = []

    async def endless(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        caller.notify("notifications/acme", b"{}")
        await trio.sleep(100)
        return Answer(withdrawn=True)

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = endless
        async with rig.stream("tools/call", {"name": "n"}) as listening:
            await listening.wait_for(lambda got: bool(got.messages))
        await rig.settled()
        assert callers[0].withdrawn
        caller_said = callers[0]
        caller_said.notify("notifications/acme", b"{}")  # to nobody, and no harm


async def test_an_answer_that_arrives_is_not_undone(autojump_clock: MockClock) -> None:
    undone: list[str] = []
    async with open_rig() as rig:
        undo = (lambda: undone.append("told"),)
        rig.operations.handlers["tools/call"] = fixed(result=b"{}", undo=undo)
        assert (await rig.post("tools/call", {"name": "n"})).status_code == 200
        await trio.sleep(100)
        assert not undone


@pytest.mark.parametrize("asks", [False, True])
async def test_the_end_of_an_exchange_is_no_leaving(autojump_clock: MockClock, asks: bool) -> None:
    """Servers report it by the same message, and at once."""
    undone: list[str] = []
    callers: list[AgentCaller] = []
    over = trio.Event()
    request: dict[str, Any] = {}

    async def ends(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        if asks:
            await caller.ask("roots/list", b"")
        return Answer(result=b"{}", undo=(lambda: undone.append("told"),))

    async def receive() -> dict[str, Any]:
        if request:
            return {"type": "http.request", "body": request.pop("body")}
        await over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body" and not message["more_body"]:
            over.set()
            await trio.testing.wait_all_tasks_blocked()

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = ends
        built = rig.build("tools/call", {"name": "n"}, capabilities={"roots": {}})
        request["body"] = built["content"]
        sent = {**built["headers"], "host": "localhost"}
        pairs = [(name.encode(), value.encode()) for name, value in sent.items()]
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": pairs}
        await rig.app(scope, receive, send)
        assert not undone
        assert not callers[0].withdrawn
        assert len(rig.lot) == asks


@pytest.mark.parametrize("heard", ["while it writes", "once it has"])
@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("asks", [False, True])
async def test_leaving_instead_of_reading_the_end_is_leaving(
    autojump_clock: MockClock, asks: bool, streams: bool, heard: str
) -> None:
    """Servers report it while the write is stuck, or let the write end and report it then."""
    undone: list[str] = []
    callers: list[AgentCaller] = []
    left, stuck, sent = trio.Event(), trio.Event(), trio.Event()
    request: dict[str, Any] = {}

    async def ends(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        if streams:
            caller.notify("notifications/acme/x", b"{}")
            await trio.sleep(1)
        if asks:
            await caller.ask("roots/list", b"")
        return Answer(result=b"{}", undo=(lambda: undone.append("told"),))

    async def receive() -> dict[str, Any]:
        if request:
            return {"type": "http.request", "body": request.pop("body")}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if b'"result"' in message.get("body", b""):
            stuck.set()
            with trio.CancelScope(shield=True):
                await sent.wait()

    async with open_rig() as rig, trio.open_nursery() as nursery:
        rig.operations.handlers["tools/call"] = ends
        built = rig.build("tools/call", {"name": "n"}, capabilities={"roots": {}})
        request["body"] = built["content"]
        pairs = [(k.encode(), v.encode()) for k, v in built["headers"].items()]
        pairs.append((b"host", b"localhost"))
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": pairs}
        nursery.start_soon(rig.app, scope, receive, send)
        await stuck.wait()
        await trio.sleep(5)
        assert (undone, len(rig.lot)) == ([], asks)
        left.set()
        if heard == "while it writes":
            await rig.settled()
        sent.set()
        await rig.settled()
        assert callers[0].withdrawn
        assert undone == ["told"]
        assert (len(rig.lot), rig.operations.in_flight, rig.operations.unsent) == (0, 0, 0)


async def test_a_call_that_was_taken_up_again_is_not_given_up(autojump_clock: MockClock) -> None:
    """The state has arrived, even if the connection that it came on seems stuck, and breaks."""
    callers: list[AgentCaller] = []
    left, stuck = trio.Event(), trio.Event()
    request: dict[str, Any] = {}
    body = b""

    async def asks(_: Requester, __: Any, caller: AgentCaller) -> Answer:
        callers.append(caller)
        for _round in range(2):
            await caller.ask("roots/list", b"")
        return Answer(result=b"{}")

    async def receive() -> dict[str, Any]:
        if request:
            return {"type": "http.request", "body": request.pop("body")}
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal body
        await trio.lowlevel.checkpoint()
        body += message.get("body", b"")
        if len(message.get("body", b"")) == 1:  # the last byte, which goes by itself
            stuck.set()
            await trio.sleep_forever()

    async with open_rig() as rig, trio.open_nursery() as nursery:
        rig.operations.handlers["tools/call"] = asks
        declared: dict[str, Any] = {"capabilities": {"roots": {}}}
        built = rig.build("tools/call", {"name": "n"}, **declared)
        request["body"] = built["content"]
        pairs = [(k.encode(), v.encode()) for k, v in built["headers"].items()]
        pairs.append((b"host", b"localhost"))
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": pairs}
        nursery.start_soon(rig.app, scope, receive, send)
        await stuck.wait()
        result = jsonrpc.decode(body)["result"]
        for last in (False, True):
            reply = {key: {"roots": list[str]()} for key in result["inputRequests"]}
            retry = {"inputResponses": reply, "requestState": result["requestState"]}
            result = await rig.call("n", retry, **declared)
            if not last:
                left.set()
                await rig.settled()
                assert len(rig.lot) == 1
        assert result["resultType"] == "complete"
        assert not callers[0].withdrawn
        nursery.cancel_scope.cancel()


async def test_answers_on_their_way_are_counted(autojump_clock: MockClock) -> None:
    go = trio.Event()

    async def waits(_: Requester, __: Any, ___: AgentCaller) -> Answer:
        await go.wait()
        return Answer(result=b"{}")

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = waits
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(rig.post, "tools/call", {"name": "n"})
            await rig.settled()
            assert rig.operations.unsent == rig.operations.in_flight == 3
            go.set()
        await rig.settled()
        assert rig.operations.unsent == rig.operations.in_flight == 0


async def test_a_call_that_crashes_takes_nothing_along(autojump_clock: MockClock) -> None:
    async def crashes(_: Requester, __: Any, ___: AgentCaller) -> Answer:
        raise RuntimeError("secret detail")

    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = crashes
        rig.operations.handlers["tools/list"] = fixed({"tools": []})
        response = await rig.post("tools/call", {"name": "n"})
        assert response.json()["error"]["code"] == jsonrpc.INTERNAL_ERROR
        assert "secret" not in response.text
        assert (await rig.post("tools/list")).status_code == 200


async def test_a_call_that_was_cancelled_elsewhere_is_said_to_be(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        rig.operations.handlers["tools/call"] = fixed(withdrawn=True)
        response = await rig.post("tools/call", {"name": "n"})
        assert "cancelled" in response.json()["error"]["message"]
