"""Requests whose response nobody waits for, on real sockets and a clock that is put forward."""

from __future__ import annotations

import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from attrs import define, field
from http_kit import FakeStream, Peer, answer_all, build, fetch, ok, upstream
from trio.testing import MockClock
from unit.transports.test_http_sockets import listening

from kars_router.transports.client import Client, Outline, Reply, new_client
from kars_router.transports.http import Exchange, TrioTransport
from kars_router.transports.http_pool import Lease
from kars_router.transports.http_unread import Unread

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
LIMITS = {"connect": 5.0, "read": None, "write": 5.0, "pool": None}
SENT = b'{"a":1}'


@define
class Sender:
    """A client of a server that has one kept connection to it, and what it was told."""

    client: Client
    transport: TrioTransport
    outline: Outline
    wanted: bool = True
    told: list[Unread | None] = field(factory=list)

    def send(self) -> bool:
        """Sends one request without waiting."""
        return self.client.send_now(self.outline, SENT, LIMITS, self._tell)

    def _tell(self, unread: Unread | None) -> bool:
        self.told.append(unread)
        return self.wanted

    async def use(self) -> bytes:
        """Makes an ordinary request."""
        return (await fetch(self.transport, build(url=str(self.outline.url)))).content

    async def rest(self) -> Reply:
        """The response to what has to be waited for."""
        [unread] = self.told
        assert unread is not None
        assert unread.exchange.complete
        return await self.client.receive(self.outline, unread)


@asynccontextmanager
async def sender(
    handler: Callable[[Peer], Awaitable[None]], *, max_connections: int = 64
) -> AsyncIterator[Sender]:
    """A sender whose first request, an ordinary one, was answered."""
    async with listening(handler) as port:
        url = httpx.URL(f"http://127.0.0.1:{port}/")
        async with TrioTransport(url, max_connections=max_connections) as transport:
            client = new_client(transport)
            made = Sender(client, transport, client.outline("POST", url, {}))
            await made.use()
            yield made


class Script:
    """A server whose answers to POSTs are said by the test, one after the other.

    It answers a GET with the number of its connection.
    """

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []
        self.may_answer = trio.Event()
        self.answered = 0
        self._happened = trio.lowlevel.ParkingLot()
        self.may_answer.set()

    async def __call__(self, peer: Peer) -> None:
        """Serves one connection."""
        while request := await peer.request():
            if not request.startswith(b"POST"):
                await peer.send(ok(b"%d" % peer.number))
                continue
            self.bodies.append(bytes(request))
            await self.may_answer.wait()
            answer = self.answers.pop(0) if self.answers else ACCEPTED
            if not answer:
                return
            await peer.send(answer)
            self.note_answered()

    def note_answered(self) -> None:
        """Counts an answer."""
        self.answered += 1
        self._happened.unpark_all()

    async def wait_answered(self, count: int) -> None:
        """Waits until so many POSTs were answered, which on loopback means that it is there."""
        with trio.fail_after(10):
            while self.answered < count:
                await self._happened.park()


async def test_nothing_is_sent_where_no_connection_is_kept() -> None:
    script = Script()
    async with listening(script) as port:
        url = httpx.URL(f"http://127.0.0.1:{port}/")
        async with TrioTransport(url) as transport:
            client = new_client(transport)
            sent = client.send_now(client.outline("POST", url, {}), SENT, LIMITS, lambda _: True)
            assert not sent
            stats = transport.stats()
    assert (stats.open, stats.opened_total) == (0, 0)
    assert script.bodies == []


async def test_one_connection_carries_request_after_request() -> None:
    script = Script()
    async with sender(script) as made:
        for number in range(1, 4):
            assert made.send()
            await script.wait_answered(number)
            # It counts as idle: nothing is waited for.
            stats = made.transport.stats()
            assert (stats.idle, stats.in_use) == (1, 0)
            assert made.told == [None] * (number - 1)
        assert await made.use() == b"1"
        assert made.told == [None] * 3
        assert all(body.endswith(b"\r\n\r\n" + SENT) for body in script.bodies)
        assert made.transport.stats().opened_total == 1


