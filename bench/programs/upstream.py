"""An MCP server that costs as little as it can, so that what is measured is what stands before it.

One thread, one epoll, no framework. It answers with the id of the request, as JSON or as an event
stream, keeps sessions, pings each of them over its GET stream, and notes how long the answers took.

    python upstream.py [--ping SECONDS] [--port PORT] [--tools COUNT]

Prints `ready PORT`. Tools: `json_N` and `sse_N` answer with a text of N bytes. With `--tools` there
are as many others, which are only there to be listed. Beside `/mcp` there is `/stats`: what was
counted since it was asked for the last time, as JSON.
"""

from __future__ import annotations

import argparse
import heapq
import json
import select
import signal
import socket
import sys
import time
from collections import deque
from typing import Any

READ = 256 * 1024
SIZES = (128, 1024, 64 * 1024, 1024 * 1024)
MARK = "bench "


class Connection:
    """One connection: what has come and is no whole request, and what could not be written yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox: deque[memoryview] = deque()
        self.session = b""  # whose GET stream this is


def sized(size: int) -> bytes:
    """A tool's result with a text of so many bytes."""
    text = (MARK + "x" * size)[:size]
    return json.dumps({"content": [{"type": "text", "text": text}]}).encode()


def described(name: str) -> dict[str, Any]:
    """A tool as it is listed: about as long as those of real servers."""
    properties = {
        key: {"type": "string", "description": f"The {key} of what {name} is to work on."}
        for key in ("element", "reference", "value")
    }
    schema = {"type": "object", "properties": properties, "required": ["element"]}
    text = f"{name} does one thing to an element of the page and says what became of it."
    return {"name": name, "description": text, "inputSchema": schema}


