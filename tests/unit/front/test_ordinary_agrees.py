"""The same conversations with our connections and with hypercorn as it comes."""

from __future__ import annotations

import itertools
from typing import Any

import trio
import trio.testing
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock
from unit.front.lean_kit import read_all, request, respond, statuses, take_body_or_none
from unit.front.test_ordinary import REQUESTS

from kars_router.front.exchange import BODY_AT_HAND, Receive, Scope, Send
from kars_router.front.hypercorn_server import HypercornServer

POST = "POST /mcp HTTP/1.1"
CHUNKED = "transfer-encoding: chunked"
Seen = tuple[list[int], list[Any]]


async def _outcome(pieces: list[bytes], *, plain: bool, at_hand: bool) -> Seen:
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        known = {**scope, "headers": [*scope["headers"]]}
        taken = known["extensions"].pop(BODY_AT_HAND, None)
        body = taken() if taken is not None and at_hand else None
        if body is None:
            body = await take_body_or_none(receive)
        seen.append((known, "disconnect" if body is None else body))
        if body is not None:
            await respond(send, b"ok")

    ours, theirs = trio.socket.socketpair()
    # The socket of a connection that plain hypercorn has given up stays open for the idle time.
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, trio.SocketStream(ours) as client:
            stream: Any = trio.SocketStream(theirs)
            if plain:
                config, wrapped = Config(), ASGIWrapper(app)  # type: ignore[arg-type]
                config.errorlog = None
                tcp = TCPServer(wrapped, config, WorkerContext(None), {}, stream)
                nursery.start_soon(tcp.run)
            else:
                nursery.start_soon(HypercornServer(app, keep_alive=5).handle, stream)
            try:
                for piece in pieces:
                    await client.send_all(piece)
                    await trio.testing.wait_all_tasks_blocked()
                await client.send_eof()
            except trio.BrokenResourceError:
                pass
            answer = await read_all(client)
            nursery.cancel_scope.cancel()
        await stream.aclose()
    return statuses(answer), seen


async def each(pieces: list[bytes]) -> list[Seen]:
    """With plain hypercorn; with ours, which waits for bodies; with ours, which need not."""
    return [
        await _outcome(pieces, plain=plain, at_hand=at_hand)
        for plain, at_hand in ((True, False), (False, False), (False, True))
    ]


WHOLE = st.sampled_from(
    [
        request(),
        request(POST, body=b"{}"),
        request("DELETE /mcp HTTP/1.1"),
        request(POST, CHUNKED) + b"1\r\na\r\n0\r\n\r\n",
        request(POST, "content-length: 2", CHUNKED) + b"1\r\na\r\n0\r\n\r\n",
        request("HEAD / HTTP/1.1"),
        request("GET / HTTP/1.1", "connection: close"),
        request(POST, "expect: 100-continue", body=b"ab"),
    ]
)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """What a client sends, in the pieces in which it sends it."""
    data = b"".join(draw(st.lists(st.one_of(WHOLE, WHOLE, REQUESTS), min_size=1, max_size=4)))
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=3))
    places = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(places)]
    return [piece for piece in pieces if piece]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
@example([request(), request(POST, CHUNKED), b"1\r\na\r\n0\r\n\r\n", request(POST, body=b"ab")])
@example([request(POST, CHUNKED) + b"%x\r\n" % len(request()), request(), b"\r\n0\r\n\r\n"])
@example([request(POST, "content-length: 99"), request(), request() * 3])
@example([b"GET / HTTP/1.1\r\na: b\r\n", request(), request()])
@example([request(POST, CHUNKED) + b"0\r\n\r\nGET / HTTP/1.1\r\na: b\r\n", request()])
@example([request(POST, "content-length: 4") + b"ab"])
@example([request(POST, "content-length: 4"), b"ab", b"cd" + request() + b"GET /"])
@example([request() + b"nonsense\r\n\r\n"])
def test_whatever_comes_is_taken_as_plain_hypercorn_takes_it(pieces: list[bytes]) -> None:
    theirs, *ours = trio.run(each, pieces, clock=MockClock(autojump_threshold=0.05))
    assert ours == [theirs, theirs]
