"""Prints a line of JSON for each frame that arrives on eth0."""

from __future__ import annotations

import ipaddress
import json
import socket
from typing import Any

ETH_P_ALL = 3
PACKET_OUTGOING = 4
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
ICMPV6 = 58
NEIGHBOUR_DISCOVERY = (133, 135, 136)


def told(frame: bytes) -> dict[str, Any]:
    kind = int.from_bytes(frame[12:14], "big")
    body = frame[14:]
    seen: dict[str, Any] = {
        "neighbours": kind == ARP,
        "port": None,
        "data": body.hex(),
        "protocol": None,
    }
    if kind == IPV4:
        payload = body[(body[0] & 15) * 4 :]
        seen |= {"protocol": body[9], "source": body[12:16], "to": body[16:20]}
    elif kind == IPV6:
        payload = body[40:]
        seen |= {"protocol": body[6], "source": body[8:24], "to": body[24:40]}
        seen["neighbours"] = body[6] == ICMPV6 and payload[0] in NEIGHBOUR_DISCOVERY
    else:
        return seen
    for name in ("source", "to"):
        seen[name] = str(ipaddress.ip_address(seen[name]))
    if seen["protocol"] in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        seen["port"] = int.from_bytes(payload[2:4], "big")
    return seen


with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as sock:
    sock.bind(("eth0", ETH_P_ALL))
    print("ready", flush=True)
    while True:
        frame, (_, _, direction, *_) = sock.recvfrom(65536)
        if direction != PACKET_OUTGOING:
            print(json.dumps(told(frame)), flush=True)
