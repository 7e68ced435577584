"""The plugin for policies in a whole router: what an agent cannot get around."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import trio
from agent_kit import CALL, open_bench
from trio.testing import MockClock

from kars_router.config.load import build
from kars_router.errors import KarsError
from kars_router.testing import NoAnswerError, PlainAgent, RpcError

pytest.importorskip("kars_plugin_toolpolicy")

SECRET = "ghp_aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzAbC"
ONE_AT_A_TIME = {
    "name": "p",
    "default": "allow",
    "rules": [
        {"name": "ask", "effect": "approve", "tools": ["increment"], "approval": {"expires": "1m"}}
    ],
    "rateLimits": [{"name": "one", "concurrency": 1}],
}


def code(result: Any) -> str:
    return str(result["_meta"][CALL]["code"])


@pytest.mark.parametrize("how", ["cancelled", "expired", "session over"])
async def test_the_slot_of_a_held_call_that_comes_to_nothing_is_free_again(
    how: str, autojump_clock: MockClock
) -> None:
    async with open_bench(policies=[ONE_AT_A_TIME]) as bench:
        agent, other = await bench.connect(), await bench.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(held, agent)
            with trio.fail_after(10):
                while not len(bench.router.holder):  # noqa: ASYNC110 - nothing tells of it
                    await trio.sleep(0.1)
            assert not await passes(other)
            if how == "cancelled":
                await agent.notify("notifications/cancelled", {"requestId": agent._next_id - 1})
            elif how == "session over":
                await agent.delete()
            with trio.fail_after(61 if how == "expired" else 30):
                while not await passes(other):  # noqa: ASYNC110 - as an agent would
                    await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        assert [each.params["name"] for each in bench.server.requests("tools/call")] == ["echo"]


async def held(agent: PlainAgent) -> None:
    with contextlib.suppress(KarsError, NoAnswerError, RpcError):
        await agent.call("box__increment")


async def passes(agent: PlainAgent) -> bool:
    result = await agent.call("box__echo")
    if not result.get("isError"):
        return True
    assert code(result) == "too_many_calls"
    return False


async def test_a_reload_while_a_call_runs_neither_frees_nor_keeps_its_slot(
    autojump_clock: MockClock,
) -> None:
    async with open_bench(policies=[ONE_AT_A_TIME]) as bench:
        agent, other = await bench.connect(), await bench.connect()
        governance = bench.router.governance
        changed = build(
            {
                "servers": {"box": {"url": "http://box.test/mcp", "allowedTools": ["*"]}},
                "policies": [ONE_AT_A_TIME, {"name": "q", "default": "allow"}],
            }
        ).policies
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: agent.call("box__slow", seconds=5))
            await bench.server.wait_until(lambda: len(bench.server.requests("tools/call")) == 1)
            await governance.adopt(governance.prepare(changed))
            refused = await other.call("box__echo")
            assert code(refused) == "too_many_calls"
        assert await passes(other)


@pytest.mark.parametrize(
    ("limit", "refusal"),
    [
        ({"budgets": [{"calls": 2}]}, "budget_spent"),
        ({"budgets": [{"calls": 2, "period": "session"}]}, "budget_spent"),
        ({"rateLimits": [{"calls": 2, "window": "1h", "per": ["agent"]}]}, "rate_limited"),
        ({"rateLimits": [{"calls": 2, "window": "1h", "per": ["server", "tool"]}]}, "rate_limited"),
    ],
    ids=str,
)
async def test_what_is_used_up_stays_used_up_in_the_next_router(
    tmp_path: Path, autojump_clock: MockClock, limit: dict[str, Any], refusal: str
) -> None:
    policy = {"name": "p", "default": "allow", **limit}
    known: PlainAgent | None = None
    for expected in (["", ""], [refusal]):
        async with open_bench(policies=[policy], state=tmp_path) as bench:
            agent = bench.agent()
            if known is None:
                await agent.initialize()
            else:
                agent.session, agent.server = known.session, known.server
            results = [await agent.call("box__echo") for _ in expected]
        known = agent
        got = [code(each) if each.get("isError") else "" for each in results]
        assert got == expected


@pytest.mark.parametrize(
    ("per", "refused"),
    [
        ("agent", {"one a read", "one a echo", "one b read"}),
        ("server", {"one a read", "one a echo", "two a read"}),
        ("tool", {"one a read", "two a read"}),
    ],
)
async def test_a_limit_is_for_each_agent_server_or_tool(
    autojump_clock: MockClock, per: str, refused: set[str]
) -> None:
    limit = {"calls": 1, "window": "1h", "per": [per]}
    policy = {"name": "p", "default": "allow", "rateLimits": [limit]}
    async with open_bench(configured={"a": {}, "b": {}}, policies=[policy]) as bench:
        agents = {"one": await bench.connect(), "two": await bench.connect()}
        assert await agents["one"].call("a__read")
        got = set()
        for words in ("one a read", "one a echo", "one b read", "two a read"):
            who, server, tool = words.split()
            result = await agents[who].call(f"{server}__{tool}")
            if result.get("isError"):
                assert code(result) == "rate_limited"
                got.add(words)
        assert got == refused


async def test_a_second_session_and_another_spelling_get_past_nothing(
    autojump_clock: MockClock,
) -> None:
    policy = {
        "rules": [{"effect": "allow", "tools": ["echo"], "when": "size(args) == 0"}],
        "budgets": [{"name": "two", "calls": 2}],
    }
    async with open_bench(policies=[policy]) as bench:
        for number in range(3):
            agent = await bench.connect()
            result = await agent.call("box__echo")
            assert bool(result.get("isError")) is (number == 2)
        agent = await bench.connect("/mcp/box")
        assert code(await agent.call("echo")) == "budget_spent"
        assert code(await agent.call("increment")) == "denied"
        assert code(await agent.call("echo", n=1)) == "denied"
        for name in ("Echo", "echo ", "\uff45cho", "box__echo\u200b", "box..echo"):
            with pytest.raises(RpcError):
                await agent.call(name)
        assert len(bench.server.requests("tools/call")) == 2


async def test_a_secret_is_taken_out_of_results_and_errors(autojump_clock: MockClock) -> None:
    policy = {"default": "allow", "rules": [{"effect": "redact"}]}
    async with open_bench(policies=[policy]) as bench:
        agent = await bench.connect()
        result = await agent.call("box__echo", word=SECRET)
        failed = await agent.call("box__fail", message=f"no {SECRET}")
        with pytest.raises(RpcError) as raised:
            await agent.call("box__error", message="no", data={"seen": [SECRET]})
        for shown in (str(result), str(failed), str(raised.value), str(vars(raised.value))):
            assert SECRET not in shown
            assert "redacted:github" in shown or "no" in shown
        # The server gets what the agent said: nothing asks for `arguments`.
        assert SECRET in str(bench.server.requests("tools/call")[0].params)
