"""What a server asks and says in the middle of a request, in the handshake era."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock
from unit.session.people_kit import (
    FORM,
    Person,
    call,
    present,
    told,
)
from unit.session.upstream_kit import open_rig, with_settings

from kars_router.config.schema import SessionScope, Timeouts
from kars_router.model import CallOutcome, ToolCall
from kars_router.testing import Reply as Reply_
from kars_router.testing import text_of


async def test_a_question_goes_to_who_made_the_call(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        one, two = Person(), Person(answer=b'{"action":"decline"}')
        got: dict[str, Any] = {}

        async def ask(name: str, person: Person) -> None:
            outcome = await call(rig, person, "ask", method="elicitation/create", params=FORM)
            got[name] = told(outcome)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, "one", one)
            nursery.start_soon(ask, "two", two)
        assert got["one"] == {"result": {"action": "accept", "content": {"n": 1.5}}}
        assert got["two"] == {"result": {"action": "decline"}}
        assert one.asked == two.asked == [("elicitation/create", FORM)]
        # The answer is passed on as it was written.
        answers = [r.body for r in rig.server.log if r.is_answer]
        assert any(b'"n":1.50' in body for body in answers)


@pytest.mark.parametrize(
    ("declared", "method", "params", "missing"),
    [
        (b"{}", "sampling/createMessage", {}, "sampling"),
        (b'{"sampling":{}}', "sampling/createMessage", {"tools": []}, "sampling.tools"),
        (b'{"elicitation":{}}', "elicitation/create", {"mode": "url"}, "elicitation.url"),
        (b'{"sampling":{}}', "roots/list", {}, "roots"),
    ],
)
async def test_what_was_not_declared_is_refused_at_once(
    autojump_clock: MockClock, declared: bytes, method: str, params: Any, missing: str
) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig, capabilities=declared)
        person, start = Person(), trio.current_time()
        answer = told(await call(rig, person, "ask", method=method, params=params))
        assert answer["error"]["code"] == -32601
        assert missing in answer["error"]["message"]
        assert (person.asked, trio.current_time() - start) == ([], 0.0)


async def test_a_method_that_nobody_knows_is_refused(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig, capabilities=b'{"x":{}}')
        person = Person()
        answer = told(await call(rig, person, "ask", method="x/do"))
        assert answer["error"]["code"] == -32601
        assert person.asked == []


async def test_the_server_is_told_what_the_agent_declared(autojump_clock: MockClock) -> None:
    declared = b'{"sampling":{"tools":{}},"x-new":{"n":1.0},"tasks":{"list":{}}}'
    async with open_rig(ping_interval=None) as rig:
        present(rig, capabilities=declared)
        await rig.call("increment")
        bodies = [r.body for r in rig.server.requests("initialize")]
        assert b'"capabilities":{}' in bodies[0]  # the router's own session
        assert b'"capabilities":{"sampling":{"tools":{}},"x-new":{"n":1.0}}' in bodies[1]


async def test_a_shared_session_offers_nothing(autojump_clock: MockClock) -> None:
    shared = with_settings(session_scope=SessionScope.SHARED)
    async with open_rig(settings=shared, ping_interval=None) as rig:
        present(rig)
        person = Person()
        answer = told(await call(rig, person, "ask", method="elicitation/create", params=FORM))
        assert answer["error"]["code"] == -32601
        assert [r.params["capabilities"] for r in rig.server.requests("initialize")] == [{}]
        assert person.asked == []


async def test_the_time_that_a_person_takes_is_not_the_calls(autojump_clock: MockClock) -> None:
    patient = with_settings(timeouts=Timeouts(connect=5.0, call=10.0, input=600.0))
    async with open_rig(settings=patient, ping_interval=None, ping_deadline=1000.0) as rig:
        present(rig)
        person = Person(seconds=599.0)
        outcome = await call(rig, person, "ask", method="elicitation/create", params=FORM)
        assert told(outcome)["result"]["action"] == "accept"
        slow = await call(rig, Person(), "slow", seconds=11)
        assert (slow.code, slow.fate) == ("timeout", "unknown")


async def test_a_person_who_never_answers_is_not_waited_for_for_ever(
    autojump_clock: MockClock,
) -> None:
    patient = with_settings(timeouts=Timeouts(connect=5.0, call=10.0, input=60.0))
    async with open_rig(settings=patient, ping_interval=None, ping_deadline=1000.0) as rig:
        present(rig)
        start = trio.current_time()
        person = Person(seconds=10_000)
        answer = told(await call(rig, person, "ask", method="elicitation/create", params=FORM))
        assert answer["error"]["code"] == -32603
        assert trio.current_time() - start == 60.0
        assert person.interrupted == 1


async def test_questions_end_with_the_call_that_caused_them(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        person = Person(seconds=10_000)

        async def impatient(tool_call: Any) -> dict[str, Any]:
            with trio.move_on_after(2):
                await tool_call.ask("sampling/createMessage", {"messages": []})
            return {"content": [{"type": "text", "text": "gave up"}]}

        rig.server.add_tool("impatient", impatient)
        outcome = await call(rig, person, "impatient")
        assert b"gave up" in (outcome.result or b"")
        await trio.sleep(1.5)
        assert person.interrupted == 1


async def test_a_server_takes_a_question_back(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        person = Person(seconds=10_000)

        async def fickle(tool_call: Any) -> dict[str, Any]:
            with trio.move_on_after(2):
                await tool_call.ask("sampling/createMessage", {"messages": []})
            tool_call.notify("notifications/cancelled", {"requestId": 0})
            await trio.sleep(5)
            return {"content": []}

        rig.server.add_tool("fickle", fickle)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, rig, person, "fickle")
            await trio.sleep(3)
            assert person.interrupted == 1
        answers = [r for r in rig.server.log if r.is_answer]
        assert answers == []


async def test_a_question_on_the_get_stream_goes_to_the_agents_own(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(ping_interval=None) as rig:
        listening = Person(answer=b'{"roots":[{"uri":"file:///a"}]}')
        port = present(rig, listens=listening)
        await rig.call("increment")
        answer = await rig.server.ask("roots/list", None, rig.upstream_id())
        assert answer is not None
        assert answer["result"] == {"roots": [{"uri": "file:///a"}]}
        # With nobody listening the last roots do; a person has to be there for the rest.
        port.listens = None
        answer = await rig.server.ask("roots/list", None, rig.upstream_id())
        assert answer is not None
        assert answer["result"] == {"roots": [{"uri": "file:///a"}]}
        start = trio.current_time()
        answer = await rig.server.ask("elicitation/create", FORM, rig.upstream_id())
        assert answer is not None
        assert answer["error"]["code"] == -32603
        assert trio.current_time() == start


async def test_roots_outlive_a_lost_session(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        listening = Person(answer=b'{"roots":[{"uri":"file:///a"}]}')
        port = present(rig, listens=listening)
        await rig.call("increment")
        await rig.server.ask("roots/list", None, rig.upstream_id())
        port.listens = None
        rig.server.forget()
        await rig.call("increment")
        assert rig.server.requests("initialize")[-1].params["capabilities"]["roots"] == {
            "listChanged": True
        }
        answer = await rig.server.ask("roots/list", None, rig.upstream_id())
        assert answer is not None
        assert answer["result"] == {"roots": [{"uri": "file:///a"}]}


async def test_changed_roots_are_passed_on(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        present(rig, "b", capabilities=b'{"sampling":{}}')
        await rig.call("increment", "a")
        await rig.call("increment", "b")
        rig.router.supervisor.roots_changed("a")
        rig.router.supervisor.roots_changed("b")
        await trio.sleep(1)
        changed = rig.server.requests("notifications/roots/list_changed")
        assert [r.session for r in changed] == [rig.upstream_id("a")]


async def test_the_tenth_thousandth_question_is_not_the_last(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        person = Person(seconds=50)

        async def flood(tool_call: Any) -> dict[str, Any]:
            answers: list[Any] = []

            async def one() -> None:
                answers.append(await tool_call.ask("sampling/createMessage", {"messages": []}))

            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(one)
                    await trio.sleep(0.01)
            refused = [a for a in answers if a is None or "error" in a]
            return {"content": [{"type": "text", "text": str(len(refused))}]}

        rig.server.ping_deadline = 1000.0
        rig.server.add_tool("flood", flood)
        outcome = await call(rig, person, "flood")
        assert text_of(msgspec.json.decode(outcome.result or b"")) == "36"
        assert len(person.asked) == 64


async def test_a_word_about_an_elicitation_reaches_its_agent(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        port = present(rig)
        person = Person()

        async def outside(tool_call: Any) -> dict[str, Any]:
            tool_call.notify("notifications/elicitation/complete", {"elicitationId": "e"})
            await trio.lowlevel.checkpoint()
            return {"content": []}

        rig.server.add_tool("outside", outside)
        await call(rig, person, "outside")
        rig.server.notify(
            "notifications/elicitation/complete", {"elicitationId": "f"}, rig.upstream_id()
        )
        await trio.sleep(1)
        method = "notifications/elicitation/complete"
        assert person.told == [(method, {"elicitationId": "e"})]
        assert port.told == [("s", method, {"elicitationId": "f"})]


# Progress


async def test_progress_comes_back_under_the_agents_own_token(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        people = [Person(), Person()]

        async def slow(person: Person, token: object) -> None:
            params = {
                "name": "slow",
                "arguments": {"seconds": 2},
                "_meta": {"progressToken": token},
            }
            made = ToolCall(agent="a", server="s", tool="slow", params=msgspec.json.encode(params))
            await rig.router.supervisor.call(made, person)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow, people[0], "mine")
            nursery.start_soon(slow, people[1], "mine")
        for person in people:
            assert person.told == [
                ("notifications/progress", {"progressToken": "mine", "progress": 0, "total": 2.0})
            ]
        sent = [r.params["_meta"]["progressToken"] for r in rig.of("a", "tools/call")]
        assert len(set(sent)) == 2
        assert "mine" not in sent


async def test_progress_of_nothing_is_dropped(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        port = present(rig)
        await rig.call("increment")
        for token in ({"progressToken": "x"}, {"progressToken": 0}, {}, None):
            rig.server.notify("notifications/progress", token, rig.upstream_id())
        await trio.sleep(1)
        assert port.told == []
        assert rig.metric("kars_dropped_messages_total", kind="notification") == 4


# Cancellation


async def test_exactly_the_one_call_is_cancelled(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        one, two = Person(), Person()
        outcomes: dict[str, CallOutcome] = {}

        async def slow(name: str, person: Person) -> None:
            outcomes[name] = await call(rig, person, "slow", seconds=20)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(slow, "one", one)
            await rig.server.wait_until(lambda: len(rig.server.requests("tools/call")) == 1)
            nursery.start_soon(slow, "two", two)
            await rig.server.wait_until(lambda: len(rig.server.requests("tools/call")) == 2)
            await trio.sleep(1)
            start = trio.current_time()
            two.withdraw(b'"no longer needed"')
            await trio.sleep(1)
            assert set(outcomes) == {"two"}
            assert trio.current_time() - start == 1
        (cancelled,) = rig.server.requests("notifications/cancelled")
        second = rig.server.requests("tools/call")[1]
        assert cancelled.params == {"requestId": second.id, "reason": "no longer needed"}
        assert (outcomes["two"].code, outcomes["two"].fate) == ("cancelled", "unknown")
        assert outcomes["one"].code == "ok"


async def test_a_call_that_is_cancelled_early_never_leaves(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        present(rig)
        person = Person()
        person.withdraw()
        outcome = await call(rig, person, "increment")
        assert (outcome.code, outcome.fate) == ("cancelled", "not_executed")
        assert rig.server.requests("tools/call") == []
        assert rig.server.requests("notifications/cancelled") == []


async def test_a_question_outside_of_a_call_stops_the_calls_clock(
    autojump_clock: MockClock,
) -> None:
    patient = with_settings(timeouts=Timeouts(connect=5.0, call=10.0, input=600.0))
    async with open_rig(settings=patient, ping_interval=None, ping_deadline=1000.0) as rig:
        present(rig, listens=Person(seconds=400))

        async def aside(tool_call: Any) -> dict[str, Any]:
            await rig.server.ask("elicitation/create", FORM, tool_call.session.id)
            return {"content": []}

        rig.server.add_tool("aside", aside)
        outcome = await call(rig, Person(), "aside")
        assert outcome.code == "ok"


async def test_a_question_after_the_answer_holds_nothing(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None, ping_deadline=1000.0) as rig:
        present(rig)
        answer = {"jsonrpc": "2.0", "id": 0, "result": {"content": []}}
        question = {"jsonrpc": "2.0", "id": 7, "method": "sampling/createMessage", "params": {}}

        def script(received: Any) -> Reply_ | None:
            if received.method != "tools/call":
                return None
            return Reply_.events({**answer, "id": received.id}, question, ending="hang")

        rig.server.script = script
        outcome = await call(rig, Person(seconds=10_000), "increment")
        assert outcome.code == "ok"
        await trio.sleep(60)
        assert rig.session().in_flight == 0
