"""Sets of whole numbers as ranges, and addresses as numbers; what a block admits, exactly.

Must not know policies.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final

# Ranges with both ends in them, sorted, apart from each other by at least one number.
Spans = tuple[tuple[int, int], ...]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# IPv4 addresses are numbers from 0 on, IPv6 addresses come after a gap.
_V6: Final = 1 << 33


class UnreadableError(ValueError):
    """A part of a policy that an API server would not take, or that networks read differently."""


def join(spans: Iterable[tuple[int, int]]) -> Spans:
    """The union of ranges."""
    joined: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(joined[-1][1], high))
        else:
            joined.append((low, high))
    return tuple(joined)


def minus(spans: Spans, others: Spans) -> Spans:
    """What is in the first and not in the second."""
    left = []
    for first, high in spans:
        low = first
        for start, end in others:
            if end < low or start > high:
                continue
            if start > low:
                left.append((low, start - 1))
            low = end + 1
        if low <= high:
            left.append((low, high))
    return tuple(left)


def of_block(block: Mapping[str, Any]) -> Spans:
    """The addresses of an `ipBlock`.

    Raises:
        UnreadableError: one of its networks is none.
    """
    left_out = join(_span(network) for network in block.get("except") or ())
    return minus((_span(block.get("cidr")),), left_out)


def networks(spans: Spans) -> list[str]:
    """The fewest CIDR blocks that hold these addresses and no others."""
    found: list[str] = []
    for low, high in spans:
        make: type[ipaddress.IPv4Address | ipaddress.IPv6Address] = ipaddress.IPv4Address
        first, last = low, high
        if low >= _V6:
            make, first, last = ipaddress.IPv6Address, low - _V6, high - _V6
        found += map(str, ipaddress.summarize_address_range(make(first), make(last)))
    return found


def _span(text: object) -> tuple[int, int]:
    try:
        # With bits of a host in it, it still is a network to the API server.
        network: _Network = ipaddress.ip_network(str(text), strict=False)
    except ValueError:
        raise UnreadableError(f"{text} is no network") from None
    low, high = int(network.network_address), int(network.broadcast_address)
    if network.version == 4:
        return low, high
    if network.network_address.ipv4_mapped is not None:
        raise UnreadableError(f"{text} is an IPv4 network to some and none to others")
    return low + _V6, high + _V6
