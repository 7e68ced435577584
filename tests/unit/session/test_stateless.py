from __future__ import annotations

import base64
from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock
from unit.session.stateless_kit import Agent, calls, error_reply, meta, open_rig, refused

from kars_router.loss import fate_of
from kars_router.model import Failure, LossVerdict
from kars_router.session.eras import OTHER_REVISION
from kars_router.testing import Fault, FaultPlan, Received, Reply
from kars_router.testing.stateless_server import PROTOCOL, StatelessServer
from kars_router.wire.params import plan

DISCOVER = "server/discover"
CALL = "tools/call"


# How a session begins


async def test_the_server_is_asked_what_it_can_do_before_anything_else(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(instructions="Be kind.") as rig:
        first = rig.server.log[0]
        assert first.method == DISCOVER
        assert first.headers["mcp-protocol-version"] == "2026-07-28"
        assert first.headers["mcp-method"] == DISCOVER
        assert "mcp-name" not in first.headers
        assert meta(first, "protocolVersion") == "2026-07-28"
        assert meta(first, "clientCapabilities") == {}
        assert meta(first, "clientInfo") == {"name": "kars-router", "version": "7"}
        assert meta(first, "logLevel") is None
        assert msgspec.json.decode(rig.session.capabilities) == rig.server.capabilities
        assert rig.session.instructions == "Be kind."
        assert rig.session.alive
        assert rig.session.session_id is None
        assert {r.http_method for r in rig.server.log} == {"POST"}


async def test_a_revision_that_the_server_names_is_used_for_a_second_try(
    autojump_clock: MockClock,
) -> None:
    named = {"supported": ["1999-01-01", "2026-07-28"], "requested": "?"}

    def prepare(server: StatelessServer) -> None:
        server.reply_next(error_reply(400, -32022, data=named), method=DISCOVER)

    async with open_rig(prepare=prepare) as rig:
        assert len(rig.server.requests(DISCOVER)) == 2
        assert await rig.text("counter") == "counter: 1"


async def test_a_second_refusal_of_the_revision_is_the_last(autojump_clock: MockClock) -> None:
    seen: list[Received] = []

    def script(received: Received) -> Reply:
        seen.append(received)
        return error_reply(400, -32022, data={"supported": ["2026-07-28"]})

    failure = await refused(script=script)
    assert (failure.status, failure.rpc_code) == (400, -32022)
    assert len(seen) == 2


@pytest.mark.parametrize("versions", [(), ("2025-11-25",), ("2027-01-01", "1")])
async def test_a_server_of_other_revisions_only_is_refused_as_such(
    autojump_clock: MockClock, versions: tuple[str, ...]
) -> None:
    result = {"supportedVersions": versions, "capabilities": {}}
    reply = Reply.json({"jsonrpc": "2.0", "id": 0, "result": result})
    failure = await refused(script=lambda _: reply)
    assert failure.code == OTHER_REVISION
    assert all(version in failure.detail for version in versions)


@pytest.mark.parametrize("result", [[], {}, {"supportedVersions": "2026-07-28"}, "?"])
async def test_a_result_that_is_no_discovery_is_one_without_a_revision(
    autojump_clock: MockClock, result: Any
) -> None:
    reply = Reply.json({"jsonrpc": "2.0", "id": 0, "result": result})
    assert (await refused(script=lambda _: reply)).code == OTHER_REVISION


async def test_a_server_without_an_answer_is_given_up_after_the_connect_timeout(
    autojump_clock: MockClock,
) -> None:
    failure = await refused(script=lambda _: Reply.hang())
    assert failure.code == "timeout"
    assert trio.current_time() == pytest.approx(5.0)


@pytest.mark.parametrize("code", [-32021, -32601, -32000])
async def test_what_refuses_the_first_question_is_kept_as_it_came(
    autojump_clock: MockClock, code: int
) -> None:
    failure = await refused(script=lambda _: error_reply(400, code))
    assert (failure.status, failure.rpc_code) == (400, code)
    assert failure.rpc_error
    assert failure.method == DISCOVER


async def test_odd_capabilities_count_as_none(autojump_clock: MockClock) -> None:
    result = {"supportedVersions": ["2026-07-28"], "capabilities": [], "instructions": 5}
    reply = Reply.json({"jsonrpc": "2.0", "id": 0, "result": result})
    async with open_rig(prepare=lambda s: s.reply_next(reply)) as rig:
        assert rig.session.capabilities == b"{}"
        assert rig.session.instructions == ""


# What a request says of this hop


async def test_each_request_speaks_for_the_agent_and_for_this_hop(
    autojump_clock: MockClock,
) -> None:
    agent = Agent(capabilities=b'{"roots":{"x":1.50},"tasks":{}}', log_level="warning")
    theirs = {
        f"{PROTOCOL}protocolVersion": "2025-11-25",
        f"{PROTOCOL}clientInfo": {"name": "agent", "version": "1"},
        f"{PROTOCOL}clientCapabilities": {"sampling": {}},
        f"{PROTOCOL}logLevel": "debug",
        "traceparent": "00-1",
    }
    async with open_rig() as rig:
        result = await rig.result(rig.call("echo", agent, a=1))
        (received,) = rig.server.requests(CALL)
        assert meta(received, "protocolVersion") == "2026-07-28"
        assert meta(received, "clientCapabilities") == {"roots": {"x": 1.5}}
        assert b"1.50" in received.body
        assert meta(received, "logLevel") == "warning"
        assert "traceparent" not in received.params["_meta"]
        assert result["structuredContent"] == {"a": 1}
        await rig.result(rig.submit(CALL, agent, name="echo", meta=theirs))
        received = rig.server.requests(CALL)[-1]
        assert meta(received, "clientInfo")["name"] == "kars-router"
        assert meta(received, "protocolVersion") == "2026-07-28"
        assert meta(received, "clientCapabilities") == {"roots": {"x": 1.5}}
        assert received.params["_meta"]["traceparent"] == "00-1"


@pytest.mark.parametrize(
    ("method", "params", "name"),
    [
        ("tools/call", {"name": "echo"}, "echo"),
        ("prompts/get", {"name": "greet"}, "greet"),
        ("resources/read", {"uri": "test://item/caf\u00e9"}, "test://item/caf\u00e9"),
        ("resources/read", {"uri": "test://item/ "}, "test://item/ "),
    ],
)
async def test_the_name_is_repeated_in_a_header(
    autojump_clock: MockClock, method: str, params: dict[str, Any], name: str
) -> None:
    async with open_rig() as rig:
        await rig.result(rig.submit(method, **params))
        (received,) = rig.server.requests(method)
        assert received.headers["mcp-method"] == method
        header = received.headers["mcp-name"]
        if header.startswith("=?base64?"):
            header = base64.b64decode(header[9:-2]).decode()
        assert header == name


async def test_arguments_are_repeated_by_the_tools_plan(autojump_clock: MockClock) -> None:
    plans = {"region": plan(StatelessServer().tools["region"][1])}
    async with open_rig(plans=plans) as rig:
        await rig.result(rig.call("region", region="\u00fc", query="q"))
        await rig.result(rig.call("region", query="q"))
        first, second = rig.server.requests(CALL)
        assert first.headers["mcp-param-region"] == "=?base64?w7w=?="
        assert "mcp-param-region" not in second.headers


async def test_ids_are_the_sessions_own(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        for _ in range(3):
            await rig.text("counter")
        ids = [r.id for r in rig.server.log]
        assert len(set(ids)) == len(ids) == 5
        assert rig.session.calls == 3


async def test_params_that_are_no_object_are_an_error_of_the_agent(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        pending = rig.session.submit(CALL, b"[1]", time_limit=5, caller=Agent())
        assert (await rig.error(pending))["code"] == -32602
        assert rig.server.requests(CALL) == []


# What comes back


ODD = (
    b'{"z":1.0, "resultType" : "complete","content":[],"_meta":{"io.modelcontextprotocol/'
    b'serverInfo":{"name":"n"},"kept":1e2},"ttlMs":5,"cacheScope":"public","n":12345678901234567890'
    b"1234567890}"
)


def answer_with(result: bytes) -> Any:
    def script(received: Received) -> Reply | None:
        if received.method != CALL:
            return None
        body = b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (received.id, result)
        return Reply(headers={"content-type": "application/json"}, body=body)

    return script


async def test_an_agent_of_the_same_era_gets_a_result_byte_for_byte(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(script=answer_with(ODD)) as rig:
        pending = rig.call("x", Agent(multi_round=True))
        await rig.result(pending)
        assert pending.reply is not None
        assert pending.reply.result == ODD


async def test_an_agent_of_the_other_era_gets_it_without_what_it_does_not_know(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(script=answer_with(ODD)) as rig:
        pending = rig.call("x", Agent())
        await rig.result(pending)
        assert pending.reply is not None
        kept = b'{"z":1.0,"content":[],"_meta":{"kept":1e2},"n":123456789012345678901234567890}'
        assert pending.reply.result == kept


@pytest.mark.parametrize("multi_round", [True, False])
@pytest.mark.parametrize("kind", [b'"task"', b"5", b'""'])
async def test_a_result_of_an_unknown_kind_is_none(
    autojump_clock: MockClock, kind: bytes, multi_round: bool
) -> None:
    result = b'{"resultType":%b,"content":[]}' % kind
    async with open_rig(script=answer_with(result)) as rig:
        failure = await rig.failure(rig.call("x", Agent(multi_round=multi_round)))
        assert failure.code == "protocol"
        assert fate_of(failure) == "unknown"
        assert rig.session.alive


async def test_a_result_without_a_kind_is_complete(autojump_clock: MockClock) -> None:
    async with open_rig(script=answer_with(b'{"content":[]}')) as rig:
        assert await rig.result(rig.call("x", Agent())) == {"content": []}


async def test_an_error_is_passed_on_whatever_its_status(autojump_clock: MockClock) -> None:
    data: Any = {"requiredCapabilities": {"sampling": {}}}
    async with open_rig() as rig:
        missing = await rig.error(rig.submit("resources/read", Agent(), uri="test://none"))
        assert missing == {
            "code": -32602,
            "message": "there is no such resource",
            "data": {"uri": "test://none"},
        }
        unknown = await rig.error(rig.submit("nonsense/do", Agent()))
        assert unknown["code"] == -32601
        rig.server.reply_next(error_reply(400, -32021, data=data), method=CALL)
        assert (await rig.error(rig.call("echo", Agent())))["data"] == data
        assert (await rig.error(rig.call("error", Agent(), code=-5)))["code"] == -5
        assert rig.session.alive
        assert len(rig.server.requests(DISCOVER)) == 1


@pytest.mark.parametrize("status", [401, 403, 407, 408, 429, 500, 503])
async def test_a_refusal_for_other_reasons_is_a_failure(
    autojump_clock: MockClock, status: int
) -> None:
    async with open_rig() as rig:
        rig.server.reply_next(error_reply(status, -32603), method=CALL)
        failure = await rig.failure(rig.call("counter", Agent()))
        assert (failure.code, failure.status) == ("http_status", status)
        assert rig.session.alive
        assert len(rig.server.requests(DISCOVER)) == 1


async def test_what_breaks_has_its_fate(autojump_clock: MockClock) -> None:
    faults = FaultPlan({1: Fault.connect(), 2: Fault.drop(), 3: Fault.cut(after=5)}, matching=calls)
    async with open_rig(faults=faults) as rig:
        found = [await rig.failure(rig.call("counter", Agent())) for _ in range(3)]
        assert [fate_of(one) for one in found] == ["not_executed", "unknown", "unknown"]
        assert rig.session.alive
        assert faults.fired == 3


async def test_a_classifier_may_call_a_broken_connection_a_loss(autojump_clock: MockClock) -> None:
    def verdict(failure: Failure) -> LossVerdict:
        return LossVerdict(failure.status is None, "gone")

    faults = FaultPlan({1: Fault.connect()}, matching=calls)
    async with open_rig(faults=faults, verdict=verdict) as rig:
        pending = rig.call("counter", Agent())
        await rig.failure(pending)
        assert pending.lost
        assert not rig.session.alive
        assert rig.session.lost == LossVerdict(True, "gone")


async def test_a_stream_without_an_answer_has_an_unknown_fate(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        rig.server.reply_next(Reply.events(), method=CALL)
        failure = await rig.failure(rig.call("counter", Agent()))
        assert failure.code == "no_answer"
        assert fate_of(failure) == "unknown"


async def test_only_the_answer_to_the_request_answers_it(autojump_clock: MockClock) -> None:
    strangers = [
        {"jsonrpc": "2.0", "id": 99, "result": {"content": []}},
        {"jsonrpc": "2.0", "id": "2", "result": {"content": []}},
        {"jsonrpc": "2.0", "id": 2, "result": {"content": ["right"]}},
        {"jsonrpc": "2.0", "id": 2, "result": {"content": ["again"]}},
        {"jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {}},
    ]
    async with open_rig() as rig:
        rig.server.reply_next(Reply.events(*strangers), method=CALL)
        assert await rig.result(rig.call("x", Agent())) == {"content": ["right"]}
        await trio.lowlevel.checkpoint()
        assert rig.dropped("late_reply") == 3
        assert rig.dropped("request") == 1


async def test_an_error_without_an_id_answers_the_request_on_whose_stream_it_is(
    autojump_clock: MockClock,
) -> None:
    error = {"jsonrpc": "2.0", "id": None, "error": {"code": -1, "message": "no"}}
    async with open_rig() as rig:
        rig.server.reply_next(Reply.events(error), method=CALL)
        assert (await rig.error(rig.call("x", Agent())))["code"] == -1


async def test_a_stream_that_stays_open_after_the_answer_is_closed(
    autojump_clock: MockClock,
) -> None:
    answer = {"jsonrpc": "2.0", "id": 2, "result": {"content": []}}
    async with open_rig() as rig:
        rig.server.reply_next(Reply.events(answer, ending="hang"), method=CALL)
        await rig.result(rig.call("x", Agent()))
        assert trio.current_time() == 0.0
        await rig.session.drain(60)
        assert trio.current_time() == pytest.approx(1.0)
        assert rig.session.in_flight == 0
