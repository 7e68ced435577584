"""Requests on kept connections that turn out to be dead, over the real HTTP transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from http_kit import Peer, Upstream, assert_clean, cancel_at, ok, upstream
from trio.testing import MockClock

from kars_router.kube import Connection, Kube, UnreachableError, open_kube
from kars_router.kube.resources import CONFIG_MAPS, PODS

SERVER = "http://upstream.test"
POD = b'{"kind": "Pod", "metadata": {"name": "a"}}'


@asynccontextmanager
async def open_on(
    handler: Callable[[Peer], Awaitable[None]],
) -> AsyncIterator[tuple[Kube, Upstream]]:
    async with (
        upstream(handler) as (server, transport),
        open_kube(Connection(server=SERVER), transport=transport) as kube,
    ):
        yield kube, server


async def answers_but_watches(peer: Peer) -> None:
    """Answers requests; of a watch only the head comes."""
    while request := await peer.request():
        if b"watch=true" in request:
            await peer.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            await trio.sleep_forever()
        await peer.send(ok(POD))


def hangs_up_on(*numbers: int) -> tuple[Callable[[Peer], Awaitable[None]], list[str]]:
    """Answers, but hangs up on the requests with these numbers, having read them."""
    seen: list[str] = []

    async def handler(peer: Peer) -> None:
        while request := await peer.request():
            seen.append(request.split()[0].decode())
            if len(seen) in numbers:
                return
            await peer.send(ok(POD))

    return handler, seen


MANIFEST = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}
CHANGE = {"data": {"x": "1"}}


@pytest.mark.parametrize(
    ("ask", "method"),
    [
        (lambda kube: kube.get(PODS, "a"), "GET"),
        (lambda kube: kube.delete(PODS, "a"), "DELETE"),
        (lambda kube: kube.patch(CONFIG_MAPS, "a", None, CHANGE), "PATCH"),
        (lambda kube: kube.apply(MANIFEST, manager="m"), "PATCH"),
    ],
)
async def test_what_can_be_repeated_is_sent_once_more(
    ask: Callable[[Kube], Awaitable[object]], method: str, autojump_clock: MockClock
) -> None:
    handler, seen = hangs_up_on(2, 4, 5)
    async with open_on(handler) as (kube, _):
        await kube.get(PODS, "a")
        await ask(kube)  # on the kept connection, then on a new one
        assert seen == ["GET", method, method]
        with pytest.raises(UnreachableError):
            await ask(kube)
        assert len(seen) == 5


@pytest.mark.parametrize(
    "ask",
    [
        lambda kube: kube.create(MANIFEST),
        lambda kube: kube.replace(MANIFEST),
        lambda kube: kube.patch(
            CONFIG_MAPS, "a", None, {"metadata": {"resourceVersion": "1"}, **CHANGE}
        ),
    ],
)
async def test_what_cannot_be_repeated_is_not(
    ask: Callable[[Kube], Awaitable[object]], autojump_clock: MockClock
) -> None:
    handler, seen = hangs_up_on(2)
    async with open_on(handler) as (kube, _):
        await kube.get(PODS, "a")
        with pytest.raises(UnreachableError, match="cannot be reached"):
            await ask(kube)
        assert len(seen) == 2


async def test_nothing_is_repeated_on_a_new_connection(autojump_clock: MockClock) -> None:
    handler, seen = hangs_up_on(1)
    async with open_on(handler) as (kube, _):
        with pytest.raises(UnreachableError):
            await kube.get(PODS, "a")
        assert seen == ["GET"]


async def test_an_answer_that_breaks_off_is_told(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(POD)[:-5])

    async with open_on(handler) as (kube, _):
        with pytest.raises(UnreachableError, match="cannot be reached"):
            await kube.get(PODS, "a")


async def test_an_answer_that_never_ends_is_left(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(POD)[:-5])
        await trio.sleep_forever()

    async with open_on(handler) as (kube, server):
        with pytest.raises(UnreachableError, match="did not answer within 30 s"):
            await kube.get(PODS, "a")
        assert server.open_streams == 0


async def test_a_compressed_answer_is_not_unpacked(autojump_clock: MockClock) -> None:
    async def handler(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(POD, headers=b"Content-Encoding: gzip\r\n")[:-1])
        await trio.sleep_forever()

    async with open_on(handler) as (kube, server):
        with pytest.raises(UnreachableError, match="in the content encoding gzip"):
            await kube.get(PODS, "a")
        assert server.open_streams == 0
        with pytest.raises(UnreachableError, match="in the content encoding gzip"):
            async with kube.watch(PODS, resource_version="1"):
                pytest.fail("there is no watch")
        assert server.open_streams == 0


async def test_watches_take_no_place_from_requests(autojump_clock: MockClock) -> None:
    async with (
        upstream(answers_but_watches, max_connections=1) as (server, transport),
        open_kube(Connection(server=SERVER), transport=transport) as kube,
        kube.watch(PODS, resource_version="1"),
        kube.watch(CONFIG_MAPS, resource_version="1"),
    ):
        await kube.get(PODS, "a")
        await kube.get(PODS, "a")
        assert server.open_streams == 3


async def test_a_watch_that_is_left_closes_its_connection(autojump_clock: MockClock) -> None:
    async with open_on(answers_but_watches) as (kube, server):
        with trio.move_on_after(10):
            async with kube.watch(PODS, resource_version="1") as events:
                await anext(events)
        assert server.open_streams == 0


async def test_a_silent_watch_ends_in_the_end(autojump_clock: MockClock) -> None:
    async with open_on(answers_but_watches) as (kube, server):
        with pytest.raises(UnreachableError, match="did not end a watch"):
            async with kube.watch(PODS, resource_version="1", seconds=60) as events:
                await anext(events)
        assert trio.current_time() == pytest.approx(90)
        assert server.open_streams == 0


async def test_wherever_a_request_is_cancelled_nothing_is_left(autojump_clock: MockClock) -> None:
    async def ask(kube: Kube) -> None:
        await kube.get(PODS, "a")
        with trio.move_on_after(1):
            async with kube.watch(PODS, resource_version="1") as events:
                await anext(events)
        await kube.apply(MANIFEST, manager="m")

    async with upstream(answers_but_watches) as (server, transport):
        cancelled = True
        checkpoint = 0
        while cancelled:
            checkpoint += 1
            async with open_kube(Connection(server=SERVER), transport=transport) as kube:
                cancelled = await cancel_at(checkpoint, lambda kube=kube: ask(kube))  # type: ignore[misc]
            assert_clean(transport)
            await transport.renew()
            assert server.open_streams == 0
        assert checkpoint > 10
