"""What governance does to a call, for agents and servers of each era."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import evolve
from cells.cell_kit import open_cell
from governance_kit import ALLOW, APPROVE, CALL, DENY, Recording, Scripted, govern, meta
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.config.frozenmap import FrozenMap
from kars_router.model import ApprovalTerms, Decision, Fate, Ruling
from kars_router.testing import Reply, RpcError, text_of

CELLS = [(agent, server) for agent in ("handshake", "stateless") for server in ("hand", "free")]
each_cell = pytest.mark.parametrize(("agent", "server"), CELLS, ids=lambda value: value)


@each_cell
async def test_kars_governors_see_a_call_and_its_end(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server, prefixed=True) as cell:
        plugin = Scripted(ALLOW)
        await govern(cell.router, plugin)
        result = await cell.call("echo", n=1)
        assert result["structuredContent"] == {"n": 1}
        (call,) = plugin.calls
        assert (call.server, call.method, call.name) == (server, "tools/call", "echo")
        assert call.arguments == {"n": 1}
        assert call.client == "cells"
        ((same, end),) = plugin.ends
        assert same.id == call.id
        assert (end.fate, end.code, end.decision.ruling) == (Fate.EXECUTED, "ok", Ruling.ALLOW)
        assert b'"n":1' in (end.result or b"")


@each_cell
async def test_a_denied_call_never_reaches_its_server(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        plugin, other = Scripted(ALLOW), Scripted(DENY)
        await govern(cell.router, plugin, other)
        result = await cell.call("echo", secret="hunter2")
        assert result["isError"] is True
        assert meta(result) == {
            "fate": "not_executed",
            "code": "denied",
            "server": server,
            "retryable": False,
        }
        assert text_of(result) == "Not on a Sunday."
        assert "hunter2" not in str(result)
        assert cell.received("tools/call") == []
        # Each governor that was asked hears of the end.
        assert [end.decision.rule for _, end in plugin.ends] == ["sunday"]


@each_cell
async def test_every_kind_of_request_is_decided_on(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        plugin = Scripted(DENY)
        await govern(cell.router, plugin)
        ref = {"type": "ref/prompt", "name": "greet"}
        for method, params in (
            ("resources/read", {"uri": "test://static"}),
            ("prompts/get", {"name": "greet", "arguments": {"who": "x"}}),
            ("completion/complete", {"ref": ref, "argument": {"name": "name", "value": ""}}),
        ):
            with pytest.raises(RpcError) as caught:
                await cell.agent.request(method, params)
            assert caught.value.data[CALL]["code"] == "denied"
            assert cell.received(method) == []
        assert [call.name for call in plugin.calls] == ["test://static", "greet", "greet"]
        assert [call.arguments for call in plugin.calls] == [
            {},
            {"who": "x"},
            {"name": "name", "value": ""},
        ]


@each_cell
@pytest.mark.parametrize("how", ["raises", "hangs", "nonsense"])
async def test_a_governor_that_fails_has_said_no(
    autojump_clock: MockClock, agent: str, server: str, how: str
) -> None:
    async with open_cell(agent, server) as cell:
        broken: Any = {"raises": ValueError("x"), "hangs": ALLOW, "nonsense": True}[how]
        plugin = Scripted(broken, slow=6.0 if how == "hangs" else 0.0)
        await govern(cell.router, plugin)
        result = await cell.call("echo")
        assert meta(result)["code"] == "policy_error"
        assert cell.received("tools/call") == []


@each_cell
@pytest.mark.parametrize("how", ["denies", "raises", "hangs"])
async def test_a_result_can_be_withheld(
    autojump_clock: MockClock, agent: str, server: str, how: str
) -> None:
    async with open_cell(agent, server) as cell:
        said: Any = {"denies": DENY, "raises": ValueError("x"), "hangs": None}[how]
        await govern(cell.router, Scripted(ALLOW, said, slow_after=60.0 if how == "hangs" else 0.0))
        before = trio.current_time()
        result = await cell.call("echo", secret="hunter2")
        assert trio.current_time() - before < cell.router.governance.deadline + 1
        assert meta(result)["fate"] == "executed"
        assert meta(result)["code"] == ("denied" if how == "denies" else "policy_error")
        assert "hunter2" not in str(result)
        assert len(cell.received("tools/call")) == 1


@each_cell
async def test_kars_transformers_change_what_passes(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        await govern(
            cell.router, Scripted(rewrite=lambda body: body.replace(b"hunter2", b"[gone]"))
        )
        result = await cell.call("echo", password="hunter2", n=1)
        assert result["structuredContent"] == {"password": "[gone]", "n": 1}
        (call,) = cell.received("tools/call")
        assert call.params["arguments"]["password"] == "[gone]"
        with pytest.raises(RpcError) as caught:
            await cell.call("error", code=-31234, message="it is hunter2")
        assert "hunter2" not in caught.value.message


@each_cell
async def test_a_transformer_that_fails_lets_nothing_pass(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:

        def fails(body: bytes) -> bytes:
            raise RuntimeError("no")

        await govern(cell.router, Scripted(rewrite=fails))
        result = await cell.call("echo")
        assert (meta(result)["code"], meta(result)["fate"]) == ("policy_error", "not_executed")
        assert cell.received("tools/call") == []


@each_cell
async def test_the_person_behind_the_agent_approves(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        plugin = Scripted(APPROVE)
        await govern(cell.router, plugin)
        cell.agent.answers["elicitation/create"] = {
            "action": "accept",
            "content": {"approve": True},
        }
        result = await cell.call("echo", n=1)
        assert result["structuredContent"] == {"n": 1}
        ((method, params),) = cell.agent.asked
        assert method == "elicitation/create"
        assert "It deletes things." in params["message"]
        assert '{"n":1}' in params["message"]
        ((_, end),) = plugin.ends
        assert (end.decision.ruling, end.decision.code) == (Ruling.ALLOW, "approved")
        # Each call is asked about anew.
        await cell.call("echo", n=1)
        assert len(cell.agent.asked) == 2


@each_cell
@pytest.mark.parametrize(
    "answer",
    [{"action": "decline"}, {"action": "accept", "content": {"approve": False}}],
    ids=["declines", "says no"],
)
async def test_the_person_behind_the_agent_denies(
    autojump_clock: MockClock, agent: str, server: str, answer: Any
) -> None:
    async with open_cell(agent, server) as cell:
        await govern(cell.router, Scripted(APPROVE))
        cell.agent.answers["elicitation/create"] = answer
        result = await cell.call("echo", n=1)
        assert meta(result)["code"] == "approval_denied"
        assert cell.received("tools/call") == []


@each_cell
@pytest.mark.parametrize("approve", [True, False])
async def test_an_operator_decides_while_the_agent_hears_of_it(
    autojump_clock: MockClock, agent: str, server: str, approve: bool
) -> None:
    async with open_cell(agent, server, capabilities={}) as cell:
        await govern(cell.router, Scripted(APPROVE))
        holder, results = cell.router.holder, []

        async def call() -> None:
            params = {
                "name": "slow",
                "arguments": {"seconds": 1},
                "_meta": {"progressToken": "mine"},
            }
            results.append(await cell.agent.request("tools/call", params))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(12)
            ((held, waiting),) = await holder.pending()
            assert (held.name, held.server, waiting) == ("slow", server, True)
            assert held.arguments == '{"seconds":1}'
            await holder.decide(held.id, approve=approve, by="ada", comment="because")
        (result,) = results
        told = [m["params"] for m in cell.agent.said if m["method"] == "notifications/progress"]
        assert all(each["progressToken"] == "mine" for each in told)
        rising = [each["progress"] for each in told]
        assert rising == sorted(set(rising))
        assert len(rising) == (4 if approve else 3)  # the last one is the server's
        assert "approve" in told[0]["message"]
        if approve:
            assert "_meta" not in result or CALL not in result["_meta"]
        else:
            assert meta(result)["code"] == "approval_denied"
            assert "because" in text_of(result)
        assert len(cell.received("tools/call")) == approve
        assert await holder.pending() == []
        with pytest.raises(LookupError):
            await holder.decide(held.id, approve=True, by="ada")


@each_cell
async def test_an_operator_is_faster_than_the_person_behind_the_agent(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        await govern(cell.router, Scripted(APPROVE))
        cell.agent.answers["elicitation/create"] = {"action": "cancel"}
        results = []

        async def call() -> None:
            results.append(await cell.call("echo", n=1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(1)
            ((held, _),) = await cell.router.holder.pending()
            await cell.router.holder.decide(held.id, approve=True, by="ada")
        assert results[0]["structuredContent"] == {"n": 1}


@each_cell
async def test_what_nobody_approves_expires(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server, capabilities={}) as cell:
        terms = ApprovalTerms(expires=60.0)
        await govern(cell.router, Scripted(Decision(ruling=Ruling.APPROVE, terms=terms)))
        before = trio.current_time()
        result = await cell.call("echo")
        assert meta(result)["code"] == "approval_expired"
        assert trio.current_time() - before == pytest.approx(60, abs=1)
        assert cell.received("tools/call") == []
        assert await cell.router.holder.pending() == []


@each_cell
async def test_an_approval_that_nobody_can_give_is_a_denial(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server, capabilities={}) as cell:
        terms = ApprovalTerms(operator=False)
        await govern(cell.router, Scripted(Decision(ruling=Ruling.APPROVE, terms=terms)))
        result = await cell.call("echo")
        assert meta(result)["code"] == "approval_impossible"


@each_cell
async def test_an_agent_that_cancels_leaves_the_approval_open(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server, capabilities={}) as cell:
        plugin = Scripted(APPROVE)
        await govern(cell.router, plugin)
        holder = cell.router.holder
        params = {"name": "echo", "arguments": {"n": 1}}
        await cell.agent.abandon(params, wait_all_tasks_blocked)
        await wait_all_tasks_blocked()
        ((held, waiting),) = await holder.pending()
        assert not waiting
        await holder.decide(held.id, approve=True, by="ada")
        assert cell.received("tools/call") == []
        # Another call does not get it; the same one does, once.
        results = []

        async def call(n: int) -> None:
            results.append(await cell.call("echo", n=n))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, 2)
            await trio.sleep(1)
            assert [h.arguments for h, _ in await holder.pending()] == ['{"n":2}']
            nursery.start_soon(call, 1)
            await trio.sleep(1)
            assert [r["structuredContent"] for r in results] == [{"n": 1}]
            nursery.cancel_scope.cancel()
        await wait_all_tasks_blocked()
        assert len(cell.received("tools/call")) == 1


@each_cell
async def test_rules_change_for_the_next_call(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        plugin = Scripted(ALLOW)
        await govern(cell.router, plugin)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: cell.call("slow", seconds=5))
            await trio.sleep(1)
            await cell.router.governance.adopt(cell.router.governance.prepare(()))
            assert (plugin.closed, len(plugin.ends)) == (0, 0)
        # The old ones saw their call to its end, and were let go of then.
        assert (plugin.closed, len(plugin.ends)) == (1, 1)


@each_cell
async def test_a_call_is_recorded_before_it_is_made(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        cell.router.governance.recorder = recording = Recording()
        await cell.call("echo")
        call_id = recording.entries[0][1]
        generation = recording.of(call_id)[1][1]
        assert recording.of(call_id) == [
            ("accepted", "allow"),
            ("sent", generation),
            ("ended", "executed", "ok"),
        ]


@each_cell
@pytest.mark.parametrize("event", ["accepted", "sent"])
@pytest.mark.parametrize("fail_open", [False, True], ids=["deny", "allow"])
async def test_what_cannot_be_recorded_is_not_made(
    autojump_clock: MockClock, agent: str, server: str, event: str, fail_open: bool
) -> None:
    async with open_cell(agent, server) as cell:
        cell.router.governance.recorder = recording = Recording(failing={event})
        cell.router.governance.fail_open = fail_open
        result = await cell.call("echo", n=1)
        if fail_open:
            assert result["structuredContent"] == {"n": 1}
        else:
            assert meta(result) == {
                "fate": "not_executed",
                "code": "audit_unavailable",
                "server": server,
                "retryable": True,
            }
        assert len(cell.received("tools/call")) == fail_open
        assert recording.entries[-1][0] == "ended"


@pytest.mark.parametrize("agent", ["handshake", "stateless"])
async def test_a_replayed_call_is_recorded_as_sent_twice(
    autojump_clock: MockClock, agent: str
) -> None:
    async with open_cell(agent, "hand") as cell:
        await cell.call("increment")
        cell.router.governance.recorder = recording = Recording()
        # Nothing but the call is to tell the router: no stream, and no pong that is on its way.
        await wait_all_tasks_blocked()
        cell.hand.forget(keep_streams=True)
        await cell.call("increment")
        events = [entry[0] for entry in recording.entries]
        assert events == ["accepted", "sent", "sent", "ended"]


@each_cell
async def test_a_tool_that_is_gone_when_its_call_is_approved_is_not_called(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server, capabilities={}) as cell:
        await govern(cell.router, Scripted(APPROVE))
        results = []

        async def call() -> None:
            results.append(await cell.call("echo"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(1)
            settings = cell.router.config.servers
            fewer = {name: evolve(each, allowed_tools=("re*",)) for name, each in settings.items()}
            await cell.router.apply(evolve(cell.router.config, servers=FrozenMap(fewer)))
            ((held, _),) = await cell.router.holder.pending()
            await cell.router.holder.decide(held.id, approve=True, by="ada")
        assert meta(results[0])["code"] == "tool_gone"
        assert cell.received("tools/call") == []


@each_cell
async def test_the_log_sees_no_more_of_a_failure_than_the_agent(
    autojump_clock: MockClock, agent: str, server: str
) -> None:
    async with open_cell(agent, server) as cell:
        await govern(
            cell.router, Scripted(rewrite=lambda body: body.replace(b"hunter2", b"[gone]"))
        )
        target: Any = cell.hand if server == "hand" else cell.free
        target.reply_next(Reply.text(500, "it was hunter2"), method="tools/call")
        with capture_logs() as logs:
            result = await cell.call("echo")
        assert meta(result)["code"] == "http_status"
        (failed,) = [entry for entry in logs if entry["event"] == "call_failed"]
        assert "it was [gone]" in failed["failure"]
        assert "hunter2" not in str(logs)
