"""The lean server's connections: whose turn it is, how long what may take, and how they end."""

from __future__ import annotations

import itertools
import math
import socket
import struct
from typing import Any

import pytest
import structlog
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock
from unit.front.lean_kit import (
    KEEP_ALIVE,
    Recorder,
    read_all,
    read_some,
    request,
    respond,
    serving,
    split_response,
    statuses,
)

from kars_router.front.exchange import Receive, Scope, Send
from kars_router.front.lean import LeanServer

BIG = b"z" * 4_000_000  # more than both ends hold


async def take_body(receive: Receive) -> bytes:
    body = b""
    while True:
        message = await receive()
        assert message["type"] == "http.request"
        body += bytes(message["body"])
        if not message["more_body"]:
            return body


# --- one request after the other ----------------------------------------------------------------


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
        "extensions": {},
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


# --- bodies -------------------------------------------------------------------------------------


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


# --- responses ----------------------------------------------------------------------------------


async def stream_of_three(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    for part in (b"one", b"", b"two"):
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"three"})


async def test_a_response_of_unknown_length_is_chunked() -> None:
    async with serving(stream_of_three) as rig:
        answer = await rig.ask(request() + request())
    status, headers, rest = split_response(answer)
    assert (status, headers["transfer-encoding"], headers["x"]) == (200, "chunked", "y")
    assert rest.startswith(b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\nHTTP/1.1 200 ")


async def test_an_old_peer_gets_it_up_to_the_end_of_the_connection() -> None:
    async with serving(stream_of_three) as rig:
        answer = await rig.ask(request("GET / HTTP/1.0", "connection: keep-alive"))
    status, headers, rest = split_response(answer)
    assert (status, headers["connection"], rest) == (200, "close", b"onetwothree")
    assert "transfer-encoding" not in headers


async def test_the_head_of_a_stream_is_not_held_back() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await go_on.wait()
        await send({"type": "http.response.body", "body": b"event", "more_body": True})
        await trio.sleep_forever()

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request())
        assert (await read_some(stream, b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        go_on.set()
        assert await stream.receive_some() == b"5\r\nevent\r\n"
        rig.nursery.cancel_scope.cancel()
        await stream.aclose()


async def test_a_response_without_a_body() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"not for you", int(scope["path"][1:]))

    async with serving(app) as rig:
        answer = await rig.ask(
            request("HEAD /200 HTTP/1.1")
            + request("GET /204 HTTP/1.1")
            + request("GET /304 HTTP/1.1")
        )
    assert statuses(answer) == [200, 204, 304]
    assert b"not for you" not in answer
    first, second, third = answer.split(b"HTTP/1.1 ")[1:]
    assert b"content-length: 11" in first
    assert b"content-length" not in second
    assert b"content-length: 11" in third


async def test_a_large_response_gets_there_whole() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/sized":
            await respond(send, BIG)
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": BIG})

    async with serving(app) as rig:
        sized = await rig.ask(request("GET /sized HTTP/1.1"))
        assert split_response(sized)[2] == BIG
        chunked = await rig.ask(request("GET /chunked HTTP/1.1"))
        assert split_response(chunked)[2] == b"%x\r\n%b\r\n0\r\n\r\n" % (len(BIG), BIG)


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], b"HTTP/1.1 500 "),
        (["boom"], b"HTTP/1.1 500 "),
        (["body"], b"HTTP/1.1 500 "),
        (["start 9", "boom"], b"HTTP/1.1 500 "),
        (["start 9", "body"], b"HTTP/1.1 500 "),
        (["start 3", "body"], b"HTTP/1.1 500 "),
        (["start x", "body"], b"HTTP/1.1 500 "),
        (["evil", "body"], b"HTTP/1.1 500 "),
        (["info", "body"], b"HTTP/1.1 500 "),
        (["odd"], b"HTTP/1.1 500 "),
        (["start 9", "more", "boom"], b"HTTP/1.1 200 "),
        (["start 9", "more"], b"HTTP/1.1 200 "),
        (["start 5", "more", "more"], b"HTTP/1.1 200 "),
        (["start", "more", "boom"], b"HTTP/1.1 200 "),
        (["start", "more"], b"HTTP/1.1 200 "),
        (["start", "start"], b"HTTP/1.1 200 "),
    ],
)
async def test_an_application_that_breaks_off(messages: list[str], what: bytes) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for message in messages:
            word, _, length = message.partition(" ")
            fields = [(b"content-length", length.encode())] if length else []
            if word == "evil":
                fields = [(b"x", b"a\r\nset-cookie: b")]
            if word == "boom":
                raise RuntimeError("the application broke")
            if word in ("start", "evil", "info"):
                status = 103 if word == "info" else 200
                await send({"type": "http.response.start", "status": status, "headers": fields})
            elif word == "odd":
                await send({"type": "http.response.push"})
            else:
                more = word == "more"
                await send({"type": "http.response.body", "body": b"four", "more_body": more})

    with structlog.testing.capture_logs() as logs:
        async with serving(app) as rig:
            answer = await rig.ask(request() + request())
    assert answer.startswith(what)
    assert len(statuses(answer)) == 1
    assert not answer.endswith(b"0\r\n\r\n")  # it cannot be taken for a whole one
    silent = messages in ([], ["start 9", "more"], ["start", "more"])
    assert [line["event"] for line in logs] == ([] if silent else ["http_server"])


