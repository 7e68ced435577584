"""A server over stdio that keeps all that it is given: its environment, its arguments, each line.

Also says, to whoever imports it, what any server in these tests answers.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def answer(message: dict[str, Any]) -> dict[str, Any] | None:
    """The response to a message of the handshake era; None if it needs none."""
    if "id" not in message or "method" not in message:
        return None
    results: dict[str, Any] = {
        "initialize": {
            "protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "recording", "version": "1"},
        },
        "tools/list": {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]},
        "tools/call": {"content": [{"type": "text", "text": "here"}]},
    }
    found = results.get(message["method"])
    outcome = {"error": {"code": -32601, "message": "no"}} if found is None else {"result": found}
    return {"jsonrpc": "2.0", "id": message["id"], **outcome}


def main() -> None:
    with Path(sys.argv[1]).open("w") as record:
        record.write(repr((sys.argv, dict(os.environ))))
        for line in sys.stdin:
            record.write(line)
            record.flush()
            response = answer(json.loads(line))
            if response is not None:
                print(json.dumps(response), flush=True)


if __name__ == "__main__":
    main()
