"""Who holds a session's stream is told of its end, once, and not when it holds it no more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock
from unit.session.upstream_kit import URL

from kars_router.loss import classify
from kars_router.model import Failure, LossVerdict
from kars_router.session.listener import ListenState
from kars_router.session.options import SessionOptions
from kars_router.session.upstream import UpstreamSession, open_session
from kars_router.telemetry import Metrics
from kars_router.testing import AsgiBridge, HeartbeatServer
from kars_router.transports.base import Deliver, Position
from kars_router.transports.client import Client, new_client
from kars_router.transports.streamable_http import StreamableHttp

LOST = LossVerdict(True, "a test says so", "test")


def judge(failure: Failure) -> LossVerdict:
    return classify(failure) or LossVerdict(False, "no opinion")


def ordinary(client: Client, deliver: Deliver) -> StreamableHttp:
    return StreamableHttp(client, URL, server="s", deliver=deliver)


@asynccontextmanager
async def opened(
    states: list[ListenState],
    connect: Callable[[Client, Deliver], StreamableHttp] = ordinary,
) -> AsyncIterator[UpstreamSession]:
    async with (
        trio.open_nursery() as nursery,
        HeartbeatServer.open(ping_interval=None) as server,
        new_client(AsgiBridge(server.app, nursery)) as client,
    ):
        async with open_session(
            SessionOptions(server="s"),
            lambda deliver: connect(client, deliver),
            classify=judge,
            metrics=Metrics(),
            notify=lambda *_: None,
            on_listen=lambda _, new: states.append(new),
        ) as session:
            yield session
        nursery.cancel_scope.cancel()


async def test_a_session_that_was_lost_before_anybody_held_it(autojump_clock: MockClock) -> None:
    states: list[ListenState] = []
    ends: list[float] = []
    async with opened(states) as session:
        session.lose(LOST)
        await session.hold(lambda: ends.append(trio.current_time()), 2.0)
        assert ends == [trio.current_time()]
    assert states == []  # no stream was asked for


async def test_a_session_that_is_lost_as_its_holder_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    """Its holder has said by then that it is closed, and for another reason."""
    sessions: list[UpstreamSession] = []
    ends: list[float] = []

    class Breaking(StreamableHttp):
        async def listen(self, position: Position, on_open: Callable[[], None]) -> None:
            on_open()
            try:
                await trio.sleep_forever()
            finally:
                sessions[0].lose(LOST)

    def breaking(client: Client, deliver: Deliver) -> StreamableHttp:
        return Breaking(client, URL, server="s", deliver=deliver)

    async with opened([], breaking) as session:
        sessions.append(session)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.hold, lambda: ends.append(trio.current_time()), 2.0)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert session.lost is LOST
        assert ends == []
