"""Cancellation at the n-th checkpoint leaves no task, no open stream and no session behind."""

from __future__ import annotations

import trio
from http_kit import cancel_at
from trio.testing import MockClock
from unit.session.upstream_kit import Rig, make_config

from kars_router.service import open_router
from kars_router.testing import AsgiBridge, HeartbeatServer


async def use(server: HeartbeatServer, bridge: AsgiBridge) -> None:
    """The life of a router in one task: start, two agents, a loss, an end."""
    async with open_router(make_config(), serve=False, transports=lambda *_: bridge) as router:
        rig = Rig(router, server, bridge)
        await router.supervisor.wait_tried(30)
        await rig.call("increment")
        await rig.call("increment", "b")
        server.restart()
        await rig.call("increment")
        router.supervisor.end_agent("b", "DELETE")
        await rig.call("slow", seconds=2)


async def test_a_router_that_is_cancelled_at_any_moment(autojump_clock: MockClock) -> None:
    """Cancelled at the n-th checkpoint of the router's own task."""
    for n in range(1, 500):
        async with trio.open_nursery() as nursery, HeartbeatServer.open() as server:
            bridge = AsgiBridge(server.app, nursery)
            start = trio.current_time()
            cancelled = await cancel_at(n, lambda s=server, b=bridge: use(s, b))  # type: ignore[misc]
            assert trio.current_time() - start < 15
            await check_nothing_left(server, bridge)
            nursery.cancel_scope.cancel()
        if not cancelled:
            assert n > 5
            return
    raise AssertionError("the scenario does not end")


async def test_a_router_that_is_cancelled_at_any_time(autojump_clock: MockClock) -> None:
    """Cancelled after n steps of all tasks together, wherever each of them is."""
    for n in range(1, 5000, 11):
        async with trio.open_nursery() as nursery, HeartbeatServer.open() as server:
            bridge = AsgiBridge(server.app, nursery)
            with trio.CancelScope() as scope:
                counter = _AfterSteps(n, scope)
                trio.lowlevel.add_instrument(counter)
                try:
                    await use(server, bridge)
                finally:
                    trio.lowlevel.remove_instrument(counter)
            await check_nothing_left(server, bridge)
            nursery.cancel_scope.cancel()
        if not scope.cancelled_caught:
            assert n > 300
            return
    raise AssertionError("the scenario does not end")


async def check_nothing_left(server: HeartbeatServer, bridge: AsgiBridge) -> None:
    assert bridge.open_responses == 0
    # A session whose initialize was cut off before its answer came is not known to the router.
    told = {r.session for r in server.log if r.session}
    assert not told & set(server.sessions), server.history
    with trio.fail_after(30):
        while bridge.running:  # noqa: ASYNC110 - virtual time; the server's own tasks end
            await trio.sleep(0.5)


class _AfterSteps(trio.abc.Instrument):
    def __init__(self, steps: int, scope: trio.CancelScope) -> None:
        self._left = steps
        self._scope = scope

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._left -= 1
        if self._left == 0:
            self._scope.cancel()
