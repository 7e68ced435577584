"""An MCP server on standard input and output that costs as little as it can.

For what can stand before a stdio server only. It reads what there is, answers every line of it in
one write, and knows the tools of `upstream.py` that answer with JSON: `json_N` answers with a text
of N bytes. It needs nothing but the standard library, and loads little of that, because some peers
start one for each session or even for each call.

    python -S -E stdio_server.py [PROCESSORS]

It moves to the processors that are named, `0,2` for instance: what starts it has one for itself.
"""

from __future__ import annotations

import json
import os
import sys

READ = 256 * 1024
SIZES = (128, 1024, 64 * 1024, 1024 * 1024)
MARK = "bench "


def sized(size: int) -> bytes:
    """A tool's result with a text of so many bytes."""
    text = (MARK + "x" * size)[:size]
    return json.dumps({"content": [{"type": "text", "text": text}]}).encode()


class Server:
    """What it answers."""

    def __init__(self) -> None:
        self.results: dict[str, bytes] = {}
        schema = {"type": "object", "properties": {"value": {"type": "string"}}}
        tools = [
            {"name": f"json_{n}", "description": f"A text of {n} bytes.", "inputSchema": schema}
            for n in SIZES
        ]
        self.tools = json.dumps({"tools": tools}).encode()

    def answer(self, line: bytes) -> bytes:
        """The line that answers a line; nothing for what is no request."""
        message = json.loads(line)
        method, ident = message.get("method"), message.get("id")
        if method is None or ident is None:
            return b""
        start = b'{"jsonrpc":"2.0","id":%b,' % json.dumps(ident).encode()
        if method == "tools/call":
            result = self.result(message["params"]["name"])
        elif method == "tools/list":
            result = self.tools
        elif method == "ping":
            result = b"{}"
        elif method == "initialize":
            answer = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "bench", "version": "1"},
            }
            result = json.dumps(answer).encode()
        else:
            return start + b'"error":{"code":-32601,"message":"there is no such method"}}\n'
        return start + b'"result":' + result + b"}\n"

    def result(self, name: str) -> bytes:
        """What a tool answers; made when it is called for the first time."""
        if name not in self.results:
            self.results[name] = sized(int(name.removeprefix("json_")))
        return self.results[name]


def main() -> None:
    """Answers until its input ends."""
    if len(sys.argv) > 1:
        os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
    server = Server()
    rest = b""
    while data := os.read(0, READ):
        *lines, rest = (rest + data).split(b"\n")
        answers = memoryview(b"".join([server.answer(line) for line in lines if line.strip()]))
        while answers:
            answers = answers[os.write(1, answers) :]


if __name__ == "__main__":
    main()
