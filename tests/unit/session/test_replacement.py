from __future__ import annotations

from functools import partial
from typing import Any

import trio
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.model import CallOutcome
from kars_router.testing import Reply

CHANGED = with_settings(max_connections=3)


async def keep(rig: Rig, into: list[CallOutcome], tool: str, **arguments: Any) -> None:
    into.append(await rig.call(tool, **arguments))


async def test_a_changed_server_is_there_all_the_time(autojump_clock: MockClock) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        old = rig.runtime
        tools = set(old.catalogue.tools)
        # The old sessions' deletion takes its two seconds.
        rig.server.script = lambda r: Reply.hang() if r.http_method == "DELETE" else None
        outcomes: list[CallOutcome] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.router.supervisor.apply, {"s": CHANGED})
            for _ in range(30):
                await trio.sleep(0.1)
                assert set(rig.runtime.catalogue.tools) == tools
                await keep(rig, outcomes, "increment")
        assert rig.runtime is not old
        assert {(o.fate, o.code) for o in outcomes} == {("executed", "ok")}
        (reset,) = [o.reset for o in outcomes if o.reset is not None]
        assert reset.reason == "the server's configuration changed"
        assert reset.generation == 2


async def test_calls_in_flight_end_with_the_configuration_they_were_made_under(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(keep, rig, outcomes, "slow", seconds=50))
            await rig.server.wait_until(lambda: len(rig.of("a", "tools/call")) == 2)
            rig.server.script = lambda r: Reply.hang() if r.http_method == "DELETE" else None
            nursery.start_soon(rig.router.supervisor.apply, {"s": CHANGED})
            await trio.sleep(0.1)
            assert (await rig.call("increment")).reset is not None
        assert [(o.fate, o.code) for o in outcomes] == [("unknown", "session_lost")]
        assert (await rig.call("increment")).reset is None


async def test_what_waits_for_a_session_of_a_stopping_server_may_be_tried_again(
    autojump_clock: MockClock,
) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig:
        rig.server.script = lambda r: Reply.hang() if r.method == "initialize" else None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, rig, outcomes, "increment")
            await rig.server.wait_until(lambda: len(rig.server.requests("initialize")) == 2)
            await rig.runtime.stop()
        await keep(rig, outcomes, "increment")
        assert [(o.fate, o.code, o.retryable) for o in outcomes] == [
            ("not_executed", "closing", True)
        ] * 2
        assert "shut down or reconfigured" in outcomes[0].message


async def test_a_server_that_is_removed_is_not_retryable(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.router.supervisor.apply({})
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code, outcome.retryable) == (
            "not_executed",
            "server_removed",
            False,
        )


async def test_agents_may_end_and_call_at_any_moment_of_a_stop(
    autojump_clock: MockClock,
) -> None:
    ticks, over = 0, False
    while not over:
        async with open_rig(ping_interval=None) as rig, trio.open_nursery() as nursery:
            await rig.call("increment")
            runtime = rig.runtime
            nursery.start_soon(runtime.stop)
            for _ in range(ticks):
                await trio.lowlevel.checkpoint()
            over = runtime._stopped.is_set()
            rig.router.supervisor.end_agent("a", "DELETE")
            await runtime.slot_for("b")
        ticks += 1
    assert ticks > 10