async def test_a_response_that_is_not_there_yet_does_not_hold_up_anybody() -> None:
    script = Script()
    async with sender(script) as made:
        script.may_answer = trio.Event()
        assert made.send()
        assert not made.send()
        assert await made.use() == b"2"
        assert made.send()  # over the second connection
        script.may_answer.set()
        await script.wait_answered(2)
        assert made.told == []
        assert await made.use() in {b"1", b"2"}
        assert made.told == [None, None]
        assert made.send()  # over one of them
        assert made.send()  # over the other, whether the first has its response by now or not
        assert made.transport.stats().opened_total == 2


async def test_a_refusal_is_handed_over_when_the_connection_is_wanted() -> None:
    refusal = b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone"
    script = Script(refusal)
    async with sender(script) as made:
        assert made.send()
        await script.wait_answered(1)
        assert await made.use() == b"1"
        reply = await made.rest()
        assert reply.status == 404
        assert [chunk async for chunk in reply] == [b"gone"]
        assert reply.is_closed


async def test_what_a_server_says_beside_accepting_is_handed_over() -> None:
    script = Script(ok(b"{}"))
    async with sender(script) as made:
        assert made.send()
        await script.wait_answered(1)
        await made.use()
        reply = await made.rest()
        assert (reply.status, [chunk async for chunk in reply]) == (200, [b"{}"])


@pytest.mark.parametrize("cut", range(1, len(ACCEPTED)))
async def test_a_response_that_has_come_in_part_is_read_on(cut: int) -> None:
    rest = trio.Event()
    begun = trio.Event()

    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(b"1"))
        await peer.request()
        await peer.send(ACCEPTED[:cut])
        begun.set()
        await rest.wait()
        await peer.send(ACCEPTED[cut:])
        await answer_all(peer)

    async with sender(handler) as made, trio.open_nursery() as nursery:
        assert made.send()
        await begun.wait()
        assert not made.send()
        nursery.start_soon(_finish, made)
        rest.set()
    assert made.told[0] is not None


async def _finish(made: Sender) -> None:
    reply = await made.rest()
    assert reply.status == 202
    assert [chunk async for chunk in reply] == []
    assert reply.is_closed
    assert await made.use() == b"1"
    assert made.transport.stats().opened_total == 1


async def test_a_server_that_hangs_up_instead_is_an_error_of_whoever_waits() -> None:
    script = Script(b"")
    async with sender(script) as made:
        assert made.send()
        await _until_readable(made)
        assert not made.send()
        with pytest.raises(httpx.RemoteProtocolError, match="without a response"):
            await made.rest()
        assert made.transport.stats().open == 0


async def test_garbage_is_an_error_of_whoever_waits() -> None:
    script = Script(b"SMTP ready\r\n\r\n")
    async with sender(script) as made:
        assert made.send()
        await script.wait_answered(1)
        assert not made.send()
        with pytest.raises(httpx.RemoteProtocolError, match="malformed"):
            await made.rest()
        assert made.transport.stats().open == 0


async def test_a_connection_is_given_up_if_nobody_waits_for_the_rest() -> None:
    script = Script(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\npart")
    async with sender(script) as made:
        made.wanted = False
        assert made.send()
        await script.wait_answered(1)
        assert await made.use() == b"2"
        [unread] = made.told
        assert unread is not None
        assert made.transport.stats().open == 1


async def test_what_the_server_never_answers_is_somebodys_after_five_seconds(
    mock_clock: MockClock,
) -> None:
    script = Script()
    async with sender(script) as made:
        script.may_answer = trio.Event()
        assert made.send()
        mock_clock.jump(3.9)  # a kept connection would have expired after four
        assert not made.send()
        assert made.told == []
        mock_clock.jump(1.2)
        assert not made.send()
        assert len(made.told) == 1
        with trio.move_on_after(1) as patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(_expect_cancelled, made))
                await trio.testing.wait_all_tasks_blocked()
                mock_clock.jump(2)
        assert patience.cancelled_caught
        assert made.transport.stats().open == 0


async def _expect_cancelled(made: Sender) -> None:
    await made.rest()
    raise AssertionError("there is no response")


