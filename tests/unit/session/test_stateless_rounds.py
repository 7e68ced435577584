from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock
from unit.session.stateless_kit import Agent, calls, open_rig

from kars_router.loss import fate_of
from kars_router.session.rounds import MOST_ROUNDS
from kars_router.testing import Fault, FaultPlan, Received, Reply
from kars_router.testing.stateless_server import StatelessCall

CALL = "tools/call"
ELICIT = "elicitation/create"
SAMPLE = "sampling/createMessage"
ROOTS = "roots/list"
NAMED: dict[str, Any] = {"action": "accept", "content": {"name": "Ada"}}
# As no encoder here would write it.
STATE = rb'"\u0041\/\ud83d\ude00 \u00e9"'


def form(message: str) -> dict[str, Any]:
    return {"method": ELICIT, "params": {"message": message, "requestedSchema": {}}}


def asking(result: bytes) -> Any:
    """Answers the first call by these bytes, and the next ones as the server does."""
    left = [result]

    def script(received: Received) -> Reply | None:
        if received.method != CALL or not left:
            return None
        body = b'{"jsonrpc":"2.0","id":%d,"result":%b}' % (received.id, left.pop())
        return Reply(headers={"content-type": "application/json"}, body=body)

    return script


async def test_an_agent_that_knows_no_rounds_is_asked_while_it_waits(
    autojump_clock: MockClock,
) -> None:
    agent = Agent(answers={ELICIT: NAMED})
    async with open_rig() as rig:
        arguments = {"requests": {"q": form("who?")}, "x": 1}
        pending = rig.submit(CALL, agent, name="ask", arguments=arguments, meta={"k": [1]})
        result = await rig.result(pending)
        assert msgspec.json.decode(result["content"][0]["text"]) == [{"q": NAMED}]
        assert "resultType" not in result
        assert agent.asked == [(0.0, ELICIT, form("who?")["params"])]
        first, second = rig.server.requests(CALL)
        assert first.id != second.id
        assert "inputResponses" not in first.params
        assert second.params["inputResponses"] == {"q": NAMED}
        assert second.params["requestState"] in rig.server.states
        for received in (first, second):
            assert received.params["arguments"] == arguments
            assert received.params["_meta"]["k"] == [1]
            assert received.headers["mcp-name"] == "ask"


async def test_the_state_comes_back_as_it_was_written(autojump_clock: MockClock) -> None:
    result = b'{"resultType":"input_required","requestState":%b}' % STATE
    async with open_rig(script=asking(result)) as rig:
        await rig.text("echo", Agent())
        first, second = rig.server.requests(CALL)
        assert STATE in second.body
        assert "inputResponses" not in second.params
        assert first.id != second.id


async def test_without_a_state_none_is_sent(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ROOTS: {"roots": [{"uri": "file:///a"}]}})
    result = b'{"resultType":"input_required","inputRequests":{"":{"method":"roots/list"}}}'
    async with open_rig(script=asking(result)) as rig:
        await rig.text("echo", agent)
        second = rig.server.requests(CALL)[1]
        assert "requestState" not in second.params
        assert second.params["inputResponses"] == {"": {"roots": [{"uri": "file:///a"}]}}
        assert agent.asked == [(0.0, ROOTS, {})]


async def test_an_agent_that_knows_rounds_gets_them_itself(autojump_clock: MockClock) -> None:
    agent = Agent(multi_round=True)
    raw = b'{"requestState" : %b, "resultType":"input_required"}' % STATE
    async with open_rig(script=asking(raw)) as rig:
        pending = rig.call("ask", agent)
        await rig.result(pending)
        assert pending.reply is not None
        assert pending.reply.result == raw
        again = b'{"name":"echo","inputResponses":{"a":{"b":1.00}},"requestState":%b}' % STATE
        await rig.result(rig.session.submit(CALL, again, time_limit=5, caller=agent))
        received = rig.server.requests(CALL)[-1]
        assert b'"inputResponses":{"a":{"b":1.00}}' in received.body
        assert STATE in received.body
        assert agent.asked == []


async def test_all_questions_of_a_round_are_put_at_once(autojump_clock: MockClock) -> None:
    agent = Agent(
        answers={ELICIT: NAMED, SAMPLE: {"role": "assistant"}, ROOTS: {"roots": []}}, hold=30.0
    )
    requests = {
        "a": form("one"),
        "b": {"method": SAMPLE, "params": {"messages": []}},
        "c": {"method": ROOTS, "params": {}},
        "d": form("two"),
    }
    async with open_rig() as rig:
        answer = msgspec.json.decode(await rig.text("ask", agent, requests=requests))
        assert trio.current_time() == pytest.approx(30.0)
        assert answer == [{"a": NAMED, "b": {"role": "assistant"}, "c": {"roots": []}, "d": NAMED}]
        assert sorted(method for _, method, _ in agent.asked) == sorted(
            [ELICIT] * 2 + [SAMPLE, ROOTS]
        )


