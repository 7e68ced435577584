"""What hypercorn's settings do to the processor time of a small POST: each against the defaults.

An application that answers with what it was sent, under hypercorn as it comes, in a process of its
own for each setting, in turns; wrk asks over 16 connections.

    python bench/micro/hypercorn_settings.py [ROUNDS]

The ratio to the defaults, median of the rounds, is what to quote.
"""

from __future__ import annotations

import json
import re
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import trio

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench.processes import cores, start
from kars_router.front.exchange import accept_lifespan

SECONDS = 2
BODY = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x","arguments":{}}}'
SCRIPT = (
    f"wrk.method = 'POST'\nwrk.body = '{BODY}'\nwrk.headers['content-type'] = 'application/json'"
)
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "keep_alive_max_requests, no end": {"keep_alive_max_requests": 2**62},
    "include_date_header, off": {"include_date_header": False},
    "include_server_header, off": {"include_server_header": False},
    "h11_pass_raw_headers, on": {"h11_pass_raw_headers": True},
    "max_app_queue_size, 1": {"max_app_queue_size": 1},
    "max_app_queue_size, 100": {"max_app_queue_size": 100},
    "read_timeout, 60 s": {"read_timeout": 60},
    "keep_alive_timeout, an hour": {"keep_alive_timeout": 3600},
    "errorlog, off": {"errorlog": None},
    "accesslog, on": {"accesslog": "/dev/null"},
    "the first four": {
        "keep_alive_max_requests": 2**62,
        "include_date_header": False,
        "include_server_header": False,
        "errorlog": None,
    },
}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was sent."""
    if scope["type"] == "lifespan":
        await accept_lifespan(receive, send)
        return
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def serve(settings: dict[str, Any]) -> None:
    """Serves with these settings until it is told to end."""
    from hypercorn.config import Config
    from hypercorn.trio import serve as serving

    sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
    config = Config.from_mapping(bind=[f"fd://{sock.fileno()}"], **settings)
    print("ready", sock.getsockname()[1], flush=True)
    trio.run(serving, echo, config)


def cost(settings: dict[str, Any], script: str) -> float:
    """Microseconds of processor time for a request."""
    mine, others = cores()
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", json.dumps(settings)]
    with start(command, on=mine) as server:
        asking = ["wrk", "-t", "1", "-c", "16", "-s", script]
        asking += ["-d", f"{SECONDS}s", f"http://127.0.0.1:{server.port}/"]
        asking = ["taskset", "-c", ",".join(map(str, others)), *asking]
        subprocess.run(asking, check=True, capture_output=True)
        before = server.usage().cpu
        said = subprocess.run(asking, check=True, capture_output=True, text=True).stdout
        spent = server.usage().cpu - before
    found = re.search(r"(\d+) requests in", said)
    assert found, said
    assert "Non-2xx" not in said, said
    return spent / int(found[1]) * 1e6


def main(rounds: int) -> None:
    """Measures and prints."""
    found: dict[str, list[float]] = {name: [] for name in SETTINGS}
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT)
        script.flush()
        for _ in range(rounds):
            for name, settings in SETTINGS.items():
                found[name].append(cost(settings, script.name))
    for name, values in found.items():
        ratios = [value / base for value, base in zip(values, found["defaults"], strict=True)]
        low, high = min(ratios), max(ratios)
        print(f"{name:34} {statistics.median(values):6.0f} us", end="  ")
        print(f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]))
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
