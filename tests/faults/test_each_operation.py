"""A fault in the n-th operation, for each n until the scenario has no n-th operation any more."""

from __future__ import annotations

from collections import Counter

import httpx
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.config.schema import OnSessionLoss, SessionScope
from kars_router.model import CallOutcome, Fate
from kars_router.testing import (
    Call,
    Fault,
    FaultPlan,
    HeartbeatServer,
    Received,
    Reply,
    Stage,
    each_operation,
)

FAULTS = {
    "no connection": Fault.connect(),
    "connect time-out": Fault.connect(httpx.ConnectTimeout),
    "no byte sent": Fault.send(0),
    "some bytes sent": Fault.send(40),
    "no response, executed": Fault.drop(),
    "no response, not executed": Fault.drop(delivered=False),
    "closed without a response": Fault.drop(error=httpx.RemoteProtocolError),
    "cut at the start": Fault.cut(0),
    "cut in the middle": Fault.cut(30),
    "late": Fault.delay(3.0),
    "very late": Fault.delay(30.0),
    "connected late": Fault.delay(3.0, Stage.CONNECT),
}
REPLIES = {
    "404": Reply.text(404, "Session not found"),
    "400": Reply.text(400, "Server not initialized"),
    "500": Reply.text(500),
    "401": Reply.text(401),
    "429": Reply.text(429),
    "302": Reply.text(302, headers={"location": "/elsewhere"}),
    "an empty stream": Reply.events(),
    "an empty stream after it was executed": Reply(
        headers={"content-type": "text/event-stream"}, execute=True
    ),
    "closed after it was executed": Reply.cut(execute=True),
    "202": Reply.text(202),
    "garbage": Reply(headers={"content-type": "application/json"}, body=b"{"),
}


@define
class Story:
    """What became of some calls, as told by the router and as known by the server."""

    ran: Counter[str] = field(factory=Counter)
    outcomes: dict[str, list[CallOutcome]] = field(factory=dict)

    async def work(self, call: Call) -> dict[str, object]:
        self.ran[str(call.arguments["token"])] += 1
        await trio.lowlevel.checkpoint()
        return {"content": []}

    async def make(self, rig: Rig, token: str) -> None:
        outcome = await rig.call("work", token=token)
        self.outcomes.setdefault(token, []).append(outcome)

    def check(self) -> None:
        for token, outcomes in self.outcomes.items():
            assert len(outcomes) == 1
            (outcome,) = outcomes
            assert self.ran[token] <= 1, f"{token} was executed {self.ran[token]} times"
            if outcome.fate is Fate.NOT_EXECUTED:
                assert self.ran[token] == 0, (token, outcome)
            if outcome.fate is Fate.EXECUTED:
                assert self.ran[token] == 1, (token, outcome)
            assert (outcome.result is not None) == (outcome.fate is Fate.EXECUTED)
            assert outcome.result is not None or outcome.message


async def scenario(rig: Rig, story: Story, *, recovers: bool) -> None:
    rig.server.add_tool("work", story.work)
    await story.make(rig, "first")
    async with trio.open_nursery() as nursery:
        for n in range(3):
            nursery.start_soon(story.make, rig, f"together {n}")
    rig.server.drop_listen()
    await story.make(rig, "last")
    await trio.sleep(60)
    story.check()
    if recovers:
        # The fault may have been kept for the first of these, or for its new session.
        for token in ("later", "later still"):
            await story.make(rig, token)
        later = [story.outcomes[token][0].result for token in ("later", "later still")]
        assert later != [None, None]
        story.check()
        assert rig.runtime.state == "ready"
        await trio.sleep(2)
        assert sum(status.in_flight for status in rig.router.supervisor.sessions()) == 0


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_in_any_request(autojump_clock: MockClock, name: str) -> None:
    rounds = 0
    for plan in each_operation(FAULTS[name]):
        async with open_rig(faults=plan, ping_interval=None) as rig:
            await scenario(rig, Story(), recovers=True)
        rounds += 1
    assert rounds > 15


@pytest.mark.parametrize("name", ["no connection", "no byte sent", "no response, executed"])
async def test_a_fault_in_every_request_from_any_one_on(
    autojump_clock: MockClock, name: str
) -> None:
    # The router never gives up, so there are always more requests to fail: the first ones do.
    for n in range(1, 16):
        plan = FaultPlan.nth(n, FAULTS[name], persistent=True)
        async with open_rig(faults=plan, ping_interval=None) as rig:
            await scenario(rig, Story(), recovers=False)
            leaving = trio.current_time()
        assert trio.current_time() - leaving < 3


@pytest.mark.parametrize(
    ("name", "scope", "policy"),
    [
        *((name, SessionScope.AGENT, OnSessionLoss.REPLAY) for name in REPLIES),
        ("404", SessionScope.SHARED, OnSessionLoss.REPLAY),
        ("404", SessionScope.AGENT, OnSessionLoss.FAIL),
        ("400", SessionScope.SHARED, OnSessionLoss.FAIL),
        ("closed after it was executed", SessionScope.SHARED, OnSessionLoss.REPLAY),
    ],
)
async def test_any_request_is_answered_by_something_else(
    autojump_clock: MockClock, name: str, scope: SessionScope, policy: OnSessionLoss
) -> None:
    settings = with_settings(session_scope=scope, on_session_loss=policy)
    n = 0
    while True:
        n += 1
        seen = 0

        def script(_: Received, n: int = n) -> Reply | None:
            nonlocal seen
            seen += 1
            return REPLIES[name] if seen == n else None

        def prepare(server: HeartbeatServer) -> None:
            server.script = script

        async with open_rig(settings=settings, prepare=prepare, ping_interval=None) as rig:
            await scenario(rig, Story(), recovers=True)
            done = seen < n
        if done:
            break
    assert n > 10


async def test_the_server_forgets_everything_at_any_request(autojump_clock: MockClock) -> None:
    for n in range(1, 40):
        seen = 0
        async with open_rig(ping_interval=None) as rig:

            def script(_: Received, n: int = n, rig: Rig = rig) -> Reply | None:
                nonlocal seen
                seen += 1
                if seen == n:
                    rig.server.restart()
                return None

            rig.server.script = script
            await scenario(rig, Story(), recovers=True)
            if seen < n:
                return
    pytest.fail("the scenario has more requests than that")
