"""The least: what trio allows to a router that keeps its promises about a call.

As the limit program, and beside it what a router of stateful sessions cannot do without: it reads
the JSON-RPC envelopes, gives each call an id of its own, keeps agents' sessions apart, and has
each call made in the nursery of its session, within a time limit, by a task that rests until the
next one. It has no policies, metrics, catalogue, pings, event streams, authentication or limits,
checks nothing, and nothing can go wrong.

    python least.py UPSTREAM_PORT [--port PORT]

Prints `ready PORT`.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from itertools import count
from typing import Any

import httptools
import msgspec
import trio

READ = 64 * 1024
SECONDS = 60.0
LATE = 0.5
SESSION = b"mcp-session-id"


class Envelope(msgspec.Struct, omit_defaults=True):
    """A JSON-RPC message; what is in it stays the bytes that it was."""

    jsonrpc: str
    id: msgspec.Raw = msgspec.Raw(b"")
    method: str = ""
    params: msgspec.Raw = msgspec.Raw(b"")
    result: msgspec.Raw = msgspec.Raw(b"")


DECODE = msgspec.json.Decoder(Envelope).decode
ENCODE = msgspec.json.Encoder().encode


class Message:
    """An HTTP message, and what httptools calls while it reads it."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.parts: list[bytes] = []
        self.done = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header."""
        self.headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """Notes the end."""
        self.done = True


class Call:
    """A call that is on its way."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.over = trio.Event()
        self.answer: Message
        self.result = b""


class Runner:
    """A task that makes call after call."""

    def __init__(self, scope: trio.CancelScope) -> None:
        self.scope = scope
        self.task = trio.lowlevel.current_task()
        self.call: Call


class Session:
    """An agent's session: its nursery, its id at the server, what it keeps for the next call."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self.port = port
        self.nursery = nursery
        self.ident = b""
        self.idents = count(1)
        self.idle: list[trio.SocketStream] = []
        self.resting: list[Runner] = []

    async def call(self, body: bytes) -> tuple[Call, bytes]:
        """Makes a call; its answer, and the body of that for the agent."""
        asked = DECODE(body)
        mine = asked.id
        if mine:
            asked.id = msgspec.Raw(b"%d" % next(self.idents))
        call = Call(ENCODE(asked))
        self.start(call)
        await call.over.wait()
        body = b""
        if call.result:
            said = DECODE(call.result)
            said.id = mine
            body = ENCODE(said)
        return call, body

    def start(self, call: Call) -> None:
        """Has a task of the session make a call."""
        if not self.resting:
            self.nursery.start_soon(self.run, call)
            return
        runner = self.resting.pop()
        runner.call = call
        due = trio.current_time() + SECONDS
        if runner.scope.deadline < due:
            runner.scope.deadline = due + LATE
        trio.lowlevel.reschedule(runner.task)

    async def run(self, call: Call) -> None:
        """Makes a call, and those that come while it rests."""
        with trio.move_on_after(SECONDS) as scope:
            runner = Runner(scope)

            def leave(_: object) -> trio.lowlevel.Abort:
                self.resting.remove(runner)
                return trio.lowlevel.Abort.SUCCEEDED

            while True:
                await self.make(call)
                self.resting.append(runner)
                await trio.lowlevel.wait_task_rescheduled(leave)
                call = runner.call

    async def make(self, call: Call) -> None:
        """Has the server answer a call."""
        server = self.idle.pop() if self.idle else await self.connect()
        length = len(call.payload)
        await server.send_all(
            b"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
            b"accept: application/json, text/event-stream\r\nmcp-session-id: %b\r\n"
            b"content-length: %d\r\n\r\n%b" % (self.ident, length, call.payload)
        )
        call.answer = answer = Message()
        responses: Any = httptools.HttpResponseParser(answer)
        while not answer.done:
            responses.feed_data(await server.receive_some(READ))
        call.result = b"".join(answer.parts)
        self.idle.append(server)
        call.over.set()

    async def connect(self) -> trio.SocketStream:
        """A new connection to the server."""
        return await trio.open_tcp_stream("127.0.0.1", self.port)


class Router:
    """The sessions of all agents."""

    def __init__(self, port: int, nursery: trio.Nursery) -> None:
        self.port = port
        self.nursery = nursery
        self.sessions: dict[bytes, Session] = {}

    async def handle(self, agent: trio.SocketStream) -> None:
        """Serves one connection, until its agent leaves or hangs up."""
        with suppress(trio.BrokenResourceError):
            await self.serve(agent)

    async def serve(self, agent: trio.SocketStream) -> None:
        """Answers request after request."""
        while data := await agent.receive_some(READ):
            asked = Message()
            requests: Any = httptools.HttpRequestParser(asked)
            requests.feed_data(data)
            while not asked.done:
                requests.feed_data(await agent.receive_some(READ))
            session = self.sessions.get(asked.headers.get(SESSION, b""))
            if session is None:
                session = await self.nursery.start(self.keep)
            call, body = await session.call(b"".join(asked.parts))
            if not session.ident:
                session.ident = call.answer.headers[SESSION]
                self.sessions[session.ident] = session
            await agent.send_all(
                b"HTTP/1.1 %b\r\ncontent-type: application/json\r\nmcp-session-id: %b\r\n"
                b"content-length: %d\r\n\r\n%b"
                % (b"200 OK" if body else b"202 Accepted", session.ident, len(body), body)
            )

    async def keep(self, task_status: trio.TaskStatus[Session]) -> None:
        """Has a session live in a nursery of its own."""
        async with trio.open_nursery() as nursery:
            task_status.started(Session(self.port, nursery))
            await trio.sleep_forever()


async def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream", type=int)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    listeners = await trio.open_tcp_listeners(asked.port, host="127.0.0.1")
    print("ready", listeners[0].socket.getsockname()[1], flush=True)
    async with trio.open_nursery() as nursery:
        router = Router(asked.upstream, nursery)
        await trio.serve_listeners(router.handle, listeners)


if __name__ == "__main__":
    trio.run(main)
