"""How much, how slow and how many: what agents may do to a socket, whichever listener reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from agent_kit import BOTH, Bench, initialize, open_bench, rpc
from attrs import define
from serving_kit import open_socket
from trio.testing import MockClock, wait_all_tasks_blocked
from unit.front.lean_kit import read_all, statuses

from kars_router.config.schema import Listener

MIB = 1 << 20
BODY_LIMIT = 4 * MIB
HEAD_SECONDS = 10
BODY_SECONDS = 30


@define
class Place:
    """A router's agent side on a socket."""

    bench: Bench
    path: str
    listener: Listener

    async def connect(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)

    async def send(self, *parts: bytes) -> trio.SocketStream:
        """A connection over which this was sent."""
        stream = await self.connect()
        for part in parts:
            await stream.send_all(part)
        return stream

    async def post(self, message: Any, session: str | None = None) -> trio.SocketStream:
        """A connection over which a message was sent."""
        body = msgspec.json.encode(message)
        return await self.send(head(session, f"content-length: {len(body)}") + body)


def head(session: str | None, *further: str) -> bytes:
    """The head of a POST."""
    lines = ["POST /mcp HTTP/1.1", "host: localhost", f"accept: {BOTH}"]
    lines.append("content-type: application/json")
    if session is not None:
        # Without a revision the body would have to be read: it may name one without sessions.
        lines += [f"mcp-session-id: {session}", "mcp-protocol-version: 2025-11-25"]
    return "\r\n".join([*lines, *further, "", ""]).encode()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
async def place(each_listener: str) -> AsyncIterator[Place]:
    async with open_place(each_listener) as one:
        yield one


@asynccontextmanager
async def open_place(listener: str, **options: Any) -> AsyncIterator[Place]:
    async with open_bench(**options) as bench:
        chosen = Listener(listener)
        async with open_socket(bench.router.app, bench.nursery, chosen) as path:
            yield Place(bench, path, chosen)


@pytest.mark.parametrize("sent", [b"", b"POST", head(None)[:-4], head(None)[:-2]])
async def test_a_head_that_does_not_come_is_given_up(place: Place, sent: bytes) -> None:
    before = descriptors()
    start = trio.current_time()
    assert statuses(await read_all(await place.send(sent))) == []
    assert trio.current_time() - start == pytest.approx(HEAD_SECONDS, abs=0.5)
    assert descriptors() == before


async def test_a_head_may_come_slowly_but_not_for_ever(place: Place) -> None:
    stream = await place.connect()
    start = trio.current_time()

    async def drip() -> None:
        for byte in head(None, "x: " + "a" * 1000):
            await stream.send_all(bytes([byte]))
            await trio.sleep(0.1)

    with pytest.raises(trio.BrokenResourceError):
        await drip()
    assert trio.current_time() - start == pytest.approx(HEAD_SECONDS, abs=0.5)
    await stream.aclose()


@pytest.mark.parametrize("piece", [1, 1000, 20_000])
async def test_a_head_of_almost_sixteen_kib_is_taken(place: Place, piece: int) -> None:
    body = msgspec.json.encode(initialize())
    short = head(None, f"content-length: {len(body)}", "x: ")
    whole = short[:-4] + b"a" * (16_000 - len(short)) + short[-4:] + body
    pieces = [whole[at : at + piece] for at in range(0, len(whole), piece)]
    stream = await place.send(*pieces)
    await stream.send_eof()
    assert statuses(await read_all(stream)) == [200]


@pytest.mark.parametrize("piece", [1000, 70_000])
async def test_a_head_of_more_than_a_read_is_refused(place: Place, piece: int) -> None:
    whole = head(None, "x: " + "a" * 80_000)
    stream = await place.connect()
    try:
        for at in range(0, len(whole), piece):
            await stream.send_all(whole[at : at + piece])
            await wait_all_tasks_blocked()
    except trio.BrokenResourceError:
        pass
    assert statuses((await read_all(stream)).removesuffix(b" (reset)")) == [431]
    assert len(place.bench.router.agents) == 0


@pytest.mark.parametrize("sized", [True, False])
@pytest.mark.parametrize("every", [0.0, 1.0])
async def test_a_body_that_does_not_come_is_given_up(
    place: Place, every: float, sized: bool
) -> None:
    framing = "content-length: 1000" if sized else "transfer-encoding: chunked"
    stream = await place.send(head(None, framing), b"" if sized else b"3e8\r\n")
    start = trio.current_time()
    answer = b""

    async def drip() -> None:
        while True:
            await stream.send_all(b" ")
            await trio.sleep(every or 1000)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drip)
        while not answer.endswith(b"}"):
            answer += await stream.receive_some()
        nursery.cancel_scope.cancel()
    assert statuses(answer) == [408]
    assert trio.current_time() - start == pytest.approx(BODY_SECONDS, abs=1)
    with trio.fail_after(5):
        await read_all(stream)


