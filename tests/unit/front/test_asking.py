"""What is told and asked while a request of a handshake-era agent is being answered."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from agent_kit import Listening
from trio.testing import MockClock
from unit.front.handshake_kit import ALL, ELICIT, QUESTION, ask, done, open_kit, settle, told

from kars_router.front.callers import AgentCaller
from kars_router.front.operations import Answer
from kars_router.front.questions import UNHEARD
from kars_router.session.caller import Reply
from kars_router.wire import jsonrpc

PROGRESS = b'{"progressToken":"t","progress":%d}'
CANCELLED = "notifications/cancelled"


def methods(listening: Listening) -> list[str]:
    """What came over a stream, in short."""
    return [message.get("method", "answer") for message in listening.messages]


def is_unheard(reply: Reply) -> bool:
    return reply.error is not None and UNHEARD.encode() in reply.error


async def test_what_is_told_comes_before_the_answer_on_one_stream(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            for number in range(3):
                caller.notify("notifications/progress", PROGRESS % number)
                await trio.sleep(1)
            return done(b'{"x":1.50}')

        async with agent.listen() as standing, agent.call(ident="me") as listening:
            assert listening.response.headers["content-type"] == "text/event-stream"
            await listening.end()
            assert methods(listening) == ["notifications/progress"] * 3 + ["answer"]
            params = [m["params"] for m in listening.messages[:3]]
            assert params == [{"progressToken": "t", "progress": n} for n in range(3)]
            assert b'data: {"jsonrpc":"2.0","id":"me","result":{"x":1.50}}' in listening.content
            assert standing.messages == []
            times = [when - listening.chunks[0][0] for when, _ in listening.chunks]
            assert times == pytest.approx([0, 0, 1, 2, 3], abs=0.1)  # the first one is the priming


async def test_something_told_at_once_makes_a_stream_too(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            caller.notify("notifications/progress", PROGRESS % 1)
            return done()

        async with agent.call() as listening:
            await listening.end()
            assert methods(listening) == ["notifications/progress", "answer"]


async def test_what_is_told_after_the_end_is_dropped(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        callers: list[AgentCaller] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            callers.append(caller)
            return done()

        @kit.on("chatty")
        async def chatty(caller: AgentCaller) -> Answer:
            caller.notify("notifications/progress", PROGRESS % 1)
            callers.append(caller)
            return done()

        await agent.request("tools/call", {"name": "work"})
        async with agent.call("chatty") as listening:
            await listening.end()
        for caller in callers:
            caller.notify("notifications/progress", PROGRESS % 2)
            assert is_unheard(await caller.ask(ELICIT, QUESTION))
        assert len(agent.session.log) == 2


@pytest.mark.parametrize(
    ("method", "params"),
    [
        (ELICIT, QUESTION),
        (ELICIT, b'{"mode":"url","url":"https://x.test","message":"m","elicitationId":"1"}'),
        ("sampling/createMessage", b'{"messages":[],"maxTokens":1.50}'),
        ("roots/list", b""),
    ],
)
async def test_a_question_is_put_on_the_stream_of_its_request(
    autojump_clock: MockClock, method: str, params: bytes
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            return await ask(caller, method, params)

        async with agent.listen() as standing, agent.call(ident=5) as listening:
            await settle()
            (question,) = listening.messages
            assert question["method"] == method
            expected = jsonrpc.decode(params or b"{}")
            expected["_meta"] = {"kars.azure.com/server": "box"}
            assert question["params"] == expected
            await trio.sleep(3000)  # people take their time
            await agent.answer(question["id"], {"action": "accept", "x": [1, None]})
            await listening.end()
            assert listening.messages[1:] == [
                {
                    "jsonrpc": "2.0",
                    "id": 5,
                    "result": {"answer": {"action": "accept", "x": [1, None]}},
                }
            ]
            assert standing.messages == []


async def test_an_agent_s_error_is_the_answer(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        replies: list[Reply] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            replies.append(await caller.ask(ELICIT, QUESTION))
            return done()

        async with agent.call() as listening:
            await settle()
            body = b'{"jsonrpc":"2.0","id":"%b","error":{"code":-1, "x":1.50}}'
            ident = listening.messages[0]["id"].encode()
            assert (await agent.kit.post(body % ident, agent.ident)).status_code == 202
            await listening.end()
        assert replies == [Reply(error=b'{"code":-1, "x":1.50}')]


async def test_answers_are_matched_by_id_and_type(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent, other = await kit.connect(), await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            async with trio.open_nursery() as nursery:
                answers: dict[str, Any] = {}

                async def one(name: str) -> None:
                    question = b'{"messages":[],"maxTokens":1,"n":"%b"}' % name.encode()
                    reply = await caller.ask("sampling/createMessage", question)
                    answers[name] = jsonrpc.decode(reply.result or b"null")

                for name in "abc":
                    nursery.start_soon(one, name)
            return done(jsonrpc.encode(answers))

        async with agent.call() as listening:
            await settle()
            asked = {m["params"]["n"]: m["id"] for m in listening.messages}
            assert len(set(asked.values())) == 3
            strangers: list[Any] = [1, "", "1", asked["a"] + "0", asked["a"].upper() + "-", 0.5]
            for ident in strangers:
                await agent.answer(ident, {"wrong": 1})
            await other.answer(asked["a"], {"wrong": 2})
            for name in "cab":
                await agent.answer(asked[name], {"is": name})
                await agent.answer(asked[name], {"wrong": 3})
            await listening.end()
            result = listening.messages[-1]["result"]
            assert result == {name: {"is": name} for name in "abc"}
        assert kit.sample("kars_agent_replies_dropped_total") == len(strangers) + 1 + 3


async def test_what_an_agent_did_not_declare_it_is_not_asked(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect(capabilities={"elicitation": {}})

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            return told(await caller.ask("sampling/createMessage", b'{"messages":[]}'))

        answer = await agent.request("tools/call", {"name": "work"})
        assert answer["result"]["answer"]["code"] == jsonrpc.METHOD_NOT_FOUND
        assert len(agent.session.questions) == 0


async def test_a_question_to_an_agent_that_has_left_is_refused_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        replies: list[Reply] = []
        ended = trio.Event()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(5)
            started = trio.current_time()
            caller.notify("notifications/progress", PROGRESS % 1)
            replies.append(await caller.ask(ELICIT, QUESTION))
            assert trio.current_time() == started
            ended.set()
            return done()

        with trio.move_on_after(1):
            async with agent.call():
                pass
        await ended.wait()
        assert is_unheard(replies[0])
        assert len(agent.session.log) == 0


@pytest.mark.parametrize("revision", ["2025-03-26", "2025-06-18"])
async def test_nobody_can_come_back_to_a_stream_without_an_event(
    autojump_clock: MockClock, revision: str
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect(revision)
        replies: list[Reply] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(40)
            replies.append(await caller.ask(ELICIT, QUESTION))
            return done(undo=(undone.set,))

        undone = trio.Event()
        async with agent.call() as listening:
            await trio.sleep(17)
            assert listening.ids == []
        with trio.fail_after(35):
            await undone.wait()
        assert is_unheard(replies[0])


async def test_a_question_ends_with_the_session(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            first = await caller.ask(ELICIT, QUESTION)
            second = await caller.ask(ELICIT, QUESTION)
            assert is_unheard(second)
            return told(first)

        async with agent.call() as listening:
            await settle()
            kit.agents.end(agent.session, "because")
            await listening.end()
            assert methods(listening) == [ELICIT, "answer"]  # which it gets all the same
            assert UNHEARD in listening.messages[-1]["result"]["answer"]["message"]


async def test_the_number_of_open_questions_is_limited(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        replies: list[Reply] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            async def one() -> None:
                replies.append(await caller.ask(ELICIT, QUESTION))

            async with trio.open_nursery() as nursery:
                for _ in range(70):
                    nursery.start_soon(one)
            return done()

        async with agent.call() as listening, agent.call() as second:
            await settle()
            asked = [m for m in (*listening.messages, *second.messages) if "method" in m]
            assert (len(asked), len(replies)) == (64, 140 - 64)
            assert all(b"64 questions" in (reply.error or b"") for reply in replies)
            await agent.answer(asked[0]["id"], {})
            assert len(agent.session.questions) == 63
            for question in asked[1:]:
                await agent.answer(question["id"], {})
            await listening.end()
            await second.end()
        assert len(agent.session.log) == 2


async def test_a_question_that_is_taken_back_is_cancelled(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            with trio.move_on_after(3):
                await caller.ask(ELICIT, QUESTION)
            caller.notify("notifications/progress", PROGRESS % 1)
            return done()

        async with agent.call() as listening:
            await listening.end()
            assert methods(listening) == [ELICIT, CANCELLED, "notifications/progress", "answer"]
            asked, cancelled, *_ = listening.messages
            assert cancelled["params"] == {"requestId": asked["id"]}
            await agent.answer(asked["id"], {})
            assert kit.sample("kars_agent_replies_dropped_total") == 1


async def test_a_question_that_its_request_outlives_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        replies: list[Reply] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            async def one() -> None:
                replies.append(await caller.ask(ELICIT, QUESTION))

            nursery.start_soon(one)
            await trio.sleep(1)
            return done()

        async with agent.call() as listening:
            await listening.end()
            assert methods(listening) == [ELICIT, CANCELLED, "answer"]
        await settle()
        assert len(replies) == 1
        assert replies[0].error is not None


async def test_a_question_that_was_never_sent_is_taken_back_in_silence(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            caller.notify("notifications/progress", PROGRESS % 1)
            with trio.CancelScope() as scope:
                scope.cancel()
                await caller.ask(ELICIT, QUESTION)
            return done()

        async with agent.call() as listening:
            await listening.end()
            assert methods(listening) == ["notifications/progress", "answer"]


async def test_who_listens_can_be_asked_outside_of_any_request(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        port = agent.port
        replies: list[Reply] = []

        async def one() -> None:
            caller = port.bystander("box")
            assert caller is not None
            caller.notify("notifications/message", b'{"level":"debug","data":1}')
            caller.notify("notifications/message", b'{"level":"info","data":1}')
            replies.append(await caller.ask("roots/list", b""))

        await agent.request("logging/setLevel", {"level": "info"})
        assert port.bystander("box") is None
        async with agent.listen() as old, agent.listen() as listening:
            await settle()
            nursery.start_soon(one)
            await settle()
            assert (methods(old), methods(listening)) == (
                [],
                ["notifications/message", "roots/list"],
            )
            await agent.answer(listening.messages[1]["id"], {"roots": []})
        assert replies == [Reply(result=b'{"roots":[]}')]
        await settle()
        assert port.bystander("box") is None


async def test_a_bystander_that_left_in_between_is_not_waited_for(
    autojump_clock: MockClock,
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect(capabilities=ALL)
        async with agent.listen():
            await settle()
            caller = agent.port.bystander("box")
            assert caller is not None
        await settle()
        assert is_unheard(await caller.ask("roots/list", b""))


async def test_in_a_batch_all_speak_on_one_stream(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect("2025-03-26")

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            return await ask(caller)

        batch = [
            {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {"name": "work"}}
            for n in range(2)
        ]
        async with kit.open(batch, agent.ident) as listening:
            await settle()
            questions = listening.messages
            assert [m["method"] for m in questions] == [ELICIT, ELICIT]
            for question in questions:
                await agent.answer(question["id"], {"to": question["id"]})
            await listening.end()
            (line,) = [x for x in listening.content.splitlines() if x.startswith(b"data: [")]
            answers = jsonrpc.decode(line[6:])
            assert [answer["id"] for answer in answers] == [0, 1]
            given = {answer["result"]["answer"]["to"] for answer in answers}
            assert given == {question["id"] for question in questions}
