"""Compare h11 and httptools on the exchanges that the router makes most.

CPU time of one exchange on the wire's side of things: write the request, parse the response. No
sockets, no scheduler, no httpx.Response. Both do the same checks that the transport relies on
(h11 has them built in; for httptools they are in `kars_router.transports.http_parser`).

    python bench/micro/http_parsers.py [ROUNDS]

Best of 25 runs for each cell. The ratio is what to quote: it holds across machines, the
microseconds do not. Nothing else should be running.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import h11
import httpx

from kars_router.transports.http_parser import READ_SIZE, ResponseParser, serialise

RUNS = 25
CALL = (
    b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":'
    b'{"name":"browser_click","arguments":{"ref":"e12"}}}'
)
PONG = b'{"jsonrpc":"2.0","id":0,"result":{}}'
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"%b"}]}}'
COMMON = (
    b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncache-control: no-cache\r\n"
    b"mcp-session-id: 6f1c1a52-9f0d-4b32-9d45-0f2f3f1f4a11\r\n"
    b"date: Sat, 22 Nov 2025 10:00:00 GMT\r\nconnection: keep-alive\r\nkeep-alive: timeout=5\r\n"
)


def sized(status: bytes, kind: bytes, body: bytes) -> list[bytes]:
    """A response that arrives in as few reads as it can."""
    data = COMMON % (status, kind) + b"content-length: %d\r\n\r\n" % len(body) + body
    return [data[start : start + READ_SIZE] for start in range(0, len(data), READ_SIZE)]


def chunked(kind: bytes, *events: bytes) -> list[bytes]:
    """A response whose head, events and end arrive in a read of their own each."""
    head = COMMON % (b"200 OK", kind) + b"transfer-encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%b\r\n" % (len(event), event) for event in events), b"0\r\n\r\n"]


def event(data: bytes) -> bytes:
    """One event as the MCP SDKs write it."""
    return b"event: message\ndata: %b\n\n" % data


SCENARIOS: dict[str, tuple[bytes, list[bytes]]] = {
    "call, JSON of 0.3 kB": (CALL, sized(b"200 OK", b"application/json", RESULT % (b"x" * 240))),
    "call, event stream": (CALL, chunked(b"text/event-stream", event(RESULT % (b"x" * 240)))),
    "pong, empty 202": (PONG, sized(b"202 Accepted", b"text/plain; charset=UTF-8", b"")),
    "call, JSON of 256 kB": (CALL, sized(b"200 OK", b"application/json", RESULT % (b"x" * 262144))),
    "GET stream, 100 pings": (b"", chunked(b"text/event-stream", *[event(CALL)] * 100)),
}


def build_request(content: bytes) -> httpx.Request:
    """What `httpx.AsyncClient` hands to a transport."""
    return httpx.Request(
        "POST" if content else "GET",
        "http://127.0.0.1:8931/mcp",
        content=content,
        headers={
            "accept": "application/json, text/event-stream",
            "accept-encoding": "identity",
            "user-agent": "kars-router/0",
            "content-type": "application/json",
            "mcp-protocol-version": "2025-11-25",
            "mcp-session-id": "6f1c1a52-9f0d-4b32-9d45-0f2f3f1f4a11",
        },
    )


def with_httptools(content: bytes, reads: list[bytes]) -> Callable[[], int]:
    """One exchange as the transport does it."""
    request = build_request(content)

    def exchange() -> int:
        size = len(serialise(request))
        parser = ResponseParser()
        for data in reads:
            parser.feed(data)
            size += len(parser.take())
        assert parser.complete
        return size

    return exchange


def with_h11(content: bytes, reads: list[bytes]) -> Callable[[], int]:
    """The same exchange on one kept h11 connection."""
    request = build_request(content)
    connection = h11.Connection(h11.CLIENT)

    def exchange() -> int:
        sent = connection.send(
            h11.Request(
                method=request.method,
                target=request.url.raw_path,
                headers=request.headers.raw,
            )
        )
        size = len(sent or b"")
        if content:
            size += len(connection.send(h11.Data(content)) or b"")
        size += len(connection.send(h11.EndOfMessage()) or b"")
        for data in reads:
            connection.receive_data(data)
            while (event := connection.next_event()) is not h11.NEED_DATA:
                if isinstance(event, h11.Data):
                    size += len(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    break
        connection.start_next_cycle()
        return size

    return exchange


def measure(exchanges: list[Callable[[], int]], rounds: int) -> list[float]:
    """CPU seconds of one exchange each, best of `RUNS`; in turns, so that noise meets all."""
    best = [float("inf")] * len(exchanges)
    for _ in range(RUNS):
        for index, exchange in enumerate(exchanges):
            begin = time.process_time()
            for _ in range(rounds):
                exchange()
            best[index] = min(best[index], (time.process_time() - begin) / rounds)
    return best


def main() -> None:
    """Print one line for each scenario."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"{'':24}{'h11':>12}{'httptools':>12}{'ratio':>8}")
    for name, (content, reads) in SCENARIOS.items():
        least = max(10, rounds // len(reads))
        exchanges = [with_h11(content, reads), with_httptools(content, reads)]
        theirs, ours = measure(exchanges, least)
        print(f"{name:24}{theirs * 1e6:9.1f} us{ours * 1e6:9.1f} us{theirs / ours:8.1f}")


if __name__ == "__main__":
    main()
