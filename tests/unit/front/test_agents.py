from __future__ import annotations

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from kars_router.front.agents import AgentRegistry, TooManySessionsError
from kars_router.front.sealing import Sealer
from kars_router.telemetry import Metrics

KEY = b"k" * 32


@define
class Wall:
    """A wall clock for tests, and what ended when it said so."""

    now: float = 1000.0
    ended: dict[str, str] = field(factory=dict)
    metrics: Metrics = field(factory=Metrics)
    others: int = 0
    leaving: int = 0

    def send_away(self) -> bool:
        """Ends one of the others, if one is leaving."""
        if not self.leaving:
            return False
        self.leaving -= 1
        self.others -= 1
        return True

    def registry(self, **options: float) -> AgentRegistry:
        return AgentRegistry(
            Sealer(KEY),
            self.metrics,
            limit=int(options.get("limit", 2)),
            idle=options.get("idle", 60.0),
            lifetime=options.get("lifetime", 1000.0),
            has_ended=self.ended.__contains__,
            on_end=self.ended.__setitem__,
            others=lambda: self.others,
            others_make_room=self.send_away,
            clock=lambda: self.now,
        )

    def count(self) -> float | None:
        return self.metrics.registry.get_sample_value("kars_agent_sessions")


async def test_an_id_works_in_another_process_with_the_same_key(autojump_clock: MockClock) -> None:
    wall = Wall()
    session_id, session = wall.registry().create("2025-06-18", "box", "a client")
    later = wall.registry()
    found = later.find(session_id, "box")
    assert found is not None
    assert found.ticket == session.ticket
    assert later.find(session_id, "box") is found
    assert wall.count() == 1
    assert later.find(session_id, "") is None
    assert later.find(session_id, "other") is None


async def test_an_id_dies_with_its_lifetime_however_busy(autojump_clock: MockClock) -> None:
    wall = Wall()
    registry = wall.registry(lifetime=100)
    session_id, session = registry.create("2025-06-18", "", "")
    wall.now += 100
    assert registry.find(session_id, "") is session
    wall.now += 1
    assert registry.find(session_id, "") is None
    assert wall.ended == {session.agent: "its lifetime is over"}
    assert wall.registry(lifetime=100).find(session_id, "") is None


async def test_the_lifetime_ends_a_session_that_nobody_asks_for(autojump_clock: MockClock) -> None:
    wall = Wall()
    registry = wall.registry(lifetime=100)
    _, session = registry.create("2025-06-18", "", "")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.run)
        session.in_flight = 1
        await trio.sleep(200)
        assert len(registry) == 1
        wall.now += 101
        await trio.sleep(20)
        assert len(registry) == 0
        nursery.cancel_scope.cancel()


async def test_an_ended_id_stays_dead_in_every_process(autojump_clock: MockClock) -> None:
    wall = Wall()
    registry = wall.registry()
    session_id, session = registry.create("2025-06-18", "", "")
    registry.end(session, "because")
    registry.end(session, "again")
    assert wall.ended == {session.agent: "because"}
    assert registry.find(session_id, "") is None
    assert wall.registry().find(session_id, "") is None
    assert wall.count() == 0


async def test_idle_sessions_end_and_busy_ones_do_not(autojump_clock: MockClock) -> None:
    wall = Wall()
    registry = wall.registry(limit=3, idle=60)
    _, idle = registry.create("2025-06-18", "", "")
    _, busy = registry.create("2025-06-18", "", "")
    asked_id, asked = registry.create("2025-06-18", "", "")
    busy.in_flight = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.run)
        await trio.sleep(59)
        registry.find(asked_id, "")
        assert len(registry) == 3
        await trio.sleep(20)
        assert registry.all() == [busy, asked]
        assert wall.ended == {idle.agent: "idle for 60 s"}
        busy.in_flight = 0
        await trio.sleep(100)
        assert registry.all() == []
        nursery.cancel_scope.cancel()


async def test_the_limit_holds_for_new_and_for_rebuilt_ones(autojump_clock: MockClock) -> None:
    wall = Wall()
    old_id, _ = wall.registry().create("2025-06-18", "", "")
    registry = wall.registry(limit=1)
    registry.create("2025-06-18", "", "")
    with pytest.raises(TooManySessionsError):
        registry.create("2025-06-18", "", "")
    with pytest.raises(TooManySessionsError):
        registry.find(old_id, "")
    assert len(registry) == 1


async def test_other_agents_count_towards_the_limit(autojump_clock: MockClock) -> None:
    wall = Wall(others=2)
    old_id, _ = Wall().registry().create("2025-06-18", "", "")
    registry = wall.registry(limit=3)
    registry.create("2025-06-18", "", "")
    with pytest.raises(TooManySessionsError):
        registry.create("2025-06-18", "", "")
    with pytest.raises(TooManySessionsError):
        registry.find(old_id, "")
    wall.leaving = 1
    registry.create("2025-06-18", "", "")
    assert (len(registry), wall.others) == (2, 1)
    with pytest.raises(TooManySessionsError):
        registry.create("2025-06-18", "", "")
    wall.others = 0
    registry.create("2025-06-18", "", "")


async def test_room_is_made_by_the_end_of_the_oldest_abandoned_session(
    autojump_clock: MockClock,
) -> None:
    wall = Wall(leaving=9)
    registry = wall.registry(limit=9)
    sessions = [registry.create("2025-06-18", "", "")[1] for _ in range(5)]
    busy, called, listens, first, second = sessions
    busy.in_flight, called.called = 1, True
    listens.listen("")
    assert not registry.make_room()
    await trio.sleep(60)
    first.touched -= 1
    assert [registry.make_room() for _ in range(3)] == [True, True, False]
    assert list(wall.ended) == [first.agent, second.agent]
    assert (registry.all(), wall.leaving) == ([busy, called, listens], 9)


async def test_a_long_name_of_a_client_is_cut(autojump_clock: MockClock) -> None:
    session_id, session = Wall().registry().create("2025-06-18", "", "n" * 100_000)
    assert len(session.ticket.client) == 64
    assert len(session_id) < 400
