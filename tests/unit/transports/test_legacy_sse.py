from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from kars_router import loss
from kars_router.errors import CallFailed
from kars_router.model import Failure, Fate, Phase, Sent
from kars_router.testing import AsgiBridge, Fault, FaultPlan, HeartbeatServer, Received, Reply
from kars_router.transports.base import Delivery, Position
from kars_router.transports.client import new_client
from kars_router.transports.legacy_sse import LegacySse
from kars_router.wire import jsonrpc
from kars_router.wire.jsonrpc import Message

URL = "http://upstream.test/some/sse"
CALL = jsonrpc.request(b"7", "tools/call", b'{"name":"t"}')
ANSWER = {"jsonrpc": "2.0", "id": 7, "result": {}}
ACCEPTED = Reply.text(202, "Accepted")
Script = Callable[[Received], Reply]


def stream(*pieces: bytes, endpoint: str = "/messages", **more: Any) -> Reply:
    """A stream that says where messages go, then this, and stays open."""
    first = f"event: endpoint\ndata: {endpoint}\n\n".encode()
    more.setdefault("ending", "hang")
    return Reply(
        headers={"content-type": "text/event-stream"}, body=b"".join((first, *pieces)), **more
    )


@define
class Wire:
    """A connection to a server that does only what its script says."""

    connection: LegacySse
    server: HeartbeatServer
    nursery: trio.Nursery
    taken: list[Message] = field(factory=list)
    delivery: Delivery = field(factory=Delivery)

    async def open(self) -> None:
        await self.connection.open(self.nursery)

    async def send(self, ident: bytes = b"7", **options: Any) -> None:
        await self.connection.send(
            CALL, method="tools/call", delivery=self.delivery, ident=ident, **options
        )

    async def fails(self) -> Failure:
        with pytest.raises(CallFailed) as caught:
            await self.send()
        return caught.value.failure

    async def refused(self) -> Failure:
        with pytest.raises(CallFailed) as caught:
            await self.open()
        return caught.value.failure

    def posts(self) -> list[Received]:
        return self.server.requests(http_method="POST")


@asynccontextmanager
async def wired(
    get: Reply | Script,
    post: Reply | Script = ACCEPTED,
    *,
    faults: FaultPlan | None = None,
    **options: Any,
) -> AsyncIterator[Wire]:
    def script(received: Received) -> Reply:
        reply = post if received.http_method == "POST" else get
        return reply(received) if callable(reply) else reply

    taken: list[Message] = []
    async with trio.open_nursery() as nursery, HeartbeatServer.open() as server:
        server.script = script
        bridge = AsgiBridge(server.app, nursery, faults=faults)
        async with new_client(bridge) as client, trio.open_nursery() as session:
            connection = LegacySse(
                client, URL, server="s", deliver=lambda m, _: taken.append(m), **options
            )
            with trio.fail_after(60):  # noqa: ASYNC100, RUF100
                yield Wire(connection, server, session, taken)
            session.cancel_scope.cancel()
        assert bridge.open_responses == 0
        nursery.cancel_scope.cancel()


async def test_the_stream_and_a_post(autojump_clock: MockClock) -> None:
    async with wired(stream(), headers={"x-extra": "1"}) as wire:
        await wire.open()
        (get,) = wire.server.log
        assert (get.http_method, get.path) == ("GET", "/some/sse")
        assert get.headers["accept"] == "text/event-stream"
        assert get.headers["x-extra"] == "1"
        wire.connection.revision = "2024-11-05"
        await wire.send(b"")
        (post,) = wire.posts()
        assert (post.path, post.body) == ("/messages", CALL)
        assert post.headers["content-type"] == "application/json"
        assert post.headers["x-extra"] == "1"
        assert post.headers["mcp-protocol-version"] == "2024-11-05"
        assert wire.delivery.sent is Sent.YES


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("/messages", "/messages"),
        ("messages", "/some/messages"),
        ("?s=1", "/some/sse"),
        ("http://upstream.test/there", "/there"),
        ("http://UPSTREAM.test:80/there", "/there"),
        ("//upstream.test/there", "/there"),
    ],
)
async def test_where_messages_go_is_relative_to_the_stream(
    autojump_clock: MockClock, endpoint: str, path: str
) -> None:
    async with wired(stream(endpoint=endpoint)) as wire:
        await wire.open()
        await wire.send(b"")
        assert [post.path for post in wire.posts()] == [path]


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://elsewhere.test/messages",
        "https://upstream.test/messages",
        "http://upstream.test:81/messages",
        "//elsewhere.test/messages",
        "http://user@upstream.test/messages",
        "http://upstream.test.evil/messages",
        "http://[::1/",
        "http://upstream.test:99999/",
    ],
)
async def test_messages_go_nowhere_else(autojump_clock: MockClock, endpoint: str) -> None:
    async with wired(stream(endpoint=endpoint)) as wire:
        failure = await wire.refused()
        assert (failure.code, failure.phase, failure.sent) == ("protocol", Phase.CONNECT, Sent.NO)
        assert "same origin" in failure.detail
        assert wire.posts() == []


async def test_the_first_endpoint_counts(autojump_clock: MockClock) -> None:
    second = b"event: endpoint\ndata: http://elsewhere.test/\n\n"
    async with wired(stream(second)) as wire:
        await wire.open()
        await wire.send(b"")
        assert [post.path for post in wire.posts()] == ["/messages"]


