"""What governance does to a call when somebody is careless, hostile or gone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from agent_kit import BASE
from cells.cell_kit import open_cell
from cells.test_governance import each_cell
from governance_kit import ALLOW, APPROVE, Recording, Scripted, govern, meta
from trio.testing import MockClock, wait_all_tasks_blocked


@each_cell
async def test_what_a_server_says_outside_of_a_call_passes_the_transformers_too(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        plugin = Scripted(rewrite=lambda body: body.replace(b"hunter2", b"[gone]"))
        await govern(cell.router, plugin)
        await cell.agent.watch("test://static")
        await cell.call("echo")
        params = {"uri": "test://static", "title": "hunter2"}
        target: Any = cell.hand if server == "hand" else cell.free
        if server == "free":
            target.change_resource("test://static", "x")
        else:
            target.notify("notifications/resources/updated", params)
            target.notify("notifications/message", {"level": "error", "data": "it is hunter2"})
        await wait_all_tasks_blocked()
        assert cell.agent.heard
        assert "hunter2" not in str(cell.agent.heard)
        if server == "hand":
            assert "[gone]" in str(cell.agent.heard)


async def test_a_question_outside_of_a_call_passes_the_transformers_too(
    autojump_clock: MockClock,
) -> None:
    async with open_cell("handshake", "hand") as cell:
        failing = False

        def rewrite(body: bytes) -> bytes:
            if failing:
                raise ValueError("no")
            return body.replace(b"hunter2", b"[gone]")

        await govern(cell.router, Scripted(rewrite=rewrite))
        await cell.agent.watch()
        await cell.call("echo")
        session = list(cell.hand.sessions)[-1]
        port = cell.router.supervisor._ports[next(iter(cell.router.supervisor._ports))]
        bystander = port.bystander("hand")
        assert bystander is not None
        assert session
        params = b'{"mode":"form","message":"it is hunter2","requestedSchema":{"type":"object"}}'
        assert (await bystander.ask("elicitation/create", params)).result is not None
        ((_, asked),) = cell.agent.asked
        assert asked["message"] == "it is [gone]"
        failing = True
        assert (await bystander.ask("elicitation/create", params)).result is None
        port.notify("hand", "notifications/message", b'{"level":"error","data":"hunter2"}')
        await wait_all_tasks_blocked()
        assert (len(cell.agent.asked), cell.agent.heard) == (1, [])


@each_cell
async def test_arguments_that_can_be_read_in_two_ways_are_refused(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    """A server may take the one of two members that no rule has seen."""
    async with open_cell(agent, server) as cell:
        await govern(cell.router, plugin := Scripted(ALLOW))
        twice = msgspec.Raw(b'{"a":{"path":"/etc/shadow","\\u0070ath":"/tmp/x"}}')
        params = {"name": "echo", "arguments": twice}
        result = await cell.agent.request("tools/call", params)
        assert meta(result)["code"] == "unreadable"
        assert plugin.calls == []
        assert cell.received("tools/call") == []


async def test_a_further_round_needs_no_new_approval_but_the_same_arguments(
    autojump_clock: MockClock,
) -> None:
    async with open_cell("stateless", "free") as cell:
        await govern(cell.router, Scripted(APPROVE))
        cell.agent.answers["elicitation/create"] = {
            "action": "accept",
            "content": {"approve": True},
        }
        arguments = {"method": "roots/list", "params": {}}
        params = {"name": "question", "arguments": arguments}
        result = await cell.agent.request("tools/call", params)
        assert "isError" not in result
        methods = [method for method, _ in cell.agent.asked]
        assert methods == ["elicitation/create", "roots/list"]

        # Now an agent that changes the arguments between the rounds.
        agent: Any = cell.agent
        yes = {"question-1": {"action": "accept", "content": {"approve": True}}}
        held = await agent._once("tools/call", params)
        again = {**params, "inputResponses": yes, "requestState": held["requestState"]}
        asked = await agent._once("tools/call", again)
        assert list(asked["inputRequests"]) == ["q"]
        other = {
            **params,
            "arguments": {**arguments, "more": "than was approved"},
            "inputResponses": {"q": {"roots": []}},
            "requestState": asked["requestState"],
        }
        held = await agent._once("tools/call", other)
        assert held["resultType"] == "input_required"
        assert "approve" in str(held["inputRequests"])
        # The right one opens once.
        right = {**other, "arguments": arguments}
        assert (await agent._once("tools/call", right))["resultType"] == "complete"
        held = await agent._once("tools/call", right)
        assert "needs your approval" in str(held["inputRequests"])


@pytest.mark.parametrize("how", ["drops its connection", "ends its session"])
async def test_an_agent_that_has_left_does_not_get_its_call_made(
    autojump_clock: MockClock, how: str
) -> None:
    async with open_cell("handshake", "hand", capabilities={}) as cell:
        await govern(cell.router, Scripted(APPROVE))
        agent: Any = cell.agent
        scope = trio.CancelScope()

        async def call() -> None:
            with scope:
                await cell.call("echo")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(1)
            if how == "ends its session":
                headers = {"mcp-session-id": agent.session}
                response = await agent.client.delete(f"{BASE}{agent.path}", headers=headers)
                assert response.status_code == 200
            else:
                scope.cancel()
                await wait_all_tasks_blocked()
            ((held, _),) = await cell.router.holder.pending()
            await cell.router.holder.decide(held.id, approve=True, by="ada")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert cell.received("tools/call") == []
        if how == "drops its connection":
            await cell.call("echo")  # finds what was decided
            assert len(cell.received("tools/call")) == 1


@each_cell
async def test_a_disk_that_fails_denies_what_needs_an_approval(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        await govern(cell.router, plugin := Scripted(APPROVE))
        cell.router.governance.recorder = recording = Recording()
        store = cell.router.holder._store
        store._open()
        assert store._db is not None
        store._db.execute("DROP TABLE approvals")
        result = await cell.call("echo")
        assert meta(result) == {
            "fate": "not_executed",
            "code": "approval_unavailable",
            "server": server,
            "retryable": True,
        }
        assert cell.received("tools/call") == []
        assert len(plugin.ends) == 1
        assert [entry[0] for entry in recording.entries] == ["accepted", "ended"]


@each_cell
async def test_a_governor_that_hangs_does_not_hold_up_the_end(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    plugins = [Scripted(ALLOW, slow_after=60.0) for _ in range(4)]
    recording = Recording()
    async with open_cell(agent, server) as cell:
        await govern(cell.router, *plugins)
        cell.router.governance.recorder = recording
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: cell.call("slow", seconds=1000))
            await trio.sleep(1)
            before = trio.current_time()
            nursery.cancel_scope.cancel()
    # What is left of the governors' own time comes on top, for all of them together.
    assert trio.current_time() - before < cell.router.config.shutdown_grace + 2
    assert [entry[0] for entry in recording.entries] == ["accepted", "sent", "ended"]


@each_cell
async def test_a_result_that_cannot_be_checked_is_withheld(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    def fails(body: bytes) -> bytes:
        if b"content" in body:
            raise RuntimeError("no")
        return body

    async with open_cell(agent, server) as cell:
        await govern(cell.router, Scripted(rewrite=fails))
        result = await cell.call("echo", n="hunter2")
        assert (meta(result)["code"], meta(result)["fate"]) == ("policy_error", "executed")
        assert "hunter2" not in str(result)
        assert len(cell.received("tools/call")) == 1
