"""What handshake-era agents can ask for, and where it goes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from agent_kit import REVISIONS, rpc
from trio.testing import MockClock
from unit.front.handshake_kit import ALL, Agent, done, open_kit, settle

from kars_router.front.agents import AgentRegistry
from kars_router.front.callers import AgentCaller, Requester
from kars_router.front.operations import Answer
from kars_router.front.sealing import Sealer
from kars_router.telemetry import Metrics
from kars_router.wire import jsonrpc, levels

METHODS = (
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/templates/list",
    "resources/read",
    "completion/complete",
)


@pytest.mark.parametrize("method", METHODS)
async def test_a_method_is_performed_as_it_was_asked_for(
    autojump_clock: MockClock, method: str
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on(method)
        async def work(caller: AgentCaller) -> Answer:
            return done(b'{"b": 1.50, "a":[]}')

        body = b'{"jsonrpc":"2.0","id":"x","method":"%b","params":{"q":1.50,"_meta":{}}}'
        response = await kit.post(body % method.encode(), agent.ident)
        assert response.headers["content-type"] == "application/json"
        assert response.content == b'{"jsonrpc":"2.0","id":"x","result":{"b": 1.50, "a":[]}}'
        who = Requester(agent=agent.session.agent, endpoint="", client="test")
        assert kit.operations.seen == [(who, method, b'{"q":1.50,"_meta":{}}')]
        (caller,) = kit.operations.callers
        assert jsonrpc.decode(caller.capabilities) == ALL


async def test_an_error_passes_as_it_is_and_a_refusal_has_the_id(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("prompts/get")
        async def work(caller: AgentCaller) -> Answer:
            return Answer(error=b'{"code":-32042,"message":"m","data":{"x":1.50}}')

        response = await agent.post(rpc("prompts/get", ident=0))
        assert response.content == (
            b'{"jsonrpc":"2.0","id":0,"error":{"code":-32042,"message":"m","data":{"x":1.50}}}'
        )
        refused = await agent.request("tasks/list", ident="t")
        assert (refused["id"], refused["error"]["code"]) == ("t", jsonrpc.METHOD_NOT_FOUND)


async def test_what_servers_can_do_is_said_at_the_beginning(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        response = await kit.post(rpc("initialize", {"protocolVersion": REVISIONS[0]}))
        assert b'"capabilities":' + kit.operations.declared in response.content
        assert response.json()["result"]["instructions"] == "Use all."


async def test_a_ping_asks_nobody(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        assert (await agent.request("ping"))["result"] == {}
        assert kit.operations.seen == []


async def test_an_agent_is_made_known_once_and_before_its_first_request(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        name = agent.session.agent
        assert kit.upstream.joined == {name: [agent.session.port]}
        for _ in range(3):
            await agent.request("ping")
        assert len(kit.upstream.joined[name]) == 1
        # After a restart of the router, too.
        async with open_kit() as later:
            await later.post(rpc("ping"), agent.ident)
            (port,) = later.upstream.joined[name]
            assert jsonrpc.decode(port.capabilities) == ALL


@pytest.mark.parametrize("level", levels.LEVELS)
async def test_a_log_level_is_kept_and_told(autojump_clock: MockClock, level: str) -> None:
    async with open_kit() as kit:
        agent, other = await kit.connect(), await kit.connect()
        assert (await agent.request("logging/setLevel", {"level": level}))["result"] == {}
        assert kit.upstream.told == [(agent.session.agent, f"level {level}")]
        assert (agent.port.log_level, other.port.log_level) == (level, "")

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            return done(jsonrpc.encode([caller.log_level]))

        assert (await agent.request("tools/call", {"name": "work"}))["result"] == [level]
        assert (await other.request("tools/call", {"name": "work"}))["result"] == [""]


@pytest.mark.parametrize("params", [None, {}, {"level": 3}, {"level": "loud"}, {"level": None}])
async def test_a_log_level_that_is_none_is_refused(autojump_clock: MockClock, params: Any) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        refused = await agent.request("logging/setLevel", params)
        assert refused["error"]["code"] == jsonrpc.INVALID_PARAMS
        assert (kit.upstream.told, agent.port.log_level) == ([], "")


async def test_subscriptions_are_passed_on(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        for verb in ("subscribe", "unsubscribe"):
            assert (await agent.request(f"resources/{verb}", {"uri": "a:b"}))["result"] == {}
        refused = await agent.request("resources/subscribe", {"uri": "none"})
        assert refused["error"]["message"] == "no such resource"
        who = Requester(agent=agent.session.agent, endpoint="", client="test")
        assert kit.operations.seen == [
            (who, "subscribe", b'{"uri":"a:b"}'),
            (who, "unsubscribe", b'{"uri":"a:b"}'),
            (who, "subscribe", b'{"uri":"none"}'),
        ]


async def test_changed_roots_are_told(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        await agent.notify("notifications/initialized")
        await agent.notify("notifications/whatever", {"a": 1})
        assert kit.upstream.told == []
        await agent.notify("notifications/roots/list_changed")
        assert kit.upstream.told == [(agent.session.agent, "roots")]


async def test_a_batch_may_do_it_all(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect("2025-03-26")

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            return done()

        batch = [
            rpc("logging/setLevel", {"level": "error"}, "a"),
            rpc("tools/call", {"name": "work"}, "b"),
            {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"},
            {"jsonrpc": "2.0", "id": "nobody's", "result": {}},
        ]
        answers = (await agent.post(batch)).json()
        assert [answer["id"] for answer in answers] == ["a", "b"]
        assert {what for _, what in kit.upstream.told} == {"level error", "roots"}
        assert (await agent.post(batch[2:])).status_code == 202
        assert kit.sample("kars_agent_replies_dropped_total") == 2


async def test_a_session_counts_its_requests(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(5)
            return done()

        for number in range(3):
            nursery.start_soon(agent.request, "tools/call", {"name": "work"}, number)
        await settle()
        session = agent.session
        assert (session.in_flight, len(session.requests)) == (3, 3)
        assert kit.operations.unsent == 3
        await trio.sleep(6)
        assert (session.in_flight, len(session.requests)) == (0, 0)
        assert (kit.operations.unsent, len(session.log)) == (0, 0)


async def test_of_two_requests_with_one_id_both_are_answered(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        answers: list[Any] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(len(kit.operations.seen))
            return done()

        async def call() -> None:
            answers.append(await agent.request("tools/call", {"name": "work"}))

        for _ in range(2):
            nursery.start_soon(call)
            await settle()
        await trio.sleep(5)
        assert len(answers) == 2
        assert agent.session.requests == {}


@pytest.mark.parametrize("least", ["", "warning"])
async def test_only_log_messages_that_are_wanted_come(
    autojump_clock: MockClock, least: str
) -> None:
    def message(level: Any) -> bytes:
        return jsonrpc.encode({"level": level, "data": level})

    async with open_kit() as kit:
        agent = await kit.connect()
        if least:
            await agent.request("logging/setLevel", {"level": least})

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            for level in ("info", "warning", "error", "unheard-of", 7):
                caller.notify("notifications/message", message(level))
            return done()

        expected = ["warning", "error", "unheard-of", 7]
        if not least:
            expected.insert(0, "info")
        async with agent.call() as answer, agent.listen() as listening:
            for level in ("info", "warning", "error", "unheard-of", 7):
                agent.port.notify("box", "notifications/message", message(level))
            await settle()
            got = [m["params"]["data"] for m in answer.messages[:-1]]
            assert got == expected
            assert [m["params"]["data"] for m in listening.messages] == expected
            assert {m["params"]["logger"] for m in listening.messages} == {"box"}


async def test_servers_of_other_endpoints_are_not_heard(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        everything = await kit.connect()
        _, session = kit.agents.create("2025-11-25", "box", "test")
        port = kit.legacy.join(session)
        for server in ("box", "other"):
            for each in (port, everything.port):
                each.notify(
                    server,
                    "notifications/message",
                    b'{"level":"info","data":"%b"}' % server.encode(),
                )
        async with everything.listen() as listening:
            await settle()
            assert [m["params"]["data"] for m in listening.messages] == ["box", "other"]
        stream, reader = session.listen("")
        event = stream.take(reader)
        assert event is not None
        # The one server's name need not be told.
        assert event.data == jsonrpc.notification(
            "notifications/message", b'{"level":"info","data":"box"}'
        )
        assert stream.take(reader) is None
        assert port.bystander("box") is not None
        assert port.bystander("other") is None


async def test_a_line_of_a_log_that_is_repeated_is_told_again(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        for _ in range(2):
            agent.port.notify("box", "notifications/message", b'{"level":"info","data":1}')
            agent.port.notify("box", "notifications/prompts/list_changed", b"")
        async with agent.listen() as listening:
            await settle()
            methods = [m["method"].rpartition("/")[2] for m in listening.messages]
            assert methods == ["message", "list_changed", "message"]


async def test_long_capabilities_are_kept_short(autojump_clock: MockClock) -> None:
    sealer = Sealer(b"k" * 32)
    odd = {"experimental": {"x": "y" * 5000}, "sampling": {"tools": {}, "z": "y" * 5000}}
    async with open_kit() as kit:
        for declared, kept in (
            ({**ALL, "own": {"a": 1.5}}, {**ALL, "own": {"a": 1.5}}),
            ({**ALL, "experimental": {"x": "y" * 5000}}, ALL),
            (odd, {"sampling": {"tools": {}}}),
            (
                {"roots": {"listChanged": True}, **odd},
                {"roots": {"listChanged": True}, "sampling": {"tools": {}}},
            ),
            (
                {"elicitation": {"form": {"x": "y" * 5000}, "url": {}}},
                {"elicitation": {"form": {}, "url": {}}},
            ),
            ({"sampling": "y" * 5000}, {"sampling": {}}),
            ({"x": "y" * 5000, "sampling": {"z": {}}}, {"sampling": {"z": {}}}),
        ):
            agent = await kit.connect(capabilities=declared)
            ticket = sealer.open(agent.ident)
            assert ticket is not None
            assert jsonrpc.decode(ticket.capabilities.encode()) == kept
            assert len(agent.ident) < 4096


@pytest.mark.parametrize("declared", [b"null", b"[]", b'"x"', b"7", None])
async def test_capabilities_that_are_none_are_empty(
    autojump_clock: MockClock, declared: bytes | None
) -> None:
    member = b"" if declared is None else b',"capabilities":%b' % declared
    params = b'{"protocolVersion":"2025-11-25"%b}' % member
    async with open_kit() as kit:
        response = await kit.post(jsonrpc.request(b"1", "initialize", params))
        agent = Agent(kit, response.headers["mcp-session-id"])
        assert agent.session.ticket.capabilities == "{}"


async def test_an_id_of_an_earlier_version_goes_on(autojump_clock: MockClock) -> None:
    class Ticket(msgspec.Struct):
        a: str
        v: str
        e: str
        t: float
        n: str

    sealer = Sealer(b"k" * 32)
    ident = sealer.seal(Ticket("agent", "2025-06-18", "", 1000.0, "old"))  # type: ignore[arg-type]
    registry = AgentRegistry(
        sealer,
        Metrics(),
        limit=1,
        idle=1.0,
        lifetime=1000.0,
        has_ended=lambda _: False,
        on_end=lambda *_: None,
        clock=lambda: 1000.0,
    )
    found = registry.find(ident, "")
    assert found is not None
    assert found.ticket.capabilities == "{}"