class Server:
    """The server: its connections, its sessions, and what is counted."""

    def __init__(self, port: int, ping: float, extra: int) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=4096)
        self.listener.setblocking(False)
        self.epoll = select.epoll()
        self.epoll.register(self.listener.fileno(), select.EPOLLIN)
        self.connections: dict[int, Connection] = {}
        self.ping = ping
        self.began = time.monotonic()
        self.results = {f"{kind}_{n}": sized(n) for kind in ("json", "sse") for n in SIZES}
        tools = [described(name) for name in self.results]
        tools += [described(f"tool_{number:04}") for number in range(extra)]
        self.tools = json.dumps({"tools": tools}).encode()
        self.sessions = 0
        self.streams: dict[bytes, Connection] = {}
        self.due: list[tuple[float, bytes]] = []
        self.asked: dict[tuple[bytes, int], float] = {}
        self.idents = 0
        self.reset()

    def reset(self) -> None:
        """Counts from zero."""
        self.pings = self.calls = self.lost = 0
        self.pongs: list[float] = []

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.listener.getsockname()[1])

    def run(self) -> None:
        """Serves for ever."""
        while True:
            wait = max(self.due[0][0] - time.monotonic(), 0.0) if self.due else -1
            for fileno, event in self.epoll.poll(wait):
                if fileno == self.listener.fileno():
                    self.accept()
                elif (connection := self.connections.get(fileno)) is not None:
                    if event & select.EPOLLOUT:
                        self.flush(connection)
                    if event & ~select.EPOLLOUT:
                        self.read(connection)
            self.ping_those_due()

    def accept(self) -> None:
        """Takes a connection."""
        try:
            sock, _ = self.listener.accept()
        except BlockingIOError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.connections[sock.fileno()] = Connection(sock)
        self.epoll.register(sock.fileno(), select.EPOLLIN)

    def close(self, connection: Connection) -> None:
        """Forgets a connection, and the session's stream that it was."""
        if self.connections.pop(connection.sock.fileno(), None) is None:
            return
        if connection.session and self.streams.get(connection.session) is connection:
            del self.streams[connection.session]
            self.lost += 1
        self.epoll.unregister(connection.sock.fileno())
        connection.sock.close()

    def read(self, connection: Connection) -> None:
        """Takes what has come, and answers each whole request in it."""
        try:
            data = connection.sock.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(connection)
            return
        inbox = connection.inbox
        inbox += data
        while (end := inbox.find(b"\r\n\r\n")) >= 0:
            head = bytes(inbox[:end]).lower()
            length = 0
            if (at := head.find(b"\r\ncontent-length:")) >= 0:
                length = int(head[at + 17 :].split(b"\r\n", 1)[0])
            if len(inbox) < end + 4 + length:
                return
            body = bytes(inbox[end + 4 : end + 4 + length])
            del inbox[: end + 4 + length]
            self.answer(connection, head, body)

    def answer(self, connection: Connection, head: bytes, body: bytes) -> None:
        """Answers one request."""
        if head.startswith(b"post"):
            self.post(connection, head, json.loads(body))
        elif head.startswith(b"get /stats"):
            counted = {"pings": self.pings, "pongs": self.pongs, "calls": self.calls}
            counted |= {"lost": self.lost, "streams": len(self.streams)}
            self.send(connection, 200, [json.dumps(counted).encode()])
            self.reset()
        elif head.startswith(b"get"):
            self.open_stream(connection, header(head, b"mcp-session-id"))
        else:
            self.send(connection, 200, [])

    def post(self, connection: Connection, head: bytes, message: dict[str, Any]) -> None:
        """Answers one message."""
        method, ident = message.get("method"), message.get("id")
        if method is None:
            session = header(head, b"mcp-session-id")
            begin = self.asked.pop((session, ident), None) if isinstance(ident, int) else None
            if begin is not None:
                self.pongs.append(time.monotonic() - begin)
            self.send(connection, 202, [])
        elif ident is None:
            self.send(connection, 202, [])
        else:
            start = b'{"jsonrpc":"2.0","id":%b,' % json.dumps(ident).encode()
            self.reply(connection, method, message.get("params") or {}, start)

    def reply(
        self, connection: Connection, method: str, params: dict[str, Any], start: bytes
    ) -> None:
        """Answers one request of JSON-RPC."""
        if method == "tools/call":
            self.calls += 1
            name = params["name"]
            parts = [start, b'"result":', self.results[name], b"}"]
            if name.startswith("sse"):
                self.send(connection, 200, [b"event: message\ndata: ", *parts, b"\n\n"], sse=True)
            else:
                self.send(connection, 200, parts)
        elif method == "tools/list":
            self.send(connection, 200, [start, b'"result":', self.tools, b"}"])
        elif method == "ping":
            self.send(connection, 200, [start, b'"result":{}}'])
        elif method == "initialize":
            self.sessions += 1
            result = {
                "protocolVersion": params["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "bench", "version": "1"},
            }
            parts = [start, b'"result":', json.dumps(result).encode(), b"}"]
            self.send(connection, 200, parts, more=b"mcp-session-id: s%d\r\n" % self.sessions)
        else:
            error = b'"error":{"code":-32601,"message":"there is no such method"}}'
            self.send(connection, 200, [start, error])

    def open_stream(self, connection: Connection, session: bytes) -> None:
        """Keeps a GET stream, and pings the session over it from now on."""
        connection.session = session
        known = session in self.streams
        self.streams[session] = connection
        self.push(
            connection,
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked"
            b"\r\n\r\n3\r\n:\n\n\r\n",
        )
        if self.ping and not known:
            # Spread evenly over the interval, whenever the sessions were opened: pings that come
            # together are cheaper, and how many do would depend on what the machine did then.
            phase = self.ping * ((len(self.streams) * 0.618034) % 1.0)
            now = time.monotonic()
            passed = now - self.began  # not the clock's: two servers must not ping in step
            heapq.heappush(self.due, (now + (phase - passed) % self.ping, session))

    def ping_those_due(self) -> None:
        """Pings every session whose time it is."""
        now = time.monotonic()
        while self.due and self.due[0][0] <= now:
            due, session = heapq.heappop(self.due)
            connection = self.streams.get(session)
            if connection is None:
                continue
            self.idents += 1
            self.pings += 1
            data = b'data: {"jsonrpc":"2.0","id":%d,"method":"ping"}\n\n' % self.idents
            self.asked[session, self.idents] = time.monotonic()
            self.push(connection, b"%x\r\n%b\r\n" % (len(data), data))
            heapq.heappush(self.due, (due + self.ping, session))

    def send(
        self,
        connection: Connection,
        status: int,
        parts: list[bytes],
        *,
        sse: bool = False,
        more: bytes = b"",
    ) -> None:
        """Writes a response: a body of known length, or a stream of one event."""
        kind = b"text/event-stream" if sse else b"application/json"
        length = sum(map(len, parts))
        size = b"transfer-encoding: chunked" if sse else b"content-length: %d" % length
        head = b"HTTP/1.1 %d OK\r\ncontent-type: %b\r\n%b\r\n%b\r\n" % (status, kind, size, more)
        if sse:
            parts = [b"%x\r\n" % length, *parts, b"\r\n0\r\n\r\n"]
        if length < 4096:
            self.push(connection, b"".join([head, *parts]))
        else:
            self.push(connection, head, *parts)

    def push(self, connection: Connection, *parts: bytes) -> None:
        """Writes, and keeps what the socket does not take."""
        waiting = bool(connection.outbox)
        connection.outbox.extend(map(memoryview, parts))
        if not waiting:
            self.flush(connection)

    def flush(self, connection: Connection) -> None:
        """Writes what waits; watches for room only if some is left."""
        outbox = connection.outbox
        try:
            while outbox:
                sent = connection.sock.sendmsg(list(outbox)[:64])
                while outbox and sent >= len(outbox[0]):
                    sent -= len(outbox.popleft())
                if outbox and sent:
                    outbox[0] = outbox[0][sent:]
        except BlockingIOError:
            pass
        except OSError:
            self.close(connection)
            return
        events = select.EPOLLIN | (select.EPOLLOUT if outbox else 0)
        self.epoll.modify(connection.sock.fileno(), events)


def header(head: bytes, name: bytes) -> bytes:
    """A header's value in a head in lower case; empty if absent."""
    _, _, rest = head.partition(b"\r\n%b:" % name)
    return rest.partition(b"\r\n")[0].strip()


def main() -> None:
    """Serves until it is told to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ping", type=float, default=0.0)
    parser.add_argument("--tools", type=int, default=0)
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Server(asked.port, asked.ping, asked.tools)
    print("ready", server.port, flush=True)
    server.run()


if __name__ == "__main__":
    main()
