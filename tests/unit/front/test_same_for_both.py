"""What is judged is what the server gets, whichever way it reads."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from agent_kit import CALL, Bench, open_bench
from governance_kit import ALLOW, Scripted, govern
from trio.testing import MockClock

from kars_router.testing import PlainAgent, RpcError


async def sent(agent: PlainAgent, params: str, method: str = "tools/call") -> Any:
    written: Any = msgspec.Raw(params.encode())
    return await agent.request(method, written)


def received(bench: Bench) -> list[Any]:
    return [request.params for request in bench.server.requests("tools/call")]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"n":1,"n":2}',
        '{"n":1, "\\u006e":2}',
        '{"o":{"x":[{"n":1,"n":2}]}}',
        '{"\\ud800":1,"\\udfff":2}',
    ],
)
async def test_arguments_that_name_a_member_twice_are_not_judged_but_refused(
    arguments: str, autojump_clock: MockClock
) -> None:
    governor = Scripted(ALLOW)
    async with open_bench() as bench:
        await govern(bench.router, governor)
        agent = await bench.connect()
        result = await sent(agent, f'{{"name":"box__echo","arguments":{arguments}}}')
        assert result["_meta"][CALL]["code"] == "unreadable"
        assert result["_meta"][CALL]["fate"] == "not_executed"
        assert received(bench) == []
        prompt = f'{{"name":"box__greet","arguments":{arguments}}}'
        with pytest.raises(RpcError):
            await sent(agent, prompt, "prompts/get")
        assert bench.server.requests("prompts/get") == []
    assert governor.calls == []


async def test_of_params_that_name_a_member_twice_the_server_gets_the_judged_one(
    autojump_clock: MockClock,
) -> None:
    governor = Scripted(ALLOW)
    async with open_bench() as bench:
        await govern(bench.router, governor)
        agent = await bench.connect()
        await sent(agent, '{"arguments":{"n":1},"name":"x","name":"box__echo","arguments":{"n":2}}')
        [call] = governor.calls
        [request] = received(bench)
    assert (call.name, call.arguments) == ("echo", {"n": 2})
    assert (request["name"], request["arguments"]) == ("echo", {"n": 2})
    assert call.params.count(b"arguments") == call.params.count(b'"name"') == 1


@pytest.mark.parametrize("governed", [True, False])
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("tools/call", '{"name":"box__echo","arguments":{},"Name":"counter"}'),
        ("tools/call", '{"name":"box__echo","arguments":{},"ARGUMENTS":{"n":1}}'),
        ("tools/call", '{"name":"box__echo","arguments":{},"argument\\u017f":{"n":1}}'),
        ("tools/call", '{"name":"box__echo","requeststate":"x"}'),
        ("resources/read", '{"uri":"kars://box/x","URI":"file:///etc/passwd"}'),
        (
            "completion/complete",
            '{"ref":{"type":"ref/prompt","name":"box__greet","Name":"x"},"argument":{}}',
        ),
    ],
)
async def test_a_member_that_is_another_one_but_for_its_case_is_refused(
    method: str, params: str, *, governed: bool, autojump_clock: MockClock
) -> None:
    async with open_bench() as bench:
        if governed:
            await govern(bench.router, Scripted(ALLOW))
        agent = await bench.connect()
        with pytest.raises(RpcError, match="but for its case"):
            await sent(agent, params, method)
        assert bench.server.requests(method) == []


async def test_members_that_nobody_knows_are_passed_on(autojump_clock: MockClock) -> None:
    async with open_bench() as bench:
        agent = await bench.connect()
        await sent(agent, '{"name":"box__echo","arguments":{"a":1,"A":2},"x-more":{"Name":1}}')
        [request] = received(bench)
    assert request["arguments"] == {"a": 1, "A": 2}
    assert request["x-more"] == {"Name": 1}