async def test_the_framing_is_not_the_application_s() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        fields = [(b"Transfer-Encoding", b"gzip"), (b"Connection", b"keep-alive")]
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"body"})

    async with serving(app) as rig:
        _, headers, rest = split_response(await rig.ask(request()))
    assert headers["transfer-encoding"] == "chunked"
    assert headers["connection"] == "keep-alive"
    assert rest == b"4\r\nbody\r\n0\r\n\r\n"


async def test_a_response_can_be_made_by_several_tasks() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def part(letter: bytes) -> None:
            body = letter * 1_000_000
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async with trio.open_nursery() as nursery:
            for letter in (b"a", b"b", b"c"):
                nursery.start_soon(part, letter)
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as rig:
        _, _, rest = split_response(await rig.ask(request()))
    chunk = [b"f4240\r\n%b\r\n" % (letter * 1_000_000) for letter in (b"a", b"b", b"c")]
    assert (
        sorted(rest[at : at + len(chunk[0])] for at in range(0, 3 * len(chunk[0]), len(chunk[0])))
        == chunk
    )
    assert rest.endswith(b"0\r\n\r\n")


async def test_a_write_that_its_task_gives_up_does_not_tear_the_stream() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with trio.move_on_after(0.05):
            await send({"type": "http.response.body", "body": BIG, "more_body": True})
            await trio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": b"end"})

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request("GET / HTTP/1.1", "connection: close"))
        await trio.testing.wait_all_tasks_blocked(0.1)
        _, _, rest = split_response(await read_all(stream))
        assert rest == b"%x\r\n%b\r\n3\r\nend\r\n0\r\n\r\n" % (len(BIG), BIG)


# --- peers that leave, and time ------------------------------------------------------------------


async def watching(rig_app: list[str], scope: Scope, receive: Receive, send: Send) -> None:
    await take_body(receive)
    rig_app.append((await receive())["type"])
    await respond(send, b"late")


@pytest.mark.parametrize("how", ["end of file", "closed", "reset"])
async def test_an_application_learns_that_its_peer_has_left(how: str) -> None:
    seen: list[str] = []
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await watching(seen, scope, receive, send)
        assert (await receive())["type"] == "http.disconnect"
        done.set()

    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with serving(app) as rig:
        stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        rig.nursery.start_soon(rig.server.handle, await listener.accept())
        await stream.send_all(request())
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert seen == []
        if how == "end of file":
            await stream.send_eof()
            assert (await read_some(stream, b"late")).startswith(b"HTTP/1.1 200 ")
        elif how == "reset":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        with trio.fail_after(5):
            await done.wait()
    assert seen == ["http.disconnect"]
    await listener.aclose()


async def test_what_is_said_to_a_peer_that_has_left_is_lost_in_silence() -> None:
    go_on, done = trio.Event(), trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await go_on.wait()
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"event", "more_body": True})
        await send({"type": "http.response.body", "body": b""})
        done.set()

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request())
        await read_some(stream, b"\r\n\r\n")
        await stream.aclose()
        go_on.set()
        with trio.fail_after(5):
            await done.wait()


async def test_a_peer_that_leaves_while_it_is_written_to() -> None:
    done = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, BIG)
        done.set()

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request())
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not done.is_set()
        await stream.aclose()
        with trio.fail_after(5):
            await done.wait()


async def test_a_body_that_goes_bad_after_the_answer_began() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"so far", "more_body": True})
        while (message := await receive())["type"] == "http.request":
            seen.append(message["type"])
        await send({"type": "http.response.body", "body": b"never"})

    async with serving(app) as rig:
        answer = await rig.ask(
            request("POST / HTTP/1.1", "transfer-encoding: chunked") + b"xyz\r\n"
        )
    assert split_response(answer)[2] == b"6\r\nso far\r\n"
    assert seen == []


async def test_a_peer_that_leaves_in_the_middle_of_its_body() -> None:
    app = Recorder()
    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request("POST / HTTP/1.1", "content-length: 9") + b"1234")
        await stream.send_eof()
        assert statuses(await read_all(stream)) == [400]
    assert app.kinds == ["http.request", "http.disconnect"]


async def test_after_its_response_an_application_is_told_that_it_is_over() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await take_body(receive)

        async def watch() -> None:
            seen.append((await receive())["type"])

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await respond(send, b"fine")
        seen.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b"more"})

    async with serving(app) as rig:
        stream = await rig.connect()
        for _ in range(2):
            await stream.send_all(request())
            assert (await read_some(stream, b"fine")).startswith(b"HTTP/1.1 200 ")
        await stream.aclose()
    assert seen == ["http.disconnect"] * 8