@pytest.mark.parametrize(
    ("reply", "code", "said"),
    [
        (Reply.text(404, "no"), "http_status", "GET was refused"),
        (Reply.text(405), "http_status", "GET was refused"),
        (Reply.text(500), "http_status", "GET was refused"),
        (Reply.text(302, headers={"location": "http://elsewhere.test/"}), "redirect", "refused"),
        (Reply.text(200, "<html>"), "protocol", "answered with text/plain"),
        (Reply.events(), "protocol", "no event has said where"),
        (Reply.events(ANSWER), "protocol", "no event has said where"),
        (Reply(status=None, ending="cut"), "transport", "RemoteProtocolError"),
        (Reply.events(headers={"content-encoding": "gzip"}), "protocol", "encoding gzip"),
    ],
)
async def test_a_stream_that_is_none(
    autojump_clock: MockClock, reply: Reply, code: str, said: str
) -> None:
    async with wired(reply) as wire:
        failure = await wire.refused()
        assert (failure.code, failure.status) == (code, reply.status)
        assert said in failure.detail
        assert failure.had_session is False
        await wire.connection.close()


async def test_a_stream_that_does_not_say_where_messages_go(autojump_clock: MockClock) -> None:
    async with wired(Reply.events(ending="hang"), connect_timeout=3.0) as wire:
        failure = await wire.refused()
        assert failure.code == "connect"
        assert trio.current_time() == pytest.approx(3.0)


async def test_an_answer_may_come_before_the_post_is_answered(autojump_clock: MockClock) -> None:
    async with wired(stream(), Reply.hang()) as wire:
        await wire.open()

        async def answer() -> None:
            await trio.sleep(5)
            wire.connection.take(jsonrpc.encode(ANSWER))

        wire.nursery.start_soon(answer)
        await wire.send()
        assert trio.current_time() == pytest.approx(6.0)  # a moment for the connection's sake
        assert [message.id for message in wire.taken] == [b"7"]
        assert wire.delivery.sent is Sent.YES


@pytest.mark.parametrize(
    ("reply", "lost"),
    [
        (Reply.text(404, "Could not find session"), True),
        (Reply.text(400, "Missing session id"), True),
        (Reply.text(400, "not JSON"), False),
        (Reply.text(500), False),
    ],
)
async def test_a_message_that_is_refused(
    autojump_clock: MockClock, reply: Reply, lost: bool
) -> None:
    """The endpoint belongs to the session, so a refusal may be about that."""
    async with wired(stream(), reply) as wire:
        await wire.open()
        failure = await wire.fails()
        assert (failure.code, failure.status) == ("http_status", reply.status)
        assert failure.had_session
        verdict = loss.classify(failure)
        assert verdict is not None
        assert verdict.lost is lost


async def test_accepted_may_be_spelled_with_200(autojump_clock: MockClock) -> None:
    async with wired(stream(), Reply.text(200, "Accepted")) as wire:
        await wire.open()
        await wire.send(b"")


async def test_an_answer_in_the_body_of_the_post_counts(autojump_clock: MockClock) -> None:
    async with wired(stream(), Reply.json(ANSWER)) as wire:
        await wire.open()
        await wire.send()
        assert [message.result for message in wire.taken] == [b"{}"]


@pytest.mark.parametrize(
    ("fault", "sent"),
    [
        (Fault.connect(), Sent.NO),
        (Fault.send(after=20), Sent.PARTLY),
        (Fault.drop(), Sent.YES),
    ],
)
async def test_how_much_of_a_message_has_left(
    autojump_clock: MockClock, fault: Fault, sent: Sent
) -> None:
    faults = FaultPlan.nth(1, fault, matching=lambda request: request.method == "POST")
    async with wired(stream(), faults=faults) as wire:
        await wire.open()
        failure = await wire.fails()
        assert failure.sent is wire.delivery.sent is sent
        # The channel itself lives on.
        await wire.send(b"")


async def test_a_call_whose_post_was_on_its_way_when_the_stream_ended_may_have_been_made(
    autojump_clock: MockClock,
) -> None:
    """Were it said not to have left, it would be made a second time."""
    async with wired(stream(), Reply.hang()) as wire:
        await wire.open()

        async def break_off() -> None:
            await trio.sleep(5)
            wire.connection.end("its event stream came to an end")

        wire.nursery.start_soon(break_off)
        failure = await wire.fails()
        assert (failure.code, failure.sent) == ("channel_closed", Sent.YES)
        assert loss.fate_of(failure) is Fate.UNKNOWN
        assert trio.current_time() == pytest.approx(5.0)


async def test_a_notification_does_not_outlast_the_channel(autojump_clock: MockClock) -> None:
    async with wired(stream(), Reply.hang()) as wire:
        await wire.open()

        async def break_off() -> None:
            await trio.sleep(5)
            wire.connection.end("its event stream came to an end")

        wire.nursery.start_soon(break_off)
        with pytest.raises(CallFailed) as caught:
            await wire.send(b"")
        assert caught.value.failure.code == "channel_closed"


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (stream(ending="end"), "came to an end"),
        (stream(ending="cut"), "RemoteProtocolError"),
    ],
)
async def test_how_a_stream_ends(autojump_clock: MockClock, reply: Reply, said: str) -> None:
    async with wired(reply) as wire:
        await wire.open()
        with pytest.raises(CallFailed) as caught:
            await wire.connection.listen(Position(), lambda: None)
        failure = caught.value.failure
        assert (failure.code, failure.phase) == ("channel_closed", Phase.LISTEN)
        assert said in failure.detail
