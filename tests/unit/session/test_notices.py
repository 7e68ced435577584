"""Who is told of lost state, and how often: exactly once each, and nobody else."""

from __future__ import annotations

from pathlib import Path

from trio.testing import MockClock
from unit.session.upstream_kit import Rig, open_rig, with_settings

from kars_router.config.schema import SessionScope
from kars_router.testing import Reply

SHARED = with_settings(session_scope=SessionScope.SHARED)


async def notices(rig: Rig, agent: str, calls: int = 3) -> list[int | None]:
    """The generations of the notices that come with the agent's next calls."""
    outcomes = [await rig.call("increment", agent) for _ in range(calls)]
    return [o.reset.generation if o.reset else None for o in outcomes]


async def test_an_agent_is_told_once_for_each_loss(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        assert await notices(rig, "a") == [None, None, None]
        rig.server.restart()
        assert await notices(rig, "a") == [2, None, None]
        rig.server.restart()
        assert await notices(rig, "a") == [3, None, None]


async def test_each_agent_of_a_shared_session_is_told_once(autojump_clock: MockClock) -> None:
    async with open_rig(settings=SHARED) as rig:
        for agent in ("a", "b"):
            assert await notices(rig, agent, 1) == [None]
        rig.server.restart()
        assert await notices(rig, "a") == [2, None, None]
        assert await notices(rig, "new") == [None, None, None]
        assert await notices(rig, "b") == [2, None, None]


async def test_an_agent_without_state_is_told_nothing(autojump_clock: MockClock) -> None:
    async with open_rig(settings=SHARED, ping_interval=None) as rig:
        rig.server.script = lambda r: Reply.text(503) if r.http_method == "GET" else None
        rig.server.drop_listen()
        rig.server.restart()
        assert await notices(rig, "new") == [None, None, None]
        assert rig.slot("").generation == 2


async def test_a_failed_call_does_not_use_the_notice_up(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        rig.server.restart()
        rig.server.reply_next(Reply.text(404), method="tools/call", times=1)
        rig.server.reply_next(Reply.text(500), method="tools/call", times=1)
        first = await rig.call("increment")
        assert (first.result, first.reset) == (None, None)
        assert await notices(rig, "a") == [2, None, None]


async def test_an_error_does_not_use_the_notice_up(autojump_clock: MockClock) -> None:
    async with open_rig() as rig:
        await rig.call("increment")
        rig.server.restart()
        assert (await rig.call("error")).error is not None
        assert await notices(rig, "a") == [2, None, None]


async def test_an_agent_is_told_after_a_restart_of_the_router(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_rig(state=tmp_path) as rig:
        assert await notices(rig, "a", 1) == [None]
    async with open_rig(state=tmp_path) as rig:
        assert await notices(rig, "new", 1) == [None]
        outcome = await rig.call("increment")
        assert outcome.reset is not None
        assert outcome.reset.generation == 2
        assert "restart" in outcome.reset.reason
        assert await notices(rig, "a") == [None, None, None]
    async with open_rig(state=tmp_path) as rig:
        assert await notices(rig, "a") == [3, None, None]


async def test_agents_of_a_shared_session_are_told_after_a_restart_of_the_router(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_rig(settings=SHARED, state=tmp_path) as rig:
        assert await notices(rig, "a", 1) == [None]
        assert await notices(rig, "b", 1) == [None]
    async with open_rig(settings=SHARED, state=tmp_path) as rig:
        assert await notices(rig, "b") == [2, None, None]
        assert await notices(rig, "a") == [2, None, None]
        assert await notices(rig, "new", 1) == [None]


async def test_an_agent_that_ended_is_forgotten(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_rig(state=tmp_path) as rig:
        await rig.call("increment")
        rig.router.supervisor.end_agent("a", "DELETE")
    async with open_rig(state=tmp_path) as rig:
        assert rig.router.records.has_ended("a")
        assert rig.router.records.used("a", "s") is None