async def test_a_connection_expires_from_when_the_request_was_sent(mock_clock: MockClock) -> None:
    script = Script(b"HTTP/1.1 202 Accepted\r\nKeep-Alive: timeout=20\r\nContent-Length: 0\r\n\r\n")
    async with sender(script) as made:
        assert made.send()
        await script.wait_answered(1)
        mock_clock.jump(18.5)
        assert await made.use() == b"1"
        assert made.send()
        await script.wait_answered(2)
        mock_clock.jump(4.5)  # the default is four; the response has been there since the start
        assert await made.use() == b"2"
        assert made.transport.stats().open == 1


async def test_cookies_are_handed_over(mock_clock: MockClock) -> None:
    cookie = b"HTTP/1.1 202 Accepted\r\nSet-Cookie: pin=a\r\nContent-Length: 0\r\n\r\n"
    script = Script(cookie)
    async with sender(script) as made:
        assert made.send()
        await script.wait_answered(1)
        await made.use()
        assert (await made.rest()).is_closed
        assert made.client.cookies["pin"] == "a"
        # From now on each request is made with the cookies that belong to it.
        assert not made.send()


async def test_a_closed_transport_tells_nobody() -> None:
    script = Script()
    async with sender(script) as made:
        assert made.send()
        await script.wait_answered(1)
        await made.transport.aclose()
        assert not made.send()
        assert made.told == []
        stats = made.transport.stats()
        assert (stats.open, stats.idle, stats.in_use) == (0, 0, 0)


async def test_what_the_kernel_takes_in_part_is_not_sent() -> None:
    script = Script()
    async with sender(script) as made:
        huge = b"x" * (64 * 1024 * 1024)
        sent = made.client.send_now(made.outline, huge, LIMITS, lambda _: True)
        assert not sent
        assert await made.use() == b"2"
        assert made.transport.stats().open == 1


async def test_a_connection_that_has_ended_is_not_used() -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(b"%d" % peer.number))

    async with sender(handler) as made:
        await _until_readable(made)
        assert not made.send()
        assert await made.use() == b"2"


async def test_streams_that_cannot_tell_at_once_are_left_alone(autojump_clock: MockClock) -> None:
    async with upstream() as (server, transport):
        await fetch(transport, build())
        client = new_client(transport)
        outline = client.outline("POST", httpx.URL("http://upstream.test/"), {})
        assert not client.send_now(outline, SENT, LIMITS, lambda _: True)
        assert isinstance(server.streams[0], FakeStream)
        assert transport.stats().idle == 1


async def _until_readable(made: Sender) -> None:
    [connection] = made.transport._pool._idle or made.transport._pool._in_use
    assert connection.plain is not None
    with trio.fail_after(10):
        await trio.lowlevel.wait_readable(connection.plain.socket.fileno())


async def test_a_response_that_never_comes_holds_up_no_other() -> None:
    """Each is looked at in the end, whatever the ones before it are waiting for."""
    stuck = trio.Event()
    script = Script()

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            if request.startswith(b"POST") and request.endswith(b"stuck"):
                stuck.set()
                await trio.sleep_forever()
            script.bodies.append(bytes(request))
            await peer.send(ACCEPTED if request.startswith(b"POST") else ok(b"%d" % peer.number))
            script.note_answered()

    async with sender(handler) as made:
        assert made.client.send_now(made.outline, b"stuck", LIMITS, lambda _: True)
        await stuck.wait()
        assert await made.use() == b"2"
        for number in range(1, 6):
            assert made.send()
            await script.wait_answered(number + 2)
            assert made.told == [None] * (number - 1)
        assert made.transport.stats().opened_total == 2


async def test_responses_are_looked_at_although_another_connection_is_idle() -> None:
    script = Script()
    async with sender(script) as made:
        await _open_idle(made, 3)
        script.may_answer = trio.Event()
        assert made.send()
        assert made.send()
        script.may_answer.set()
        await script.wait_answered(2)
        assert made.transport.stats().idle == 3
        assert await made.use()
        assert made.told == [None, None]
        assert made.transport.stats().open == 3