async def test_a_body_that_is_said_to_be_too_long_is_not_waited_for(place: Place) -> None:
    stream = await place.send(head(None, f"content-length: {BODY_LIMIT + 1}"))
    start = trio.current_time()
    answer = await read_all(stream)
    assert statuses(answer) == [413]
    assert b"\r\nconnection: close\r\n" in answer
    assert trio.current_time() - start < 5


async def test_a_body_that_is_too_long_is_not_taken(place: Place) -> None:
    stream = await place.send(head(None, "transfer-encoding: chunked"))
    answer = b""
    sent = 0

    async def pour() -> None:
        nonlocal sent
        piece = b" " * MIB
        try:
            for _ in range(100):
                await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
                sent += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it had heard enough

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour)
        with trio.fail_after(5):
            answer = await read_all(stream)
        nursery.cancel_scope.cancel()
    assert statuses(answer.removesuffix(b" (reset)")) == [413]
    # What is on its way when the answer is written is dropped, so that the answer arrives.
    assert 4 <= sent <= 22


async def test_the_body_of_a_stranger_is_not_read(place: Place) -> None:
    stream = await place.send(head("made-up", "content-length: 1000000"), b" " * 1000)
    start = trio.current_time()
    assert statuses(await read_all(stream)) == [404]
    assert trio.current_time() - start < 5


async def test_the_body_of_a_web_pages_request_is_not_taken_for_requests(place: Place) -> None:
    """A page may send any body to anywhere, and this one looks like an agent's requests."""
    body = msgspec.json.encode(initialize())
    inner = head(None, f"content-length: {len(body)}") + body
    outer = head(None, "origin: http://evil.example", f"content-length: {1000 * len(inner)}")
    for _ in range(30):
        stream = await place.send(outer)
        with suppress(trio.BrokenResourceError):
            for _ in range(20):
                await stream.send_all(inner)
        assert statuses((await read_all(stream)).removesuffix(b" (reset)")) == [403]
        await wait_all_tasks_blocked()
        assert len(place.bench.router.agents) == 0


@pytest.mark.parametrize("part", [b"", b" " * 999])
async def test_who_leaves_in_a_request_leaves_nothing_behind(place: Place, part: bytes) -> None:
    before = descriptors()
    for _ in range(20):
        await (await place.send(head(None, "content-length: 1000"), part)).aclose()
    await wait_all_tasks_blocked()
    assert len(place.bench.router.agents) == 0
    assert descriptors() == before


async def test_a_call_goes_on_when_its_agent_leaves(place: Place) -> None:
    agent = await place.bench.connect()
    before = descriptors()
    slow = rpc("tools/call", {"name": "box__slow", "arguments": {"seconds": 5}})
    await (await place.post(slow, agent.session)).aclose()
    await trio.sleep(1)
    assert place.bench.router.operations.in_flight == 1
    await trio.sleep(5)
    assert place.bench.router.operations.in_flight == 0
    assert descriptors() <= before


async def test_many_who_say_nothing_are_let_go_and_harm_nobody(place: Place) -> None:
    before = descriptors()
    streams = []
    start = trio.current_time()
    for _ in range(300):
        streams.append(await place.connect())
        await trio.sleep(0.01)
    agent = await place.bench.connect()
    assert await agent.request("ping") == {}
    for stream in streams:
        assert await read_all(stream) == b""
    assert trio.current_time() - start == pytest.approx(HEAD_SECONDS + 3, abs=0.5)
    assert descriptors() == before


async def test_a_flood_on_one_connection_is_answered_in_turn(place: Place) -> None:
    """Others are answered meanwhile."""
    agent = await place.bench.connect()
    body = msgspec.json.encode(rpc("ping"))
    one = head(agent.session, f"content-length: {len(body)}") + body
    stream = await place.connect()
    answers = b""

    async def pour() -> None:
        await stream.send_all(one * 500)
        await stream.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pour)
        answers += await stream.receive_some()
        assert await agent.request("ping") == {}
        assert len(statuses(answers)) < 500
        answers += await read_all(stream)
    assert statuses(answers) == [200] * 500


async def test_who_reads_nothing_of_a_flood_holds_up_nobody(place: Place) -> None:
    agent = await place.bench.connect()
    body = msgspec.json.encode(rpc("tools/list"))
    one = head(agent.session, f"content-length: {len(body)}") + body
    stream = await place.connect()
    with trio.move_on_after(5):
        await stream.send_all(one * 5000)
        raise AssertionError("what nobody reads was taken")
    assert await agent.request("ping") == {}
    await stream.aclose()


async def test_of_a_burst_of_sessions_so_many_are_opened(
    each_listener: str, autojump_clock: MockClock
) -> None:
    async with open_place(each_listener, limits={"agentSessions": 20}) as place:
        streams = [await place.post(initialize()) for _ in range(50)]
        for stream in streams:
            await stream.send_eof()
        answered = [statuses(await read_all(stream)) for stream in streams]
        assert sorted(answered) == [[200]] * 20 + [[503]] * 30
