"""The lean server writes responses: what an application may say, and what becomes of it."""

from __future__ import annotations

import pytest
import structlog
import trio
import trio.testing
from unit.front.lean_kit import (
    BIG,
    read_all,
    read_some,
    request,
    respond,
    serving,
    split_response,
    statuses,
)

from kars_router.front.exchange import Receive, Scope, Send


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
