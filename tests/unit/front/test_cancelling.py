"""Requests that their agent takes back."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import trio
from agent_kit import rpc
from trio.testing import MockClock
from unit.front.handshake_kit import Agent, ask, done, open_kit, settle

from kars_router.front.callers import AgentCaller
from kars_router.front.operations import Answer
from kars_router.wire import jsonrpc

pytestmark = pytest.mark.usefixtures("each_listener")

CANCELLED = "notifications/cancelled"


async def hold(caller: AgentCaller) -> Answer:
    """A tool that works until it is cancelled."""
    while not caller.withdrawn:  # noqa: ASYNC110 - in virtual time
        await trio.sleep(1)
    return Answer(withdrawn=True)


def call(ident: Any) -> dict[str, Any]:
    return rpc("tools/call", {"name": "work"}, ident)


@pytest.mark.parametrize(
    ("ident", "others"), [(0, ["0", 1]), ("0", [0, ""]), (1, [1.5, "1"]), ("a", ["A", "a "])]
)
async def test_exactly_the_request_of_the_id_is_withdrawn(
    autojump_clock: MockClock, ident: Any, others: list[Any]
) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent, stranger = await kit.connect(), await kit.connect()
        kit.on("work")(hold)
        for each in (ident, *others):
            nursery.start_soon(agent.post, call(each))
        nursery.start_soon(stranger.post, call(ident))
        await settle()
        mine, theirs = agent.session.requests, stranger.session.requests
        before = dict(mine)
        await agent.notify(CANCELLED, {"requestId": ident, "reason": "because é"})
        key = jsonrpc.encode(ident)
        assert before[key].withdrawn
        assert before[key].reason == '"because é"'.encode()
        assert not any(c.withdrawn for k, c in before.items() if k != key)
        assert not any(c.withdrawn for c in theirs.values())
        for each in (*others, ident):
            await agent.notify(CANCELLED, {"requestId": each})
            await stranger.notify(CANCELLED, {"requestId": each})


async def test_a_withdrawn_request_gets_no_answer(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        responses: list[httpx.Response] = []
        kit.on("work")(hold)

        async def post() -> None:
            responses.append(await agent.post(call(1)))

        nursery.start_soon(post)
        await settle()
        await agent.notify(CANCELLED, {"requestId": 1})
        await trio.sleep(2)
        (response,) = responses
        assert (response.status_code, response.content) == (200, b"")
        assert response.headers["content-type"] == "text/event-stream"
        assert agent.session.requests == {}


async def test_an_answer_that_comes_too_late_is_not_sent(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        undone: list[int] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            await trio.sleep(20)
            return done(undo=(lambda: undone.append(1),))

        async def cancel() -> None:
            await trio.sleep(16)
            await agent.notify(CANCELLED, {"requestId": 1})

        nursery.start_soon(cancel)
        async with agent.call() as listening:
            await listening.end()
            assert listening.messages == []
            assert len(listening.ids) == 1
        assert undone == [1]
        assert len(agent.session.log) == 0
        assert agent.session.log.find(listening.ids[0]) is None


async def test_a_withdrawn_request_takes_its_questions_back(autojump_clock: MockClock) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        kit.on("work")(ask)
        async with agent.call(ident=1) as listening, agent.call(ident=2) as other:
            await settle()
            (question,) = listening.messages
            await agent.notify(CANCELLED, {"requestId": 1, "reason": "why"})
            await listening.end()
            assert listening.messages[1:] == [
                {
                    "jsonrpc": "2.0",
                    "method": CANCELLED,
                    "params": {"requestId": question["id"], "reason": "why"},
                }
            ]
            # The other one's question goes on.
            await agent.answer(other.messages[0]["id"], {})
            await other.end()
            assert other.messages[-1]["id"] == 2


async def test_nothing_is_said_for_a_withdrawn_request(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        errors: list[bytes | None] = []

        @kit.on("work")
        async def work(caller: AgentCaller) -> Answer:
            while not caller.withdrawn:  # noqa: ASYNC110 - in virtual time
                await trio.sleep(1)
            caller.notify("notifications/progress", b'{"progressToken":1,"progress":1}')
            errors.append((await caller.ask("roots/list", b"")).error)
            return Answer(withdrawn=True)

        async with trio.open_nursery() as inner:
            responses: list[httpx.Response] = []

            async def post() -> None:
                responses.append(await agent.post(call(1)))

            inner.start_soon(post)
            await settle()
            await agent.notify(CANCELLED, {"requestId": 1})
        assert responses[0].content == b""
        assert len(errors) == 1
        assert errors[0] is not None
        nursery.cancel_scope.cancel()


async def test_a_batch_leaves_out_what_was_withdrawn(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect("2025-03-26")
        kit.on("work")(hold)
        contents: list[bytes] = []

        async def post(*batch: Any) -> None:
            contents.append((await agent.post([*batch])).content)

        nursery.start_soon(post, call(1), rpc("ping", ident=2))
        await settle()
        await agent.notify(CANCELLED, {"requestId": 1})
        await trio.sleep(2)
        nursery.start_soon(post, call(3))
        await settle()
        await agent.notify(CANCELLED, {"requestId": 3})
        await trio.sleep(2)
        assert contents == [b'[{"jsonrpc":"2.0","id":2,"result":{}}]', b""]


@pytest.mark.parametrize(
    "params",
    [
        None,
        {},
        {"requestId": None},
        {"requestId": [1]},
        {"requestId": 9},
        {"requestId": 9, "reason": 7},
        [],
    ],
)
async def test_a_cancellation_of_nothing_is_taken_and_dropped(
    autojump_clock: MockClock, params: Any
) -> None:
    async with open_kit() as kit:
        agent = await kit.connect()
        await agent.notify(CANCELLED, params)
        assert (await agent.request("ping"))["result"] == {}


async def test_a_reason_that_is_no_text_is_left_out(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        kit.on("work")(hold)
        nursery.start_soon(agent.post, call(1))
        await settle()
        (caller,) = kit.operations.callers
        await agent.notify(CANCELLED, {"requestId": 1, "reason": {"x": 1}})
        assert (caller.withdrawn, caller.reason) == (True, b"")


async def test_initialize_cannot_be_cancelled(autojump_clock: MockClock) -> None:
    async with open_kit() as kit, trio.open_nursery() as nursery:
        agent = await kit.connect()
        kit.operations.slow = 5
        found: list[Agent] = []

        async def begin() -> None:
            found.append(await kit.connect())

        nursery.start_soon(begin)
        await settle()
        await agent.notify(CANCELLED, {"requestId": 1})
        await trio.sleep(6)
        assert (await found[0].request("ping"))["result"] == {}