async def test_each_round_carries_its_own_answers_only(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED})
    async with open_rig() as rig:
        answers = msgspec.json.decode(await rig.text("ask_twice", agent))
        assert answers == [{"name": NAMED}] * 2
        sent = [r.params for r in rig.server.requests(CALL)]
        assert len(sent) == 3
        assert sent[1]["requestState"] != sent[2]["requestState"]
        assert sent[2]["inputResponses"] == {"name": NAMED}


async def test_rounds_have_an_end(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED})
    async with open_rig() as rig:
        answers = msgspec.json.decode(await rig.text("ask", agent, rounds=MOST_ROUNDS))
        assert len(answers) == MOST_ROUNDS == 10
        before = len(rig.server.requests(CALL))
        failure = await rig.failure(rig.call("ask", agent, rounds=MOST_ROUNDS + 1))
        assert failure.code == "protocol"
        assert fate_of(failure) == "unknown"
        assert len(rig.server.requests(CALL)) - before == MOST_ROUNDS + 1
        assert rig.session.alive


async def test_other_methods_may_ask_too(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED})
    async with open_rig() as rig:
        result = await rig.result(rig.submit("prompts/get", agent, name="ask"))
        assert "Ada" in result["messages"][0]["content"]["text"]


async def test_methods_that_may_not_ask_are_not_believed(autojump_clock: MockClock) -> None:
    reply = Reply.json({"jsonrpc": "2.0", "id": 2, "result": {"resultType": "input_required"}})
    async with open_rig() as rig:
        rig.server.reply_next(reply, method="tools/list")
        failure = await rig.failure(rig.submit("tools/list", Agent(multi_round=True)))
        assert failure.code == "protocol"


# What an agent refuses


async def test_what_an_agent_refuses_is_told_in_the_words_there_are(
    autojump_clock: MockClock,
) -> None:
    requests = {"a": form("one"), "c": {"method": ROOTS}}
    async with open_rig() as rig:
        answer = msgspec.json.decode(await rig.text("ask", Agent(), requests=requests))
        assert answer == [{"a": {"action": "cancel"}, "c": {"roots": []}}]


@pytest.mark.parametrize("method", [SAMPLE, "dreams/create"])
async def test_where_there_are_no_words_the_call_ends_with_an_error(
    autojump_clock: MockClock, method: str
) -> None:
    agent = Agent(answers={ELICIT: NAMED})
    requests = {"a": form("one"), "b": {"method": method, "params": {}}}
    async with open_rig() as rig:
        error = await rig.error(rig.call("ask", agent, requests=requests))
        assert error["code"] == -32603
        assert method in error["message"]
        assert len(rig.server.requests(CALL)) == 1
        assert rig.session.alive


async def test_a_server_may_not_ask_everything_at_once(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED})
    async with open_rig() as rig:
        most = {str(n): form("?") for n in range(64)}
        assert await rig.text("ask", agent, requests=most)
        error = await rig.error(rig.call("ask", agent, requests={**most, "x": form("?")}))
        assert "64" in error["message"]
        assert len(agent.asked) == 64


async def test_an_undeclared_capability_is_the_servers_to_complain_about(
    autojump_clock: MockClock,
) -> None:
    async with open_rig() as rig:
        error = await rig.error(rig.call("ask", Agent(capabilities=b"{}")))
        assert error["code"] == -32021
        assert error["data"] == {"requiredCapabilities": {"elicitation": {}}}


async def test_a_web_page_to_visit_gets_an_id_if_it_has_none(autojump_clock: MockClock) -> None:
    def page(**more: str) -> dict[str, Any]:
        params = {"mode": "url", "message": "pay", "url": "https://pay.test/", **more}
        return {"method": ELICIT, "params": params}

    agent = Agent(answers={ELICIT: {"action": "accept"}})
    async with open_rig() as rig:
        await rig.text("ask", agent, requests={"a": page(), "b": page()})
        await rig.text("ask", agent, requests={"a": page(elicitationId="theirs")})
        ids = [params["elicitationId"] for _, _, params in agent.asked]
        assert len(set(ids)) == 3
        assert ids[2] == "theirs"
        assert all(len(ident) >= 6 for ident in ids)
        assert agent.asked[0][2]["url"] == "https://pay.test/"
        await rig.text("ask", agent)
        assert "elicitationId" not in agent.asked[3][2]


