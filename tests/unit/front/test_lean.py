"""The lean server takes requests: whose turn it is, and how far it reads."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from unit.front.lean_kit import (
    BIG,
    Recorder,
    read_all,
    read_some,
    request,
    respond,
    serving,
    split_response,
    statuses,
    take_body,
)

from kars_router.front.exchange import BODY_AT_HAND, Receive, Scope, Send


async def test_requests_on_one_connection_are_answered_in_turn() -> None:
    app = Recorder()
    async with serving(app) as rig:
        stream = await rig.connect()
        for number in range(3):
            body = b"body %d" % number
            await stream.send_all(request("POST /x%20y?q=1 HTTP/1.1", body=body))
            answer = split_response(await read_some(stream, body))
            assert (answer[0], answer[1]["content-length"], answer[2]) == (200, "6", body)
            assert answer[1]["date"].endswith("gmt")
            assert "connection" not in answer[1]
        await stream.aclose()
        await rig.ends()
    scope = dict(app.scopes[0])
    assert [*scope.pop("extensions")] == [BODY_AT_HAND]
    assert scope.pop("headers") == [(b"host", b"localhost"), (b"content-length", b"6")]
    assert scope == {
        "type": "http",
        "http_version": "1.1",
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": "POST",
        "scheme": "http",
        "path": "/x y",
        "raw_path": b"/x%20y",
        "query_string": b"q=1",
        "root_path": "",
        "client": None,
        "server": None,
        "state": {},
    }


async def test_requests_that_come_at_once_are_answered_in_order() -> None:
    app = Recorder()
    async with serving(app) as rig:
        many = [request("POST / HTTP/1.1", body=b"%03d" % n) for n in range(200)]
        answer = await rig.ask(b"".join(many))
    assert app.bodies == [b"%03d" % n for n in range(200)]
    assert statuses(answer) == [200] * 200


async def test_what_is_behind_a_request_is_read_ahead_only_so_far() -> None:
    go_on = trio.Event()
    left: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await take_body(receive)
        if scope["path"] == "/wait":
            async with trio.open_nursery() as nursery:

                async def watch() -> None:
                    left.append((await receive())["type"])

                nursery.start_soon(watch)
                await go_on.wait()
                assert left == []
                await respond(send, b"waited")
        else:
            await respond(send, b"went on")

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request("GET /wait HTTP/1.1"))
        sent = 0

        async def flood() -> None:
            nonlocal sent
            one = request("POST / HTTP/1.1", body=b"x" * 10_000)
            for _ in range(400):
                await stream.send_all(one)
                sent += len(one)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert sent < 3_000_000  # the rest waits at the peer
            go_on.set()
            answer = await read_all(stream)
        assert statuses(answer) == [200] * 401
        assert answer.endswith(b"went on")
    assert left == ["http.disconnect"]


async def test_one_connection_with_many_requests_lets_others_have_their_turn() -> None:
    served: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        served.append(scope["path"])
        await respond(send)

    async with serving(app) as rig:
        one, other = await rig.connect(), await rig.connect()
        await one.send_all(request("GET /one HTTP/1.1") * 100)
        await other.send_all(request("GET /other HTTP/1.1"))
        await read_some(other, b"\r\n\r\n")
        assert served.index("/other") < 50
        await one.aclose()
        await other.aclose()


@given(
    st.lists(
        st.sampled_from(
            [
                request("GET /a HTTP/1.1"),
                request("HEAD /b HTTP/1.1"),
                request("POST /c HTTP/1.1", body=b"five5"),
                request("POST /d HTTP/1.1", "transfer-encoding: chunked")
                + b"3\r\nabc\r\n2;x\r\nde\r\n0\r\nt: u\r\n\r\n",
            ]
        ),
        min_size=1,
        max_size=4,
    ),
    st.lists(st.integers(1, 400), max_size=12),
)
def test_it_does_not_matter_in_which_pieces_requests_come(
    requests: list[bytes], cuts: list[int]
) -> None:
    data = b"".join(requests)
    ends = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    parts = [data[a:b] for a, b in itertools.pairwise(ends)]

    async def outcome(parts: list[bytes]) -> tuple[Any, ...]:
        app = Recorder()
        async with serving(app) as rig:
            answer = await rig.ask(*parts, pause=0.001)
        seen = [(scope["method"], scope["path"], scope["headers"]) for scope in app.scopes]
        return seen, app.bodies, answer

    def run(parts: list[bytes]) -> tuple[Any, ...]:
        return trio.run(outcome, parts, clock=MockClock(autojump_threshold=0))

    seen, bodies, answer = run(parts)
    assert (seen, bodies) == run([data])[:2]
    assert statuses(answer) == [200] * len(requests)


async def test_a_body_is_read_as_far_as_it_is_wanted() -> None:
    wanted = trio.Event()
    bodies: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await wanted.wait()
        bodies.append(len(await take_body(receive)))
        await respond(send)

    async with serving(app) as rig:
        stream = await rig.connect()
        sent = False

        async def upload() -> None:
            nonlocal sent
            await stream.send_all(request("POST / HTTP/1.1", body=BIG))
            sent = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert not sent
            wanted.set()
            await read_some(stream, b"\r\n\r\n")
        await stream.aclose()
    assert bodies == [len(BIG)]


async def test_a_chunked_body_comes_in_pieces() -> None:
    app = Recorder()
    async with serving(app) as rig:
        answer = await rig.ask(
            request("POST / HTTP/1.1", "transfer-encoding: chunked"),
            b"5\r\nhello\r\n",
            b"1\r\n \r\n5\r\nworld\r",
            b"\n0\r\n\r\n" + request(),
            pause=0.01,
        )
    assert app.bodies == [b"hello world", b""]
    assert statuses(answer) == [200, 200]


@pytest.mark.parametrize("when", ["at once", "later"])
async def test_a_chunked_body_that_is_none(when: str) -> None:
    app = Recorder()
    head = request("POST / HTTP/1.1", "transfer-encoding: chunked")
    async with serving(app) as rig:
        parts = [head + b"5\r\nhello" + b"NO"] if when == "at once" else [head, b"5\r\nhelloNO"]
        answer = await rig.ask(*parts, pause=0.01)
    assert statuses(answer) == [400]
    assert split_response(answer)[1]["connection"] == "close"
    assert app.kinds[-1] == "http.disconnect"
    assert app.bodies == []


async def test_a_peer_that_waits_for_a_word_gets_it_when_its_body_is_wanted() -> None:
    wanted = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await wanted.wait()
        await respond(send, await take_body(receive))

    async with serving(app) as rig:
        stream = await rig.connect()
        head = request("POST / HTTP/1.1", "content-length: 4", "expect: 100-continue")
        await stream.send_all(head)
        await trio.testing.wait_all_tasks_blocked(0.01)
        wanted.set()
        assert await stream.receive_some() == b"HTTP/1.1 100 \r\n\r\n"
        await stream.send_all(b"body")
        assert (await read_some(stream, b"body")).startswith(b"HTTP/1.1 200 ")
        # One that does not wait gets no word.
        await stream.send_all(head + b"more")
        assert (await read_some(stream, b"more")).startswith(b"HTTP/1.1 200 ")
        await stream.aclose()


async def test_a_body_that_nobody_wanted_is_dropped_if_it_is_there() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async with serving(app) as rig:
        answer = await rig.ask(request("POST / HTTP/1.1", body=b"here") + request())
        assert statuses(answer) == [200, 200]
        # Of a longer one the rest cannot be told from a request, so that is the end.
        stream = await rig.connect()
        await stream.send_all(request("POST / HTTP/1.1", "content-length: 9"))
        assert statuses(await read_some(stream, b"\r\n\r\n")) == [200]
        assert await read_all(stream) == b""
        expecting = request("POST / HTTP/1.1", "content-length: 9", "expect: 100-continue")
        assert statuses(await rig.ask(expecting)) == [200]


async def test_an_answer_before_the_body_reaches_a_peer_that_is_still_sending() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await respond(send, b"too much", 413, connection="close")

    async with serving(app) as rig:
        answer = await rig.ask(request("POST / HTTP/1.1", body=BIG))
    status, headers, body = split_response(answer)
    assert (status, headers["connection"], body) == (413, "close", b"too much")


async def test_a_peer_that_never_stops_sending_is_not_listened_to_for_ever(
    autojump_clock: MockClock,
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"no", 413, connection="close")

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request("POST / HTTP/1.1", "content-length: 999999"))
        assert (await read_some(stream, b"no")).startswith(b"HTTP/1.1 413 ")
        start = trio.current_time()
        await rig.ends()
        assert 1.9 < trio.current_time() - start < 2.1
        await stream.aclose()
