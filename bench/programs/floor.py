"""The floor: what any router on hypercorn and trio pays for. Forwards, and does nothing else.

An ASGI application under hypercorn's trio worker that hands each request on over raw h11 on kept
trio streams, and its response back. No JSON is read, nothing is checked, nothing can go wrong.

    python floor.py UPSTREAM_PORT [--port PORT]

Prints `ready PORT`.
"""

from __future__ import annotations

import argparse
import socket
from typing import Any

import h11
import trio
from hypercorn.config import Config
from hypercorn.trio import serve

READ = 64 * 1024
HANDED_ON = (b"content-type", b"accept", b"mcp-session-id", b"mcp-protocol-version")
HANDED_BACK = (b"content-type", b"mcp-session-id")


class Floor:
    """The application, and the connections that it keeps."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.idle: list[tuple[trio.SocketStream, h11.Connection]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Forwards one request."""
        if scope["type"] == "lifespan":
            while True:
                kind = (await receive())["type"]
                await send({"type": f"{kind}.complete"})
                if kind == "lifespan.shutdown":
                    return
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        stream, connection = await self.connection()
        headers = [(b"host", b"127.0.0.1"), (b"content-length", b"%d" % len(body))]
        headers += [(n, v) for n, v in scope["headers"] if n in HANDED_ON]
        target, method = scope["raw_path"], scope["method"]
        data = connection.send(h11.Request(method=method, target=target, headers=headers)) or b""
        data += connection.send(h11.Data(data=body)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
        await stream.send_all(data)
        await self.hand_back(stream, connection, send)
        connection.start_next_cycle()
        self.idle.append((stream, connection))

    async def connection(self) -> tuple[trio.SocketStream, h11.Connection]:
        """A kept connection, or a new one."""
        if self.idle:
            return self.idle.pop()
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        return stream, h11.Connection(h11.CLIENT)

    async def hand_back(
        self, stream: trio.SocketStream, connection: h11.Connection, send: Any
    ) -> None:
        """Reads the response and passes it on."""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(READ))
            elif isinstance(event, h11.Response):
                headers = [(n, v) for n, v in event.headers if n in HANDED_BACK]
                status = event.status_code
                await send({"type": "http.response.start", "status": status, "headers": headers})
            elif isinstance(event, h11.Data):
                part = bytes(event.data)
                await send({"type": "http.response.body", "body": part, "more_body": True})
            else:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                return


async def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("upstream", type=int)
    parser.add_argument("--port", type=int, default=0)
    asked = parser.parse_args()
    sock = socket.create_server(("127.0.0.1", asked.port), backlog=1024)
    config = Config()
    config.bind = [f"fd://{sock.fileno()}"]
    config.accesslog = config.errorlog = None
    config.keep_alive_max_requests = 2**62
    print("ready", sock.getsockname()[1], flush=True)
    await serve(Floor(asked.upstream), config)


if __name__ == "__main__":
    trio.run(main)
