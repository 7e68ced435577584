"""What stands on the record after calls went through a whole router."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from agent_kit import Bench, open_bench
from attrs import frozen
from governance_kit import ALLOW, CALL, DENY, Scripted, govern, meta
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.audit.audit_kit import checked, rows

from kars_router.hookspecs import GovernanceSettings, Transformer, hookimpl
from kars_router.model import Decision, GovernedCall
from kars_router.testing import Call, HttpStatusError, Reply, RpcError

SECRET = b"hunter2"


@frozen
class Masks:
    """Takes a secret out of what comes back, and out of arguments if it is told to."""

    arguments: bool = False
    error: Exception | None = None

    def outgoing(self, call: GovernedCall) -> bytes:
        return call.params.replace(SECRET, b"[out]") if self.arguments else call.params

    def incoming(self, call: GovernedCall, body: bytes) -> bytes:
        if self.error is not None:
            raise self.error
        return body.replace(SECRET, b"[in]")

    @hookimpl
    def kars_transformers(self, settings: GovernanceSettings) -> list[Transformer]:
        return [self]


def recorded(directory: Path, event: str = "accepted") -> list[dict[str, Any]]:
    return [row for row in rows(directory) if row["event"] == event]


async def masked(bench: Bench, masks: Masks, decision: Decision) -> None:
    """Makes a call with a secret in its arguments."""
    bench.router.plugins.register(masks, "masks")
    await govern(bench.router, Scripted(decision))
    agent = await bench.connect()
    await agent.call("box__echo", word=SECRET.decode())


def audited(directory: Path, content: str = "arguments") -> dict[str, Any]:
    return {"audit": {"path": str(directory / "audit.jsonl"), "content": content}}


@pytest.mark.parametrize("decision", [ALLOW, DENY], ids=["allowed", "denied"])
@pytest.mark.parametrize(("arguments", "left"), [(False, "[in]"), (True, "[out]")])
async def test_a_secret_in_arguments_is_not_recorded_whatever_is_sent(
    tmp_path: Path,
    autojump_clock: MockClock,
    decision: Decision,
    arguments: bool,
    left: str,
) -> None:
    async with open_bench(**audited(tmp_path, "all")) as bench:
        await masked(bench, Masks(arguments=arguments), decision)
        sent = [each.params["arguments"] for each in bench.server.requests("tools/call")]
    # What the server has to get is another question.
    assert sent == ([{"word": "[out]" if arguments else "hunter2"}] if decision is ALLOW else [])
    (row,) = recorded(tmp_path)
    assert row["arguments"]["content"] == {"word": left}
    # The digest is of what was sent, or of what would have been asked for.
    assert row["arguments"].get("redacted", False) is not (arguments and decision is ALLOW)
    assert SECRET not in (tmp_path / "audit.jsonl").read_bytes()


async def test_arguments_that_nobody_could_check_are_left_out(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(**audited(tmp_path)) as bench:
        await masked(bench, Masks(error=ValueError("no")), DENY)
    (row,) = recorded(tmp_path)
    assert sorted(row["arguments"]) == ["bytes", "digest", "omitted"]


async def test_without_content_nobody_is_asked_what_may_be_shown(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(**audited(tmp_path, "digest")) as bench:
        await masked(bench, Masks(error=ValueError("no")), DENY)
        errors = bench.router.metrics.registry.get_sample_value(
            "kars_plugin_errors_total", {"plugin": "masks", "hook": "incoming"}
        )
    (row,) = recorded(tmp_path)
    assert sorted(row["arguments"]) == ["bytes", "digest"]
    assert errors is None


async def test_a_call_that_the_router_refuses_by_itself_is_recorded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    box = {"box": {"allowedResources": ["*"]}}
    options: dict[str, Any] = {"box": {"capabilities": {"resources": {}}}}
    limits = {"concurrentCalls": 1}
    more = {**audited(tmp_path), "limits": limits}
    async with open_bench(configured=box, options=options, **more) as bench:
        agent = await bench.connect("/mcp/box")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: agent.call("slow", seconds=5))
            await bench.server.wait_until(lambda: len(bench.server.requests("tools/call")) == 1)
            refused = await agent.call("echo", n=2)
            with pytest.raises(RpcError) as caught:
                await agent.request("resources/read", {"uri": "test:a"})
        assert meta(refused)["code"] == caught.value.data[CALL]["code"] == "too_many_calls"
    _, *rows_of_refused = recorded(tmp_path)
    assert [row["name"] for row in rows_of_refused] == ["echo", "test:a"]
    for row in rows_of_refused:
        assert (row["ruling"], row["code"], row["source"]) == ("deny", "too_many_calls", "router")
        (end,) = [each for each in recorded(tmp_path, "ended") if each["call"] == row["call"]]
        assert (end["fate"], end["code"]) == ("not_executed", "too_many_calls")
    assert rows_of_refused[0]["arguments"]["content"] == {"n": 2}
    assert checked(tmp_path).unended == []


async def test_a_call_to_a_server_that_cannot_be_reached_is_recorded(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    options: dict[str, Any] = {"box": {"script": lambda _: Reply.text(503)}}
    async with open_bench(options=options, **audited(tmp_path)) as bench:
        agent = await bench.connect("/mcp/box")
        refused = await agent.call("echo", n=1)
    assert meta(refused)["code"] == "upstream_unavailable"
    (row,) = recorded(tmp_path)
    assert (row["name"], row["code"]) == ("echo", "upstream_unavailable")
    (end,) = recorded(tmp_path, "ended")
    assert end["fate"] == "not_executed"


async def test_arguments_that_cannot_be_read_are_recorded_as_such(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(**audited(tmp_path)) as bench:
        agent = await bench.connect()
        huge = msgspec.Raw(b"1e999")
        result = await agent.call("box__echo", n=huge)
    assert meta(result)["code"] == "unreadable"
    (row,) = recorded(tmp_path)
    assert (row["code"], row["arguments"]["omitted"]) == ("unreadable", True)


async def test_a_call_whose_agent_leaves_has_a_fate(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(**audited(tmp_path)) as bench:
        agent = await bench.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: agent.call("box__slow", seconds=5))
            await bench.server.wait_until(lambda: bool(bench.server.requests("tools/call")))
            nursery.cancel_scope.cancel()
        await trio.sleep(60)
        await wait_all_tasks_blocked()
        (end,) = recorded(tmp_path, "ended")
        # It went on to its end, as it would have for an agent that waits.
        assert end["fate"] == "executed"


async def test_a_mebibyte_of_arguments_makes_a_short_record(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(**audited(tmp_path, "all")) as bench:
        agent = await bench.connect()
        await agent.call("box__echo", text="x" * (1 << 20))
    (row,) = recorded(tmp_path)
    assert row["arguments"]["omitted"] is True
    assert row["arguments"]["bytes"] > 1 << 20
    assert (tmp_path / "audit.jsonl").stat().st_size < 10_000


async def test_names_with_control_characters_stay_in_their_line(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    uri = 'test:a\x1b[31m\r\n{"seq":1}\u2028\x7f'
    box = {"box": {"allowedResources": ["*"]}}
    options: dict[str, Any] = {"box": {"capabilities": {"resources": {}}}}

    async def empty(_: Call) -> Mapping[str, Any]:
        return {"contents": []}

    async with open_bench(configured=box, options=options, **audited(tmp_path)) as bench:
        bench.server.add_method("resources/read", empty)
        agent = await bench.connect("/mcp/box")
        await agent.request("resources/read", {"uri": uri})
    (row,) = recorded(tmp_path)
    assert (row["method"], row["name"]) == ("resources/read", uri)
    assert checked(tmp_path).fault is None
    assert b"\x1b" not in (tmp_path / "audit.jsonl").read_bytes()


async def test_arguments_that_are_nested_too_deeply_are_no_reason_to_fail(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with open_bench(**audited(tmp_path, "all")) as bench:
        agent = await bench.connect()
        # Each decoder on the way has its own idea of what is too deep.
        for depth in (*range(800, 1000, 5), 5000):
            with suppress(RpcError, HttpStatusError):  # whether it is made is not the question
                await agent.call("box__echo", n=msgspec.Raw(b"[" * depth + b"]" * depth))
            assert "isError" not in await agent.call("box__echo", n=1)
    report = checked(tmp_path)
    assert (report.fault, report.unended) == (None, [])
    for row in rows(tmp_path):
        assert msgspec.json.decode(msgspec.json.encode(row)) == row
