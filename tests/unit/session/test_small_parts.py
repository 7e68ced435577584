from __future__ import annotations

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from kars_router.model import Failure, Phase
from kars_router.session.backoff import Backoff
from kars_router.session.pending import Pending
from kars_router.wire.jsonrpc import Kind, Message

REPLY = Message(Kind.RESPONSE, b"0", result=b"{}")
FAILURE = Failure(server="s", phase=Phase.AWAIT)


@given(st.floats(0, 0.999), st.integers(0, 5000))
def test_delays_grow_to_a_cap_and_are_never_nothing(jitter: float, failures: int) -> None:
    backoff = Backoff(0.25, 30.0, lambda: jitter, failures)
    delay = backoff.next()
    assert min(30.0, 0.25 * 2 ** min(failures, 30)) / 2 <= delay <= 30.0
    assert backoff.next(99.0) == 99.0
    backoff.reset()
    assert backoff.next() <= 0.25


@pytest.mark.parametrize("first", ["resolve", "fail"])
@pytest.mark.parametrize("second", ["resolve", "fail"])
async def test_a_request_ends_once(first: str, second: str) -> None:
    pending = Pending(b"0", "m", b"")
    ends = {
        "resolve": lambda: pending.resolve(REPLY),
        "fail": lambda: pending.fail(FAILURE, lost=True),
    }
    assert not pending.done
    assert ends[first]() is True
    kept = (pending.reply, pending.failure, pending.lost)
    assert ends[second]() is False
    assert (pending.reply, pending.failure, pending.lost) == kept
    assert (pending.reply is None) != (pending.failure is None)
    await pending.wait()


async def test_waiting_ends_with_the_request(autojump_clock: MockClock) -> None:
    pending = Pending(b"0", "m", b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pending.wait)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        pending.resolve(REPLY)
