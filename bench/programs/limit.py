"""The limit: what trio and a parser in C allow. Forwards over httptools on both sides, no more.

Each agent's connection has one of its own to the server. Requests are parsed and written anew, as a
router must; no JSON is read, nothing is checked, nothing can go wrong.

    python limit.py UPSTREAM_PORT [--port PORT]

Prints `ready PORT`.
"""

from __future__ import annotations

import argparse
from contextlib import suppress
from functools import partial
from typing import Any

import httptools
import trio

READ = 64 * 1024
HANDED_ON = (b"content-type", b"accept", b"mcp-session-id", b"mcp-protocol-version")
HANDED_BACK = (b"content-type", b"mcp-session-id")


class Collector:
    """What httptools calls while it reads one message."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Forgets the message before."""
        self.url = b""
        self.lines: list[bytes] = []
        self.parts: list[bytes] = []
        self.done = False

    def on_url(self, url: bytes) -> None:
        """Takes a request's target."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes a header that is handed on."""
        name = name.lower()
        if name in HANDED_ON:
            self.lines.append(b"%b: %b\r\n" % (name, value))

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body."""
        self.parts.append(body)

    def on_message_complete(self) -> None:
        """Notes the end."""
        self.done = True


async def handle(port: int, agent: trio.SocketStream) -> None:
    """Serves one connection, until its agent leaves or hangs up."""
    with suppress(trio.BrokenResourceError):
        await forward(port, agent)


async def forward(port: int, agent: trio.SocketStream) -> None:
    """Hands on request after request."""
    server = await trio.open_tcp_stream("127.0.0.1", port)
    asked, said = Collector(), Collector()
    requests: Any = httptools.HttpRequestParser(asked)
    async with server:
        while data := await agent.receive_some(READ):
            requests.feed_data(data)
            if not asked.done:
                continue
            body = b"".join(asked.parts)
            await server.send_all(
                b"%b %b HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n%b\r\n%b"
                % (requests.get_method(), asked.url, len(body), b"".join(asked.lines), body)
            )
            asked.start()
            responses: Any = httptools.HttpResponseParser(said)
            while not said.done:
                responses.feed_data(await server.receive_some(READ))
            body = b"".join(said.parts)
            await agent.send_all(
                b"HTTP/1.1 %d OK\r\ncontent-length: %d\r\n%b\r\n%b"
                % (responses.get_status_code(), len(body), b"".join(said.lines), body)
            )
            said.start()


async def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream", type=int)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    listeners = await trio.open_tcp_listeners(asked.port, host="127.0.0.1")
    print("ready", listeners[0].socket.getsockname()[1], flush=True)
    await trio.serve_listeners(partial(handle, asked.upstream), listeners)


if __name__ == "__main__":
    trio.run(main)
