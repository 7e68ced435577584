"""Attempts to reach something: `attempt.py JSON`, a list of objects; prints how each ended.

kind: "tcp", "udp", "tell" (over UDP, without waiting for an answer) or "ping". to, port: where.
Optional: source_port; data; bytes (how many to send after the greeting); wait (seconds). It ends
with "answered", "told", "silence", or the name of an error, after which ", late" says that it took
more than a second.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import time
from typing import Any


def opened(wanted: dict[str, Any]) -> socket.socket:
    family = socket.AF_INET6 if ":" in wanted["to"] else socket.AF_INET
    kind = socket.SOCK_STREAM if wanted["kind"] == "tcp" else socket.SOCK_DGRAM
    echo = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    protocol = echo if wanted["kind"] == "ping" else 0
    sock = socket.socket(family, kind, protocol)
    sock.settimeout(wanted.get("wait", 5))
    if "source_port" in wanted:
        sock.bind(("", wanted["source_port"]))
    return sock


def attempt(wanted: dict[str, Any]) -> str:
    data = wanted.get("data", "secret").encode()
    try:
        with opened(wanted) as sock:
            place = socket.getaddrinfo(wanted["to"], wanted["port"])[0][4]
            sock.connect(place)
            if wanted["kind"] == "tcp":
                greeted = sock.recv(100)
                sock.sendall(bytes(wanted.get("bytes", 0)))
                return "answered" if greeted else "closed"
            if wanted["kind"] == "ping":
                data = (b"\x80" if ":" in wanted["to"] else b"\x08") + b"\0" * 7 + data
                sock.send(data)
                return "answered" if data[8:] in sock.recv(65536) else "confused"
            sock.send(data)
            if wanted["kind"] == "tell":
                return "told"
            return "answered" if data in sock.recv(65536) else "confused"
    except TimeoutError:
        return "silence"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


results = []
for each in json.loads(sys.argv[1]):
    began = time.monotonic()
    result = attempt(each)
    # Whoever is refused is told so, and need not wait.
    slow = result.startswith("E") and time.monotonic() - began > 1
    results.append(f"{result}, late" if slow else result)
print(json.dumps(results))
