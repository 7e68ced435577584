"""Connections of the lean server: peers that leave, what takes too long, and the end."""

from __future__ import annotations

import math
import socket
import struct

import pytest
import trio
import trio.testing
from trio.testing import MockClock
from unit.front.lean_kit import (
    BIG,
    KEEP_ALIVE,
    Recorder,
    Rig,
    read_all,
    read_some,
    request,
    respond,
    serving,
    split_response,
    statuses,
    take_body,
)

from kars_router.front.exchange import (
    BODY_AT_HAND,
    BodyTooLargeError,
    Exchange,
    Receive,
    Scope,
    Send,
)
from kars_router.front.lean import LeanServer


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
        for number in range(1, 3):
            await stream.send_all(request())
            assert (await read_some(stream, b"fine")).startswith(b"HTTP/1.1 200 ")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert seen == ["http.disconnect"] * 4 * number
        await stream.aclose()


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


async def test_a_body_that_has_come_is_there_without_waiting() -> None:
    got: list[tuple[bytes | None, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        at_hand = scope["extensions"][BODY_AT_HAND]()
        got.append((at_hand, b"" if at_hand is not None else await take_body(receive)))
        await respond(send, b"fine")

    chunked = request("POST / HTTP/1.1", "transfer-encoding: chunked") + b"3\r\nabc\r\n0\r\n\r\n"
    head = request("POST / HTTP/1.1", "content-length: 4")
    async with serving(app) as rig:
        stream = await rig.connect()
        await stream.send_all(head + b"abcd" + request() + chunked + head + b"ab")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(b"cd")
        await stream.send_eof()
        assert statuses(await read_all(stream)) == [200] * 4
    assert got == [(b"abcd", b""), (b"", b""), (None, b"abc"), (None, b"abcd")]


async def test_after_the_response_no_body_is_at_hand() -> None:
    got: list[bytes | None] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send, b"fine")
        got.append(scope["extensions"][BODY_AT_HAND]())

    async with serving(app) as rig:
        await rig.ask(request("POST / HTTP/1.1", body=b"abcd"))
    assert got == [None]


async def test_after_a_body_that_was_at_hand_the_peer_can_be_watched() -> None:
    kinds: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["extensions"][BODY_AT_HAND]() == b"abcd"
        kinds.append((await receive())["type"])

    async with serving(app) as rig:
        await rig.ask(request("POST / HTTP/1.1", body=b"abcd"))
    assert kinds == ["http.disconnect"]


async def test_a_body_at_hand_is_limited_like_any_other() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send)
        try:
            await exchange.respond(200, await exchange.body(3))
        except BodyTooLargeError:
            await exchange.respond(413)

    async with serving(app) as rig:
        few, many = (request("POST / HTTP/1.1", body=body) for body in (b"abc", b"abcd"))
        assert statuses(await rig.ask(few + many)) == [200, 413]


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


async def test_many_that_expire_one_by_one_are_looked_at_ten_times_a_second(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking at all of them each time that one is due would be quadratic."""
    looks: list[float] = []
    look = LeanServer._look

    def counted(server: LeanServer) -> None:
        looks.append(trio.current_time())
        look(server)

    monkeypatch.setattr(LeanServer, "_look", counted)
    lives: list[float] = []

    async def live(rig: Rig) -> None:
        stream = await rig.connect()
        start = trio.current_time()
        assert await read_all(stream) == b""
        lives.append(trio.current_time() - start)

    async with serving(Recorder()) as rig, trio.open_nursery() as nursery:
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(400):
            nursery.start_soon(live, rig)
            await trio.sleep(0.005)
    assert len(lives) == 400
    assert min(lives) >= KEEP_ALIVE
    assert max(lives) < KEEP_ALIVE + 0.11
    ends = [when for when in looks if when > KEEP_ALIVE]
    assert len(ends) < 30


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


@pytest.mark.parametrize("reads", ["nothing", "an end", "too much"])
async def test_a_write_of_another_task_ends_with_the_connection(reads: str) -> None:
    """Also if nobody reads on the connection meanwhile, so that nobody else has to be woken."""
    ended = trio.Event()

    async def write(receive: Receive, send: Send, writing: trio.CancelScope) -> None:
        with writing:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": BIG, "more_body": True})
                await trio.sleep_forever()
        ended.set()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        writing = trio.CancelScope()
        await take_body(receive)
        elsewhere.start_soon(write, receive, send, writing)
        try:
            await trio.sleep_forever()
        finally:
            writing.cancel()

    server = LeanServer(app, keep_alive=KEEP_ALIVE)
    async with trio.open_nursery() as elsewhere:
        ours, theirs = trio.socket.socketpair()
        async with trio.SocketStream(ours) as stream, trio.open_nursery() as connections:
            connections.start_soon(server.handle, trio.SocketStream(theirs))
            await stream.send_all(request())
            if reads == "an end":
                await stream.send_eof()
            elif reads == "too much":
                with trio.move_on_after(0.1):
                    await stream.send_all(BIG)
            await trio.testing.wait_all_tasks_blocked(0.05)
            connections.cancel_scope.cancel()
        with trio.fail_after(1):
            await ended.wait()


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