async def test_connections_beyond_the_limit_go_once_their_responses_are_there() -> None:
    script = Script()
    async with sender(script, max_connections=2) as made:
        script.may_answer = trio.Event()
        for _ in range(8):
            assert made.send()
            await made.use()
        assert made.transport.stats().open == 9
        script.may_answer.set()
        await script.wait_answered(8)
        for _ in range(3):
            await made.use()
        assert len(made.told) == 8
        assert made.transport.stats().open <= 3


async def test_what_a_response_would_be_told_is_not_kept_for_longer_than_that() -> None:
    """A session that has ended is not kept in memory by the receipt of its last pong."""

    class Session:
        def tell(self, unread: Unread | None) -> bool:
            return False

    script = Script()
    async with sender(script) as made:
        await _open_idle(made, 2)
        session = Session()
        ended = weakref.ref(session)
        assert made.client.send_now(made.outline, SENT, LIMITS, session.tell)
        del session
        await script.wait_answered(1)
        assert ended() is not None
        await made.use()
        gc.collect()
        assert ended() is None


async def test_a_cookie_reaches_later_requests_although_another_connection_is_idle() -> None:
    script = Script(b"HTTP/1.1 202 Accepted\r\nSet-Cookie: pin=a\r\nContent-Length: 0\r\n\r\n")
    async with sender(script) as made:
        await _open_idle(made, 2)
        assert made.send()
        await script.wait_answered(1)
        await made.use()
        await (await made.rest()).aclose()
        reply = await made.client.exchange(made.outline, SENT, Exchange(), LIMITS)
        await reply.aclose()
        assert b"cookie: pin=a" in script.bodies[-1].lower()


async def _open_idle(made: Sender, count: int) -> None:
    """Has so many connections idle."""
    while made.transport.stats().open < count:
        async with AsyncExitStack() as busy:
            pool = made.transport._pool
            leases = [Lease(control=True) for _ in pool._idle]
            for lease in leases:
                assert pool.take_now(lease)
                busy.callback(pool.release, lease, keep_seconds=4.0)
            await made.use()
    stats = made.transport.stats()
    assert (stats.open, stats.idle) == (count, count)


async def test_connections_that_have_expired_are_closed_by_what_is_not_waited_for(
    mock_clock: MockClock,
) -> None:
    script = Script(b"HTTP/1.1 202 Accepted\r\nKeep-Alive: timeout=20\r\nContent-Length: 0\r\n\r\n")
    async with sender(script) as made:
        await _open_idle(made, 3)
        pool = made.transport._pool
        streams = [connection.plain for connection in pool._idle]
        assert made.send()  # its connection may idle for longer than the others
        await script.wait_answered(1)
        mock_clock.jump(10)
        assert made.send()
        assert [stream.socket.fileno() < 0 for stream in streams if stream] == [True, True, False]
        await script.wait_answered(2)
        mock_clock.jump(10)
        assert not made.send()  # nothing is left, and that is closed, too
        assert [stream.socket.fileno() < 0 for stream in streams if stream] == [True] * 3
        assert made.transport.stats().open == 0


async def test_a_connection_that_is_given_up_by_what_is_not_waited_for_is_closed() -> None:
    script = Script(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\npart")
    async with sender(script) as made:
        made.wanted = False
        [connection] = made.transport._pool._idle
        assert connection.plain is not None
        assert made.send()
        await script.wait_answered(1)
        assert not made.send()
        assert connection.plain.socket.fileno() < 0


async def test_a_connection_that_takes_but_a_part_is_closed_at_once() -> None:
    async with sender(Script()) as made:
        [connection] = made.transport._pool._idle
        assert connection.plain is not None
        huge = b"x" * (64 * 1024 * 1024)
        assert not made.client.send_now(made.outline, huge, LIMITS, lambda _: True)
        assert connection.plain.socket.fileno() < 0


async def test_what_takes_waiting_to_be_closed_is_left_to_who_waits(
    autojump_clock: MockClock,
) -> None:
    async with upstream() as (server, transport):
        await fetch(transport, build())
        client = new_client(transport)
        outline = client.outline("POST", httpx.URL("http://upstream.test/"), {})
        await trio.sleep(10)  # it has expired
        assert not client.send_now(outline, SENT, LIMITS, lambda _: True)
        assert transport.stats().open == 0
        assert not server.streams[0].closed
        await fetch(transport, build())
        assert server.streams[0].closed
