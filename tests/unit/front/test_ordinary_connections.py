"""How connections go on with ordinary requests and others, and how exchanges on them end."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from unit.front.lean_kit import (
    BIG,
    Serve,
    read_all,
    read_some,
    request,
    respond,
    statuses,
    take_body,
)

from kars_router.front.exchange import BODY_AT_HAND, Receive, Scope, Send
from kars_router.front.hypercorn_server import HypercornServer

POST = "POST /mcp HTTP/1.1"
CHUNKED = "transfer-encoding: chunked"


@asynccontextmanager
async def served(
    app: Serve, *, ends: bool = True
) -> AsyncIterator[tuple[HypercornServer, trio.SocketStream]]:
    server = HypercornServer(app, keep_alive=10)
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery, trio.SocketStream(ours) as client:

        async def handle() -> None:
            async with trio.SocketStream(theirs) as stream:
                await server.handle(stream)

        nursery.start_soon(handle)
        yield server, client
        await client.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert bool(server.streams) != ends
        nursery.cancel_scope.cancel()


async def ask(client: trio.SocketStream, data: bytes) -> bytes:
    """Sends, and takes what comes until nothing does."""
    await client.send_all(data)
    await trio.testing.wait_all_tasks_blocked(0.01)
    return bytes(await client.receive_some())


# How a connection goes on.


async def test_ordinary_requests_and_others_take_turns() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await take_body(receive)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    # hypercorn writes the header's name in its own way.
    ours, theirs = b"transfer-encoding: chunked", b"Transfer-Encoding: chunked"
    async with served(app) as (_, client):
        for _ in range(2):
            assert ours in await ask(client, request(POST, body=b"a"))
            assert ours in await ask(client, request("GET / HTTP/1.1"))
            assert theirs in await ask(client, request(POST, CHUNKED) + b"1\r\nb\r\n0\r\n\r\n")
            assert theirs in await ask(client, request("HEAD / HTTP/1.1"))


async def test_a_body_that_has_come_is_there_without_waiting() -> None:
    got: list[tuple[bytes | None, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        at_hand = scope["extensions"][BODY_AT_HAND]
        got.append((at_hand(), await take_body(receive) if scope["path"] == "/part" else b""))
        await respond(send, b"fine")
        assert at_hand() is None

    async with served(app) as (_, client):
        part = request("POST /part HTTP/1.1", "content-length: 4")
        await client.send_all(request(POST, body=b"abcd") + request() + part + b"ab")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send_all(b"cd")
        await client.send_eof()
        assert statuses(await read_all(client)) == [200] * 3
    assert got == [(b"abcd", b""), (b"", b""), (None, b"abcd")]


async def test_after_the_response_no_body_is_at_hand() -> None:
    got: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"fine")
        got.append(scope["extensions"][BODY_AT_HAND]())

    async with served(app) as (_, client):
        assert statuses(await ask(client, request(POST, body=b"abcd"))) == [200]
    assert got == [None]


async def test_after_a_body_that_was_at_hand_the_peer_can_be_watched() -> None:
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["extensions"][BODY_AT_HAND]() == b"abcd"
        kinds.append((await receive())["type"])

    async with served(app) as (_, client):
        await client.send_all(request(POST, body=b"abcd"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert kinds == []
        await client.send_eof()
        await read_all(client)
    assert kinds == ["http.disconnect"]


@pytest.mark.parametrize("begun", [False, True])
async def test_a_stop_ends_a_connection_with_the_response_under_way(
    autojump_clock: MockClock, *, begun: bool
) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(0 if begun else 1)
        headers = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await trio.sleep(1)
        await send({"type": "http.response.body", "body": b"late"})

    async with served(app) as (server, client):
        await client.send_all(request() + request())
        await trio.sleep(0.5)
        await server.stop()
        answer = await read_all(client)
        assert trio.current_time() < 3
    assert statuses(answer) == [200]
    assert answer.endswith(b"late")
    assert (b"\r\nconnection: close\r\n" in answer) != begun


@pytest.mark.parametrize("before", [b"", request()])
async def test_an_agent_that_leaves_is_noticed_behind_requests_that_wait(
    before: bytes, autojump_clock: MockClock
) -> None:
    left: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await take_body(receive)
        if scope["method"] == "GET":
            await respond(send)
            return
        assert (await receive())["type"] == "http.disconnect"
        left.append(trio.current_time())

    async with served(app) as (_, client):
        await client.send_all(before + request(POST, body=b"{}") + request(POST, body=b"{}"))
        await trio.sleep(3)
        assert not left
        await client.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        # The first one is told. It answers nothing, and the one behind it gets no turn.
        assert len(left) == 1


async def test_who_leaves_is_noticed_although_its_body_waited_to_be_taken() -> None:
    go = trio.Event()
    told = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await go.wait()
        assert await take_body(receive) == b"x" * 12
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    async with served(app) as (_, client):
        await client.send_all(request(POST, "content-length: 12"))
        for _ in range(12):
            await trio.testing.wait_all_tasks_blocked(0.005)
            await client.send_all(b"x")
        await trio.testing.wait_all_tasks_blocked(0.005)
        await client.send_eof()
        await trio.testing.wait_all_tasks_blocked(0.005)
        go.set()
        with trio.fail_after(5):
            await told.wait()


async def test_what_was_asked_before_the_end_is_answered(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await take_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        await respond(send, scope["raw_path"])

    async with served(app) as (_, client):
        asked = request("GET /a HTTP/1.1") + request("GET /b HTTP/1.1")
        for piece in (asked[:50], asked[50:], request("HEAD /c HTTP/1.1")):
            await client.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
        answer = await read_all(client)
    assert statuses(answer) == [200, 200, 200]
    assert answer.count(b"/a") == answer.count(b"/b") == 1


async def test_requests_that_wait_take_no_more_room_than_so_much() -> None:
    async with served(_never, ends=False) as (_, client):
        with trio.move_on_after(0.2) as scope:
            await client.send_all(request() * (len(BIG) // len(request())))
        assert scope.cancelled_caught  # nobody reads on


async def test_a_body_that_nobody_takes_is_not_read_until_it_is(autojump_clock: MockClock) -> None:
    bodies: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(5)
        bodies.append(await take_body(receive))
        await respond(send)

    async with served(app) as (_, client), trio.open_nursery() as nursery:
        sent_at: list[float] = []

        async def send() -> None:
            await client.send_all(request(POST, body=BIG))
            sent_at.append(trio.current_time())

        nursery.start_soon(send)
        assert statuses(bytes(await client.receive_some())) == [200]
    assert bodies == [BIG]
    assert sent_at[0] >= 5


async def test_who_does_not_read_holds_up_its_own_response_only(autojump_clock: MockClock) -> None:
    done: list[float] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, BIG)
        done.append(trio.current_time())

    async with served(app) as (_, client):
        await client.send_all(request())
        await trio.sleep(3)
        assert not done
        got = b""
        while not got.endswith(b"\r\n\r\n" + BIG):
            got += await client.receive_some()
    assert done == [3]


async def test_a_response_to_nobody_ends_the_connection(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        for _ in range(3):
            await respond(send, BIG)

    async with served(app) as (server, client):
        await client.send_all(request() + request())
        await client.aclose()
        await trio.sleep(2)
        assert not server.streams


async def test_parts_of_several_tasks_do_not_mix() -> None:
    read = trio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def part(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        headers = [(b"content-length", b"%d" % (len(BIG) + 20))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(part, b"a" * len(BIG))
            for _ in range(20):  # each may come when there is room again
                await read.wait()
                nursery.start_soon(part, b"b")
                await trio.lowlevel.checkpoint()
        await send({"type": "http.response.body", "body": b""})

    async with served(app) as (_, client):
        await client.send_all(request())
        await trio.testing.wait_all_tasks_blocked(0.01)
        got = b""
        with trio.fail_after(10):
            while not got.endswith(b"a" * 20 + b"b" * 20):
                got += await client.receive_some()
                read.set()
    assert got.partition(b"\r\n\r\n")[2] == b"a" * len(BIG) + b"b" * 20


async def test_chunks_of_several_tasks_do_not_mix() -> None:
    """A large one is three pieces: its length, itself and a line end."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:
            for letter in (b"y", b"z"):
                message = {"type": "http.response.body", "body": letter * len(BIG)}
                nursery.start_soon(send, {**message, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with served(app) as (_, client):
        await client.send_all(request())
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(10):
            got = await read_some(client, b"\r\n0\r\n\r\n")
    size = b"%x" % len(BIG)
    chunks = got.partition(b"\r\n\r\n")[2].split(b"\r\n")
    assert sorted({*chunks}) == sorted([b"", b"0", size, BIG.replace(b"z", b"y"), BIG])
    assert [len(chunk) for chunk in chunks[:4]] == [len(size), len(BIG)] * 2


# How an exchange ends.


async def _never(scope: Scope, receive: Receive, send: Send) -> None:
    await trio.sleep_forever()


async def _fails(scope: Scope, receive: Receive, send: Send) -> None:
    raise ValueError("as it does")


async def _says_nothing(scope: Scope, receive: Receive, send: Send) -> None:
    await take_body(receive)


async def _says_nonsense(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.push"})


@pytest.mark.parametrize("app", [_fails, _says_nothing, _says_nonsense])
async def test_an_application_that_does_not_answer_gets_an_error_answered(app: Serve) -> None:
    async with served(app) as (_, client):
        await client.send_all(request(POST, body=b"a"))
        answer = await read_all(client)
    assert statuses(answer) == [500]


async def test_a_last_response_whose_sender_is_cancelled_ends_the_connection() -> None:
    sending = trio.CancelScope()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with sending:
            await respond(send, BIG, connection="close")

    async with served(app) as (_, client):
        await client.send_all(request())
        await trio.testing.wait_all_tasks_blocked(0.01)
        sending.cancel()
        with trio.fail_after(5):
            assert (await read_all(client)).endswith(b"\r\n\r\n" + BIG)


@pytest.mark.parametrize("how", ["leaves", "fails", "stops", "closes"])
async def test_a_request_that_hypercorn_has_read_ahead_does_not_keep_its_connection(
    how: str,
) -> None:
    asked = trio.Event()
    seen = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal seen
        seen += 1
        await take_body(receive)
        close = [(b"connection", b"close")] if how == "closes" else []
        await send({"type": "http.response.start", "status": 200, "headers": close})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await asked.wait()
        if how == "fails":
            raise ValueError("as it does")
        if how == "stops":
            await server.stop()
        for more in (True, True, False):
            await send({"type": "http.response.body", "body": b"more", "more_body": more})

    async with served(app) as (server, client):
        await client.send_all((request(POST, CHUNKED) + b"2\r\n{}\r\n0\r\n\r\n") * 2)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if how == "leaves":
            await client.aclose()
        asked.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not server.streams
    assert seen == 1


@pytest.mark.parametrize("how", ["answers", "fails", "is cancelled"])
@pytest.mark.parametrize("pieces", [1, 11])
async def test_a_body_that_nobody_takes_does_not_keep_hypercorns_connection(
    how: str, pieces: int, autojump_clock: MockClock
) -> None:
    """Its tenth piece waits with the application, the eleventh with the reader."""
    sending = trio.CancelScope()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await trio.sleep(1)
        if how == "fails":
            raise ValueError("as it does")
        with sending:
            await respond(send, BIG if how == "is cancelled" else b"", status=413)

    with trio.fail_after(20):
        async with served(app) as (server, client):
            await client.send_all(request(POST, CHUNKED) + b"1\r\na\r\n" * pieces)
            await trio.sleep(2)
            sending.cancel()
            status = 500 if how == "fails" else 413
            assert statuses((await read_all(client)).removesuffix(b" (reset)")) == [status]
            await trio.sleep(2)
            assert not server.streams


async def test_a_response_that_is_not_ended_is_cut_off() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    async with served(app) as (_, client):
        await client.send_all(request())
        answer = await read_all(client)
    assert answer.endswith(b"half\r\n")


async def test_who_is_answered_before_its_request_was_whole_is_not_heard_any_more(
    autojump_clock: MockClock,
) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["raw_path"])
        await respond(send, status=413)
        assert (await receive())["type"] == "http.disconnect"

    async with served(app) as (_, client):
        await client.send_all(request(POST, "content-length: 99") + b"abc")
        await trio.testing.wait_all_tasks_blocked()
        with suppress(trio.BrokenResourceError):
            await client.send_all(request("GET /smuggled HTTP/1.1"))
        assert statuses(await read_all(client)) == [413]
        assert trio.current_time() < 1
    assert seen == [b"/mcp"]


async def _deaf(outer: bytes, app: Serve) -> list[bytes]:
    """What is taken for requests if one starts anew whenever the reader may look."""
    seen: list[bytes] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["raw_path"])
        await app(scope, receive, send)

    async with served(watched) as (_, client):
        with suppress(trio.BrokenResourceError):
            await client.send_all(outer)
            for _ in range(30):
                await client.send_all(request("POST /inner HTTP/1.1", body=b"{}"))
        await read_all(client)
    return seen


@pytest.mark.parametrize("framing", ["content-length: 100000", CHUNKED])
async def test_the_rest_of_a_body_that_was_refused_is_nobodys_request(framing: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, status=403)

    for _ in range(20):
        assert await _deaf(request("POST /outer HTTP/1.1", framing), app) == [b"/outer"]


@pytest.mark.parametrize("following", [b"POST /inner HTTP/1.1", b"PUT /inner HTTP/1.1"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("stops", [False, True])
async def test_what_comes_behind_the_last_response_is_not_taken(
    following: bytes, *, whole: bool, stops: bool
) -> None:
    seen: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(scope["raw_path"])
        if stops:
            await server.stop()
        os.write(client.socket.fileno(), following + b"\r\nhost: localhost\r\n\r\n")
        if stops:
            await respond(send)
        else:
            await respond(send, connection="close")

    length = "content-length: 0" if whole else "content-length: 100000"
    for _ in range(20):
        async with served(app) as (server, client):
            await client.send_all(request("POST /outer HTTP/1.1", length))
            assert statuses((await read_all(client)).removesuffix(b" (reset)")) == [200]
    assert seen == [b"/outer"] * 20


@pytest.mark.parametrize("unusual", [False, True])
async def test_a_request_that_was_read_ahead_has_no_turn_once_a_stop_ended_its_connection(
    *, unusual: bool
) -> None:
    """Between two requests a connection is idle, and a stop may come just then."""
    asked = request("PUT / HTTP/1.1" if unusual else "GET / HTTP/1.1")
    for _ in range(30):
        seen = 0

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal seen
            seen += 1
            await trio.testing.wait_all_tasks_blocked(0.001)
            await respond(send)
            await server.stop()

        async with served(app) as (server, client):
            await client.send_all(asked * 2)
            answers = statuses((await read_all(client)).removesuffix(b" (reset)"))
        assert len(answers) == seen


async def test_who_has_ended_is_let_go_of_with_its_response(autojump_clock: MockClock) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await take_body(receive)
        assert (await receive())["type"] == "http.disconnect"
        await respond(send)
        await trio.sleep(5)

    async with served(app, ends=False) as (_, client):
        await client.send_all(request())
        await client.send_eof()
        assert statuses(await read_all(client)) == [200]
        assert trio.current_time() < 1


async def test_a_request_that_is_torn_is_refused_and_its_application_told(
    autojump_clock: MockClock,
) -> None:
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        kinds.append((await receive())["type"])
        kinds.append((await receive())["type"])
        await respond(send, b"to nobody")
        await trio.sleep(5)

    async with served(app, ends=False) as (_, client):
        await client.send_all(request(POST, "content-length: 9") + b"abc")
        await trio.testing.wait_all_tasks_blocked()
        await client.send_eof()
        assert statuses(await read_all(client)) == [400]
        assert trio.current_time() < 1
    assert kinds == ["http.request", "http.disconnect"]


async def test_a_finished_exchange_says_nothing_more() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await take_body(receive)
                assert (await receive())["type"] == "http.disconnect"
                await respond(send, b"again")
                told.set()

            nursery.start_soon(watch)
            await trio.testing.wait_all_tasks_blocked()
            await respond(send, b"once")

    told = trio.Event()
    async with served(app) as (_, client):
        assert (await ask(client, request())).endswith(b"\r\n\r\nonce")
        assert told.is_set()


async def test_a_cancelled_server_answers_nothing_of_its_own() -> None:
    ours, theirs = trio.socket.socketpair()
    async with trio.SocketStream(ours) as client, trio.SocketStream(theirs) as stream:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(HypercornServer(_never, keep_alive=10).handle, stream)
            await client.send_all(request())
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(stream)
        assert await read_all(client) == b""