async def test_several_tasks_can_read_one_body() -> None:
    got: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def read() -> None:
            message = await receive()
            got.append(message.get("body", b""))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(read)
        await respond(send)

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request("POST / HTTP/1.1", "content-length: 4"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(b"ab")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(b"cd")
        await read_some(stream, b"\r\n\r\n")
        await stream.aclose()
    assert got == [b"ab", b"cd"]


@pytest.mark.parametrize("sent", [b"", b"GET / HT", request()[:-2]])
async def test_a_head_has_so_long_to_come(autojump_clock: MockClock, sent: bytes) -> None:
    async with serving(Recorder()) as rig:
        stream = await rig.connect()
        for at in range(len(sent)):
            await trio.sleep(KEEP_ALIVE / 2 / len(sent))
            await stream.send_all(sent[at : at + 1])
        assert await read_all(stream) == b""
        assert math.isclose(trio.current_time(), KEEP_ALIVE, abs_tol=0.01)


async def test_each_answer_gives_the_next_head_as_long(autojump_clock: MockClock) -> None:
    async with serving(Recorder()) as rig:
        stream, other = await rig.connect(), await rig.connect()
        for pause in (0, 9, 9.9, 9.9):
            await trio.sleep(pause)
            await stream.send_all(request("POST / HTTP/1.1", body=b"fine"))
            await read_some(stream, b"fine")
        assert await read_all(stream) == b""
        assert math.isclose(trio.current_time(), 38.8)
        assert await read_all(other) == b""


async def test_an_answer_takes_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1000)
        await respond(send, b"fine")

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request())
        await read_some(stream, b"fine")
        assert await read_all(stream) == b""
        assert math.isclose(trio.current_time(), 1000 + KEEP_ALIVE)


async def test_a_server_with_nothing_to_watch_sleeps(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await trio.sleep_forever()

    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(request())
        await read_some(stream, b"\r\n\r\n")
        await trio.sleep(3 * KEEP_ALIVE)
        assert rig.server._next_look == math.inf
        rig.nursery.cancel_scope.cancel()
        await stream.aclose()


# --- the end ------------------------------------------------------------------------------------


async def test_a_stop_closes_what_is_idle_and_lets_answers_end() -> None:
    go_on = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await respond(send, b"fine")

    async with serving(app) as rig:
        idle, half, busy = [await rig.connect() for _ in range(3)]
        await half.send_all(b"GET / HT")
        await busy.send_all(request() + request())
        await trio.testing.wait_all_tasks_blocked(0.01)
        await rig.server.stop()
        assert await read_all(idle) == b""
        assert await read_all(half) == b""
        late = await rig.connect()
        assert await read_all(late) == b""
        go_on.set()
        status, headers, body = split_response(await read_all(busy))
        assert (status, headers["connection"], body) == (200, "close", b"fine")


async def test_a_request_that_had_come_when_the_server_stopped_is_answered() -> None:
    app = Recorder()
    async with serving(app) as rig:
        stream = await rig.connect()
        await trio.testing.wait_all_tasks_blocked(0.01)
        stream.socket._sock.send(request("POST / HTTP/1.1", body=b"fine"))  # type: ignore[attr-defined]
        await rig.server.stop()
        answer = await read_all(stream)
    assert app.bodies == [b"fine"]
    assert split_response(answer)[1]["connection"] == "close"


@pytest.mark.parametrize("where", ["idle", "head", "application", "body", "write"])
async def test_a_cancelled_server_cuts_everything_off_at_once(where: str) -> None:
    left: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if where == "application":
                await trio.sleep_forever()
            await take_body(receive)
            await respond(send, BIG)
        finally:
            left.append(where)

    server, scope, done = LeanServer(app, keep_alive=KEEP_ALIVE), trio.CancelScope(), trio.Event()
    ours, theirs = trio.socket.socketpair()

    async def serve() -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(server.run)
                nursery.start_soon(server.handle, trio.SocketStream(theirs))
        done.set()

    async with trio.open_nursery() as nursery, trio.SocketStream(ours) as stream:
        nursery.start_soon(serve)
        if where == "head":
            await stream.send_all(b"GET / HT")
        elif where == "write":
            await stream.send_all(request())
        elif where != "idle":
            await stream.send_all(request("POST / HTTP/1.1", "content-length: 4"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert left == []
        scope.cancel()
        with trio.fail_after(1):
            await done.wait()
        assert left == ([] if where in ("idle", "head") else [where])
        assert len(await read_all(stream)) < len(BIG)


async def test_a_socket_that_fails_before_it_is_looked_at() -> None:
    async with serving(Recorder()) as rig:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        accepted = await listener.accept()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        await rig.server.handle(accepted)
        await listener.aclose()
