"""The tasks in which requests are made: kept for the next one, which must not notice."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.session.test_hold import opened
from unit.session.upstream_kit import URL

from kars_router.errors import CallFailed
from kars_router.model import Failure, Phase, Sent
from kars_router.session.listener import ListenState
from kars_router.session.pending import Pending
from kars_router.session.upstream import UpstreamSession
from kars_router.transports.base import Deliver, Delivery
from kars_router.transports.client import Client
from kars_router.transports.streamable_http import StreamableHttp
from kars_router.wire import jsonrpc

BROKEN = Failure(server="s", phase=Phase.STREAM, sent=Sent.YES, code="broken_stream")


@define(eq=False)
class Calls:
    """A session whose calls a test answers itself, and the tasks that they were made in."""

    session: UpstreamSession
    tasks: list[trio.lowlevel.Task]
    act: list[Callable[[], Awaitable[None]]] = field(factory=list)

    def submit(self, *, limit: float = 10.0) -> Pending:
        """Makes a call."""
        return self.session.submit("tools/call", b'{"name":"t"}', time_limit=limit)

    async def make(self, *, limit: float = 10.0) -> Pending:
        """Makes a call and waits for its end, and for its task to have come to rest."""
        pending = self.submit(limit=limit)
        await pending.wait()
        await wait_all_tasks_blocked()
        return pending


@asynccontextmanager
async def calls(*, channel: bool = False) -> AsyncIterator[Calls]:
    """Calls are answered at once, or by what stands in `act`, each of which one takes.

    Over a channel, nothing says what a message belongs to.
    """
    made: list[Calls] = []

    class Scripted(StreamableHttp):
        correlates = not channel

        async def send(
            self,
            payload: bytes,
            *,
            method: str,
            delivery: Delivery,
            ident: bytes = b"",
            **more: Any,
        ) -> None:
            if method != "tools/call":
                await super().send(payload, method=method, delivery=delivery, ident=ident, **more)
                return
            [of] = made
            of.tasks.append(trio.lowlevel.current_task())
            await trio.lowlevel.checkpoint_if_cancelled()
            delivery.sent = Sent.YES
            act = of.act.pop(0) if of.act else trio.lowlevel.checkpoint
            try:
                await act()
            finally:
                if act not in UNANSWERED:
                    answer = jsonrpc.parse(b'{"jsonrpc":"2.0","id":%b,"result":{}}' % ident)
                    of.session.deliver(answer, b"" if channel else ident)

    def scripted(client: Client, deliver: Deliver) -> StreamableHttp:
        return Scripted(client, URL, server="s", deliver=deliver)

    states: list[ListenState] = []
    async with opened(states, scripted) as session, trio.open_nursery() as nursery:
        nursery.start_soon(session.hold, lambda: None, 2.0)
        await session.settled.wait()
        made.append(Calls(session, []))
        yield made[0]
        nursery.cancel_scope.cancel()


async def broken_off() -> None:
    """The answer comes, and then the connection breaks."""
    raise CallFailed(BROKEN)


UNANSWERED = (trio.sleep_forever,)


def makers() -> int:
    """How many tasks there are that make requests."""
    found, places = 0, [trio.lowlevel.current_root_task()]
    while places:
        task = places.pop()
        assert task is not None
        found += task.name.endswith("UpstreamSession._run")
        places += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    return found


async def test_one_task_makes_one_call_after_the_other(autojump_clock: MockClock) -> None:
    async with calls() as made:
        for _ in range(3):
            assert (await made.make()).reply is not None
        assert len({*made.tasks}) == 1
    assert makers() == 0


async def test_calls_at_the_same_time_have_a_task_each(autojump_clock: MockClock) -> None:
    async with calls() as made:
        pendings = [made.submit() for _ in range(20)]
        for pending in pendings:
            await pending.wait()
        assert len({*made.tasks}) == 20
        await wait_all_tasks_blocked()
        assert makers() == 16  # no more of them are kept


async def test_a_task_rests_no_longer_than_the_time_limit(autojump_clock: MockClock) -> None:
    async with calls() as made:
        await made.make(limit=100)
        assert makers() == 1
        await trio.sleep(99)
        assert makers() == 1
        await trio.sleep(2)
        assert makers() == 0
        assert (await made.make()).reply is not None


async def test_a_call_has_the_context_of_whoever_made_it(autojump_clock: MockClock) -> None:
    """Plugins that supply credentials may look at it."""
    tenant: ContextVar[str] = ContextVar("tenant", default="")
    seen: list[str] = []

    async def look() -> None:
        seen.append(tenant.get())

    async with calls() as made:
        for name in ("a", "b"):
            made.act.append(look)
            tenant.set(name)
            await made.make()
        assert len({*made.tasks}) == 1
    assert seen == ["a", "b"]


@pytest.mark.parametrize(("limit", "late"), [(10.0, 0.0), (59.0, 0.0), (60.0, 0.5), (300.0, 0.5)])
@pytest.mark.parametrize("pauses", [(0.0,), (0.2,), (0.2, 0.2, 0.2, 0.2), (7.0,)])
async def test_each_call_has_its_time_limit(
    autojump_clock: MockClock, limit: float, late: float, pauses: tuple[float, ...]
) -> None:
    async with calls() as made:
        for pause in pauses:
            await made.make(limit=limit)
            await trio.sleep(pause)
        made.act.append(trio.sleep_forever)
        start = trio.current_time()
        pending = await made.make(limit=limit)
        assert len({*made.tasks}) == 1
        assert pending.failure is not None
        assert pending.failure.code == "timeout"
        assert limit <= round(trio.current_time() - start, 6) <= limit + late
        assert (await made.make()).reply is not None


@pytest.mark.parametrize(("limit", "moved"), [(59.0, True), (60.0, False)])
async def test_the_deadline_of_a_long_limit_is_not_moved_with_each_call(
    autojump_clock: MockClock, limit: float, moved: bool
) -> None:
    async with calls() as made:
        await made.make(limit=limit)
        await trio.sleep(0.2)
        first = (await made.make(limit=limit)).scope.deadline
        await trio.sleep(0.2)
        second = (await made.make(limit=limit)).scope.deadline
        assert (first != second) is moved


async def test_a_shorter_limit_after_a_longer_one_and_the_other_way_round(
    autojump_clock: MockClock,
) -> None:
    async with calls() as made:
        for first, second in ((300.0, 5.0), (5.0, 300.0)):
            await made.make(limit=first)
            made.act.append(trio.sleep_forever)
            start = trio.current_time()
            await made.make(limit=second)
            assert second <= round(trio.current_time() - start, 6) <= second + 0.5


async def test_a_call_that_is_cancelled_before_its_task_goes_on(autojump_clock: MockClock) -> None:
    async with calls() as made:
        await made.make()
        pending = made.submit()
        pending.cancel()
        await pending.wait()
        assert pending.failure is not None
        assert (pending.failure.code, pending.failure.sent) == ("cancelled", Sent.NO)
        assert (await made.make()).reply is not None
        assert len({*made.tasks}) == 2


async def test_what_has_ended_cannot_cancel_the_next_call(autojump_clock: MockClock) -> None:
    async with calls() as made:
        ended = await made.make()
        made.act.append(partial(trio.sleep, 1))
        pending = made.submit()
        ended.cancel()
        ended.pause()
        ended.resume()
        await pending.wait()
        assert pending.reply is not None


async def test_a_failure_behind_an_answer_is_not_the_next_calls(autojump_clock: MockClock) -> None:
    async with calls() as made:
        made.act.append(broken_off)
        assert (await made.make()).reply is not None
        made.act.append(trio.sleep_forever)
        pending = await made.make()
        assert len({*made.tasks}) == 1
        assert pending.failure is not None
        assert pending.failure.code == "timeout"


async def test_a_task_at_rest_keeps_nothing_of_what_it_made(autojump_clock: MockClock) -> None:
    """An answer may have many megabytes."""
    async with calls() as made:
        for _ in range(2):
            assert (await made.make()).reply is not None
            gc.collect()
            assert not [each for each in gc.get_objects() if isinstance(each, Pending)]
        assert makers() == 1


async def test_a_task_at_rest_keeps_nothing_of_who_made_the_call(
    autojump_clock: MockClock,
) -> None:
    """What plugins put into the context may be large, or a secret."""

    class Tenant:
        pass

    tenant: ContextVar[Tenant] = ContextVar("tenant")
    seen: list[weakref.ref[Tenant]] = []

    async def agent(of: Calls) -> None:
        one = Tenant()
        seen.append(weakref.ref(one))
        tenant.set(one)
        await of.submit().wait()

    async with calls() as made:
        for _ in range(2):
            async with trio.open_nursery() as nursery:  # noqa: ASYNC112 - a context of its own
                nursery.start_soon(agent, made)
            await wait_all_tasks_blocked()
        assert makers() == 1
        gc.collect()
        assert [ref() for ref in seen] == [None, None]


async def test_a_call_that_ended_while_its_time_stood_still(autojump_clock: MockClock) -> None:
    """A question that came with it may outlive it."""
    async with calls() as made:
        pendings: list[Pending] = []

        async def ask() -> None:
            pendings[0].pause()

        made.act.append(ask)
        pendings.append(made.submit())
        await pendings[0].wait()
        await wait_all_tasks_blocked()
        assert makers() == 1
        await trio.sleep(11)
        assert makers() == 0


@pytest.mark.parametrize(
    ("channel", "sent", "goes_on"),
    [
        pytest.param(False, Sent.YES, True, id="the answer came on another stream"),
        pytest.param(True, Sent.NO, True, id="the answer came before the message had its turn"),
        pytest.param(True, Sent.YES, False, id="over a channel there is nothing else to come"),
    ],
)
async def test_what_may_go_on_after_its_answer_is_given_a_second(
    autojump_clock: MockClock, channel: bool, sent: Sent, goes_on: bool
) -> None:
    async with calls(channel=channel) as made:

        async def answered() -> None:
            [pending] = made.session._pending.values()
            pending.delivery.sent = sent
            answer = jsonrpc.parse(b'{"jsonrpc":"2.0","id":%b,"result":{}}' % pending.ident)
            made.session.deliver(answer, b"")
            left = pending.scope.deadline - trio.current_time()
            assert left == 1.0 if goes_on else 100 <= left <= 100.5
            if goes_on:
                await trio.sleep_forever()

        made.act.append(answered)
        assert (await made.make(limit=100)).reply is not None
        await trio.sleep(0.9)
        assert makers() == 1
        await trio.sleep(0.2)
        assert makers() == (0 if goes_on else 1)


async def test_a_session_that_is_closed_has_no_task_at_rest(autojump_clock: MockClock) -> None:
    async with calls() as made:
        await made.make()
        pending = made.submit()
        made.session.close()
        await pending.wait()
        late = made.submit()
        assert late.failure is not None
        assert late.failure.code == "session_lost"
    assert makers() == 0
