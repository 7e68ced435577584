"""A stateless-era session over a single channel, where nothing says what a message belongs to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.session.stateless_kit import Agent, judge

from kars_router.errors import CallFailed, HandshakeError
from kars_router.loss import CHANNEL_CLOSED
from kars_router.model import Failure, Phase, Sent
from kars_router.session.eras import speaks_handshake
from kars_router.session.listener import ListenState
from kars_router.session.options import SessionOptions
from kars_router.session.stateless import StatelessSession, open_stateless
from kars_router.telemetry import Metrics
from kars_router.transports.base import Deliver, Delivery, Position, Told
from kars_router.wire import jsonrpc

SUBSCRIPTION = "io.modelcontextprotocol/subscriptionId"
CAPABILITIES = {"tools": {"listChanged": True}, "resources": {}}


@define(eq=False)
class Pipe:
    """A connection over which everything comes without a cause; a test is at its other end."""

    deliver: Deliver
    session_id: str | None = None
    revision: str | None = None
    correlates: bool = False
    sent: list[Any] = field(factory=list)
    waiting: dict[bytes, trio.Event] = field(factory=dict)
    over: bool = False
    closed: bool = False

    async def open(self, nursery: trio.Nursery) -> None:
        await trio.lowlevel.checkpoint()

    async def send(
        self,
        payload: bytes,
        *,
        method: str,
        delivery: Delivery,
        ident: bytes = b"",
        control: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        if not self.over:
            message = msgspec.json.decode(payload)
            self.sent.append(message)
            delivery.sent = Sent.YES
            if method == "server/discover":
                result = {"supportedVersions": ["2026-07-28"], "capabilities": CAPABILITIES}
                self.say({"id": message["id"], "result": result})
                return
            if not ident:
                return
            answered = self.waiting[ident] = trio.Event()
            await answered.wait()
        if self.over:
            sent = delivery.sent
            failure = Failure(server="s", phase=Phase.AWAIT, sent=sent, code=CHANNEL_CLOSED)
            raise CallFailed(failure)

    def send_now(self, payload: bytes, told: Told) -> bool:
        return False

    async def listen(self, position: Position, on_open: Callable[[], None]) -> None:
        raise AssertionError("there is nothing to listen to")

    async def close(self) -> None:
        await trio.lowlevel.checkpoint()
        self.closed = True

    def say(self, message: Any) -> None:
        """The server sends a message."""
        self.deliver(jsonrpc.parse(msgspec.json.encode({"jsonrpc": "2.0", **message})), b"")
        if "id" in message and b"%d" % message["id"] in self.waiting:
            self.waiting[b"%d" % message["id"]].set()

    def end(self) -> None:
        self.over = True
        for event in self.waiting.values():
            event.set()

    def methods(self) -> list[str]:
        return [message["method"] for message in self.sent]

    def last(self, method: str) -> Any:
        return [message for message in self.sent if message["method"] == method][-1]


@asynccontextmanager
async def open_pipe() -> AsyncIterator[tuple[StatelessSession, Pipe, list[tuple[str, Any]]]]:
    pipes: list[Pipe] = []
    notices: list[tuple[str, Any]] = []

    def connect(deliver: Deliver) -> Pipe:
        pipes.append(Pipe(deliver))
        return pipes[0]

    async with open_stateless(
        SessionOptions(server="s", silence=60.0),
        connect,
        classify=judge,
        metrics=Metrics(),
        notify=lambda method, params: notices.append((method, params)),
        on_listen=lambda *_: None,
        plans=lambda _: None,
    ) as session:
        (pipe,) = pipes
        await wait_all_tasks_blocked()
        listen = pipe.last("subscriptions/listen")
        pipe.say(acknowledgement(listen))
        await wait_all_tasks_blocked()
        assert session.listen_state is ListenState.OPEN
        yield session, pipe, notices
    assert pipes[0].closed is (session.lost is None)


def acknowledgement(listen: Any) -> Any:
    notifications = listen["params"]["notifications"]
    params = {"notifications": notifications, "_meta": {SUBSCRIPTION: listen["id"]}}
    return {"method": "notifications/subscriptions/acknowledged", "params": params}


async def test_an_answer_is_found_by_its_id(autojump_clock: MockClock) -> None:
    async with open_pipe() as (session, pipe, _):
        first = session.submit("tools/call", b'{"name":"a"}', time_limit=60, caller=Agent())
        second = session.submit("tools/call", b'{"name":"b"}', time_limit=60, caller=Agent())
        await wait_all_tasks_blocked()
        pipe.say({"id": int(second.ident), "result": {"content": [2]}})
        pipe.say({"id": int(first.ident), "result": {"content": [1]}})
        await first.wait()
        await second.wait()
        assert first.reply is not None
        assert first.reply.result == b'{"content":[1]}'


async def test_a_cancelled_request_is_cancelled_in_words(autojump_clock: MockClock) -> None:
    async with open_pipe() as (session, pipe, _):
        pending = session.submit("tools/call", b'{"name":"a"}', time_limit=60, caller=Agent())
        await wait_all_tasks_blocked()
        pending.cancel()
        await pending.wait()
        await wait_all_tasks_blocked()
        cancelled = pipe.last("notifications/cancelled")
        assert cancelled["params"] == {"requestId": int(pending.ident)}
        assert pipe.methods().count("notifications/cancelled") == 1
        late = session.submit("tools/call", b'{"name":"a"}', time_limit=7, caller=Agent())
        await late.wait()
        await wait_all_tasks_blocked()
        assert pipe.last("notifications/cancelled")["params"] == {"requestId": int(late.ident)}


async def test_progress_is_found_by_its_token_and_a_log_message_by_luck(
    autojump_clock: MockClock,
) -> None:
    first, second = Agent(log_level="info"), Agent(log_level="info")
    async with open_pipe() as (session, pipe, _):
        params = b'{"name":"a","_meta":{"progressToken":"t"}}'
        pending = session.submit("tools/call", params, time_limit=60, caller=first)
        await wait_all_tasks_blocked()
        session.submit("tools/call", b'{"name":"b"}', time_limit=60, caller=second)
        await wait_all_tasks_blocked()
        progress = {"progressToken": int(pending.ident), "progress": 1}
        pipe.say({"method": "notifications/progress", "params": progress})
        pipe.say({"method": "notifications/message", "params": {"level": "info"}})
        pipe.say({"method": "notifications/progress", "params": {"progressToken": 99}})
        assert first.told == [("notifications/progress", {"progressToken": "t", "progress": 1})]
        assert second.told == [("notifications/message", {"level": "info"})]


async def test_what_a_subscription_brings_is_found_by_its_mark(autojump_clock: MockClock) -> None:
    async with open_pipe() as (_session, pipe, notices):
        listen = pipe.last("subscriptions/listen")
        changed = {"method": "notifications/tools/list_changed"}
        pipe.say({**changed, "params": {"_meta": {SUBSCRIPTION: listen["id"]}}})
        assert notices == [("notifications/tools/list_changed", b"{}")]
        pipe.say({"id": listen["id"], "result": {"_meta": {SUBSCRIPTION: listen["id"]}}})
        await wait_all_tasks_blocked()
        assert pipe.methods().count("subscriptions/listen") == 2
        assert "notifications/cancelled" not in pipe.methods()


async def test_a_stream_that_is_replaced_is_cancelled_in_words(autojump_clock: MockClock) -> None:
    async with open_pipe() as (session, pipe, _):
        old = pipe.last("subscriptions/listen")
        session.restore(frozenset({"test://a"}), "")
        await wait_all_tasks_blocked()
        pipe.say(acknowledgement(pipe.last("subscriptions/listen")))
        await trio.sleep(1)
        cancelled = pipe.last("notifications/cancelled")
        assert cancelled["params"] == {"requestId": old["id"]}


async def test_a_silent_channel_is_not_a_dead_one(autojump_clock: MockClock) -> None:
    async with open_pipe() as (_session, pipe, _):
        await trio.sleep(1000)
        assert pipe.methods().count("subscriptions/listen") == 1


async def test_the_end_of_the_channel_is_the_end_of_the_session(autojump_clock: MockClock) -> None:
    async with open_pipe() as (session, pipe, _):
        pending = session.submit("tools/call", b'{"name":"a"}', time_limit=60, caller=Agent())
        await wait_all_tasks_blocked()
        pipe.end()
        with trio.fail_after(100):
            await session.ended.wait()
        await pending.wait()
        assert pending.lost
        assert session.lost is not None
        assert "channel" in session.lost.reason


async def test_an_idle_channel_that_ends_is_noticed(autojump_clock: MockClock) -> None:
    async with open_pipe() as (session, pipe, _):
        pipe.end()
        with trio.fail_after(100):
            await session.ended.wait()
        assert session.lost is not None


class Changing(Pipe):
    """A way to a server that turns out to be a channel."""

    async def open(self, nursery: trio.Nursery) -> None:
        await trio.lowlevel.checkpoint()
        self.correlates = False


async def test_what_turns_out_to_be_a_channel_is_not_asked(autojump_clock: MockClock) -> None:
    pipe = Changing(lambda *_: None, correlates=True)
    with pytest.raises(HandshakeError) as caught:
        async with open_stateless(
            SessionOptions(server="s"),
            lambda _: pipe,
            classify=judge,
            metrics=Metrics(),
            notify=lambda *_: None,
            on_listen=lambda *_: None,
            plans=lambda _: None,
        ):
            raise AssertionError("a session was opened")
    assert speaks_handshake(caught.value.failure)
    assert pipe.sent == []
