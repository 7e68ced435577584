"""The same bytes to both listeners: the same status, scope and body, or a reason why not."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from unit.front.lean_kit import read_all, request, respond, statuses, take_body_or_none

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.front import listen
from kars_router.front.exchange import Receive, Scope, Send

CHUNKED = "transfer-encoding: chunked"
REQUESTS = {
    "get": request(),
    "post": request("POST /mcp HTTP/1.1", "content-type: application/json", body=b"{}"),
    "two": request("POST /a HTTP/1.1", body=b"a") + request("POST /b HTTP/1.1", body=b"b"),
    "query": request("GET /a?b=c?d#e HTTP/1.1"),
    "empty query": request("GET /a? HTTP/1.1"),
    "percent": request("GET /%C3%A4/%2F%zz/a+b?%20 HTTP/1.1"),
    "no utf-8": request("GET /%ff HTTP/1.1"),
    "double slash": request("GET //a/../b HTTP/1.1"),
    "head": request("HEAD / HTTP/1.1"),
    "options": request("OPTIONS * HTTP/1.1"),
    "delete": request("DELETE /mcp HTTP/1.1"),
    "patch": request("PATCH /mcp HTTP/1.1", body=b"x"),
    "old": request("GET / HTTP/1.0"),
    "old, no host": b"GET / HTTP/1.0\r\n\r\n",
    "old, keep-alive": request("GET / HTTP/1.0", "connection: keep-alive") + request(),
    "close": request("GET / HTTP/1.1", "connection: close") + request(),
    "names": request("GET / HTTP/1.1", "X-Upper: A", "x_under!: b", "x-empty:", "x-space: \t c \t"),
    "repeated": request("GET / HTTP/1.1", "accept: a", "x: y", "accept: b"),
    "latin-1": request("GET / HTTP/1.1", "x: \xe4"),
    "chunked": request("POST / HTTP/1.1", CHUNKED) + b"2\r\nab\r\n1;x\r\nc\r\n0\r\n\r\n",
    "trailers": request("POST / HTTP/1.1", CHUNKED) + b"1\r\na\r\n0\r\nx: y\r\n\r\n" + request(),
    "bad chunk": request("POST / HTTP/1.1", CHUNKED) + b"1\r\nabc",
    "bad chunk size": request("POST / HTTP/1.1", CHUNKED) + b"x\r\n",
    "other coding": request("POST / HTTP/1.1", "transfer-encoding: gzip"),
    "both lengths": request("POST / HTTP/1.1", "content-length: 1", CHUNKED)
    + b"1\r\na\r\n0\r\n\r\n",
    "two lengths": request("POST / HTTP/1.1", "content-length: 1", "content-length: 2") + b"ab",
    "length twice": request("POST / HTTP/1.1", "content-length: 1", "content-length: 1") + b"a",
    "length of words": request("POST / HTTP/1.1", "content-length: one"),
    "negative length": request("POST / HTTP/1.1", "content-length: -1"),
    "short body": request("POST / HTTP/1.1", "content-length: 5") + b"abc",
    "old, chunked": request("POST / HTTP/1.0", CHUNKED) + b"1\r\na\r\n0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": request("GET / HTTP/1.1", "host: other"),
    "folded": request("GET / HTTP/1.1", "x: a\r\n b"),
    "space before colon": request("GET / HTTP/1.1", "x : a"),
    "space in name": request("GET / HTTP/1.1", "x y: a"),
    "no colon": request("GET / HTTP/1.1", "x"),
    "nul": request("GET / HTTP/1.1", "x: a\0b"),
    "control": request("GET / HTTP/1.1", "x: a\x01b"),
    "bare return": request("GET / HTTP/1.1", "x: a\rb"),
    "bare line feeds": request().replace(b"\r\n", b"\n"),
    "blank line first": b"\r\n" + request(),
    "two spaces": request("GET  / HTTP/1.1"),
    "no version": request("GET /"),
    "version 1.2": request("GET / HTTP/1.2"),
    "version 2.0": request("GET / HTTP/2.0"),
    "preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "lower case": request("get / HTTP/1.1"),
    "unknown method": request("BREW /tea HTTP/1.1"),
    "raw utf-8": request("GET /\xc3\xa4 HTTP/1.1"),
    "absolute": request("GET http://localhost/mcp?a=b HTTP/1.1"),
    "absolute, other host": request("GET http://evil.example/mcp HTTP/1.1"),
    "connect": request("CONNECT localhost:80 HTTP/1.1"),
    "upgrade": request("GET / HTTP/1.1", "upgrade: h2c", "connection: upgrade"),
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "garbage": b"\0\0\0\0\r\n\r\n",
    "long head": request("GET / HTTP/1.1", "x: " + "a" * 80_000),
    "half a head": b"GET / HTTP/1.1\r\nhost:",
    "nothing": b"",
}

# Where they differ: what hypercorn answers, what the lean one answers, and why that is right.
DIFFERENCES: dict[str, tuple[list[int], list[int], str]] = {
    "old, keep-alive": ([400], [200], "what comes behind a last request does not spoil it"),
    "close": ([400], [200], "what comes behind a last request does not spoil it"),
    "other coding": ([501], [400], "llhttp's word for it"),
    "both lengths": ([200], [400], "RFC 9112, section 6.1: the way requests are smuggled"),
    "length twice": ([200], [400], "RFC 9112, section 6.3, allows it; no agent sends it"),
    "old, chunked": ([200], [400], "RFC 9112, section 6.1: its framing is faulty"),
    "folded": ([200], [400], "RFC 9112, section 5.2: reject, or replace it"),
    "control": ([200], [400], "RFC 9110, section 5.5: such values are invalid"),
    "bare line feeds": ([200], [400], "RFC 9112, section 2.2, allows either"),
    "blank line first": ([400], [200], "RFC 9112, section 2.2: skip at least one"),
    "version 1.2": ([200], [400], "there is none"),
    "version 2.0": ([200], [400], "it is not spoken in this form"),
    "preface": ([200, 400], [400], "HTTP/2 is not spoken"),
    "lower case": ([200], [400], "methods have their case; there is no such one"),
    "unknown method": ([200], [501], "llhttp has to know a method; our applications refuse it too"),
    "absolute": ([200], [200], "RFC 9112, section 3.2.2: the path is what stands behind the host"),
    "absolute, other host": ([200], [400], "it must not get past a check of Host"),
    "connect": ([], [501], "hypercorn's answer is none; there is nothing to connect to"),
}


async def outcome(listener: Listener, data: bytes) -> tuple[list[int], list[Any]]:
    """Statuses, and what the application saw of each request."""
    seen: list[Any] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        known = {**scope, "client": None, "server": None, "headers": [*scope["headers"]]}
        del known["extensions"]
        assert scope["client"] is not None
        assert scope["server"] is not None
        body = await take_body_or_none(receive)
        seen.append((known, "disconnect" if body is None else body))
        if body is not None:
            await respond(send, b"ok")

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            bound = listen.bind(Address("127.0.0.1", 0))

            async def serve(*, task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC128
                await listen.serve(
                    app,
                    bound,
                    trio.sleep_forever,
                    grace=1,
                    listener=listener,
                    task_status=task_status,
                )

            url = await nursery.start(serve)
            stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
            try:
                await stream.send_all(data)
                await trio.testing.wait_all_tasks_blocked(0.02)
                await stream.send_eof()
            except trio.BrokenResourceError:
                pass
            answer = await read_all(stream)
            nursery.cancel_scope.cancel()
    return statuses(answer), seen


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_listeners_take_it_for_the_same(name: str) -> None:
    theirs = await outcome(Listener.HYPERCORN, REQUESTS[name])
    ours = await outcome(Listener.LEAN, REQUESTS[name])
    if name in DIFFERENCES:
        hypercorn, lean, _ = DIFFERENCES[name]
        assert (theirs[0], ours[0]) == (hypercorn, lean)
        assert ours != theirs
    else:
        assert ours == theirs
