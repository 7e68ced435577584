"""An MCP server of the handshake era on stdio, plain Python: a counter that lives in its process.

python stdio_counter.py

Tools: `count` counts, `crash` ends the process in the middle of the call, `pid` says its number,
`ask` pings the client first. Before it answers a call it does nothing else, as simple servers do.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import Any

TOOLS = ("count", "crash", "pid", "ask")
counter = itertools.count(1)


def say(**message: Any) -> None:
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def hear() -> dict[str, Any]:
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    message: dict[str, Any] = json.loads(line)
    return message


def call(tool: str) -> str:
    if tool == "crash":
        sys.exit("crashed as told")
    if tool == "pid":
        return str(os.getpid())
    if tool == "ask":
        say(id=0, method="ping")
        return json.dumps(hear())
    return str(next(counter))


print("counter: ready", file=sys.stderr)
while True:
    asked = hear()
    method, ident = asked.get("method"), asked.get("id")
    if method == "initialize":
        info = {"name": "counter", "version": "1"}
        version = asked["params"]["protocolVersion"]
        result: dict[str, Any] = {"protocolVersion": version, "serverInfo": info}
        say(id=ident, result={**result, "capabilities": {"tools": {}}})
    elif method == "tools/list":
        schema = {"type": "object"}
        say(id=ident, result={"tools": [{"name": n, "inputSchema": schema} for n in TOOLS]})
    elif method == "tools/call":
        text = call(asked["params"]["name"])
        say(id=ident, result={"content": [{"type": "text", "text": text}]})
    elif ident is not None and method is not None:
        say(id=ident, error={"code": -32601, "message": f"no {method}"})