# Time, and the end of it


async def test_time_stands_still_while_the_agent_is_asked(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED}, hold=100.0)

    async def slow(call: StatelessCall) -> Any:
        await trio.sleep(4)
        if call.answers is not None:
            return {"content": []}
        return call.ask({"a": form("?")}, None)

    async with open_rig(prepare=lambda s: s.add_tool("slow", slow)) as rig:
        await rig.result(rig.call("slow", agent, limit=10.0))
        assert trio.current_time() == pytest.approx(108.0)
        failure = await rig.failure(rig.call("slow", agent, limit=7.0))
        assert failure.code == "timeout"
        assert trio.current_time() == pytest.approx(108.0 + 107.0)


async def test_an_agent_that_does_not_answer_has_refused(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED}, hold=1e6)
    async with open_rig(input_timeout=60.0) as rig:
        answer = msgspec.json.decode(await rig.text("ask", agent))
        assert answer == [{"name": {"action": "cancel"}}]
        assert trio.current_time() == pytest.approx(60.0)
        assert agent.taken_back == 1


async def test_cancelling_takes_the_question_back(autojump_clock: MockClock) -> None:
    agent = Agent(hold=1e6)
    async with open_rig() as rig:
        pending = rig.call("ask", agent)
        await trio.sleep(5)
        agent.withdraw()
        failure = await rig.failure(pending)
        assert failure.code == "cancelled"
        assert fate_of(failure) == "unknown"
        assert agent.taken_back == 1
        assert len(rig.server.requests(CALL)) == 1


async def test_the_end_of_the_session_takes_the_question_back(autojump_clock: MockClock) -> None:
    agent = Agent(hold=1e6)
    async with open_rig() as rig:
        pending = rig.call("ask", agent)
        await trio.sleep(5)
    assert agent.taken_back == 1
    assert pending.lost


async def test_what_the_server_has_seen_in_an_earlier_round_stays_seen(
    autojump_clock: MockClock,
) -> None:
    faults = FaultPlan({2: Fault.connect()}, matching=calls)
    async with open_rig(faults=faults) as rig:
        failure = await rig.failure(rig.call("ask", Agent()))
        assert failure.code == "connect"
        assert fate_of(failure) == "unknown"


@pytest.mark.parametrize(
    "result",
    [
        b'{"resultType":"input_required"}',
        b'{"resultType":"input_required","inputRequests":5}',
        b'{"resultType":"input_required","inputRequests":{"a":{"params":{}}}}',
        b'{"resultType":"input_required","inputRequests":{"a":{"method":"roots/list","params":1}}}',
    ],
)
async def test_questions_that_cannot_be_read_are_a_failure(
    autojump_clock: MockClock, result: bytes
) -> None:
    async with open_rig(script=asking(result)) as rig:
        failure = await rig.failure(rig.call("echo", Agent()))
        assert failure.code == "protocol"
        assert rig.session.alive


async def test_progress_of_each_round_comes_back(autojump_clock: MockClock) -> None:
    agent = Agent(answers={ELICIT: NAMED})

    async def working(call: StatelessCall) -> Any:
        await trio.lowlevel.checkpoint()
        call.progress(1 if call.answers is None else 2, 2)
        return call.ask({"a": form("?")}, None) if call.answers is None else {"content": []}

    async with open_rig(prepare=lambda s: s.add_tool("working", working)) as rig:
        await rig.result(rig.submit(CALL, agent, name="working", meta={"progressToken": "t"}))
        assert [p["progress"] for _, p in agent.told] == [1, 2]
        tokens = [r.params["_meta"]["progressToken"] for r in rig.server.requests(CALL)]
        assert tokens[0] != tokens[1]
        assert all(p["progressToken"] == "t" for _, p in agent.told)


@pytest.mark.parametrize(
    "refusal",
    [
        Reply.text(404),
        Reply.text(429),
    ],
    ids=["404", "429"],
)
async def test_a_call_that_had_begun_is_never_said_to_be_unexecuted(
    autojump_clock: MockClock, refusal: Reply
) -> None:
    async with open_rig() as rig:

        def second_round(received: Received) -> Reply | None:
            return refusal if "inputResponses" in received.params else None

        rig.server.script = second_round
        failure = await rig.failure(rig.call("ask", Agent()))
        assert failure.begun
        assert fate_of(failure) == "unknown"
