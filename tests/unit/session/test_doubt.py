"""A 400 that speaks of the session may only quote what an agent wrote, so the session is asked."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.config.schema import SessionScope
from kars_router.model import CallOutcome
from kars_router.testing import Received, Reply

QUOTED = Reply.text(400, 'bad argument "session expired"')


async def keep(rig: Rig, into: list[CallOutcome], agent: str = "a") -> None:
    into.append(await rig.call("increment", agent))


async def test_an_argument_that_the_server_quotes_costs_no_session(
    autojump_clock: MockClock,
) -> None:
    async with open_rig(settings=with_settings(session_scope=SessionScope.SHARED)) as rig:
        await rig.call("increment", "victim")
        rig.server.reply_next(QUOTED, method="tools/call")
        outcome = await rig.call("increment", "attacker")
        assert (outcome.fate, outcome.code) == ("not_executed", "http_status")
        assert not outcome.retryable
        assert len(rig.server.requests("tools/call")) == 2
        again = await rig.call("read", "victim")
        assert again.reset is None
        assert rig.slot("").generation == 1


@pytest.mark.parametrize("ping", [Reply.text(404), Reply.text(400, "Session not found")])
async def test_a_ping_that_is_refused_proves_the_loss(
    autojump_clock: MockClock, ping: Reply
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        lost = rig.upstream_id()

        def script(r: Received) -> Reply | None:
            if r.session != lost:
                return None
            return {"ping": ping, "tools/call": QUOTED}.get(r.method or "")

        rig.server.script = script
        outcome = await rig.call("increment")
        assert outcome.fate == "executed"
        assert outcome.reset is not None
        assert outcome.reset.generation == 2


@pytest.mark.parametrize(
    "ping", [Reply.hang(), Reply.text(500, "Session not found"), Reply.text(400, "no")]
)
async def test_a_ping_that_says_nothing_leaves_the_session(
    autojump_clock: MockClock, ping: Reply
) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        rig.server.script = lambda r: {"ping": ping, "tools/call": QUOTED}.get(r.method or "")
        start = trio.current_time()
        outcome = await rig.call("increment")
        assert (outcome.fate, outcome.code) == ("not_executed", "http_status")
        assert trio.current_time() - start <= 5.0
        assert len(rig.server.requests("ping")) == 1
        rig.server.script = None
        assert await rig.text("increment") == "counter: 2"


@pytest.mark.parametrize("alive", [True, False])
async def test_many_doubts_cost_one_ping(autojump_clock: MockClock, alive: bool) -> None:
    async with open_rig(ping_interval=None) as rig:
        await rig.call("increment")
        first = rig.upstream_id()

        def script(r: Received) -> Reply | None:
            if r.session == first and r.method == "ping":
                return None if alive else Reply.text(404, seconds=0.5)
            return QUOTED if r.session == first and r.method == "tools/call" else None

        rig.server.script = script
        outcomes: list[CallOutcome] = []
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(keep, rig, outcomes)
        assert {o.fate for o in outcomes} == {"not_executed" if alive else "executed"}
        pings = [r for r in rig.server.requests("ping") if r.session == first]
        assert len(pings) == 1
        assert rig.slot().generation == (1 if alive else 2)


async def test_a_call_in_doubt_ends_with_its_session(autojump_clock: MockClock) -> None:
    outcomes: list[CallOutcome] = []
    async with open_rig(ping_interval=None) as rig, trio.open_nursery() as nursery:
        await rig.call("increment")
        rig.server.script = lambda r: {"ping": Reply.hang(), "tools/call": QUOTED}.get(
            r.method or ""
        )
        nursery.start_soon(keep, rig, outcomes)
        await rig.server.wait_until(lambda: bool(rig.server.requests("ping")))
        assert rig.session().in_flight == 2
        rig.router.supervisor.end_agent("a", "DELETE")
        with trio.fail_after(3):
            while not outcomes:  # noqa: ASYNC110 - an outcome gives no event
                await trio.sleep(0.1)
        assert outcomes[0].fate == "not_executed"
