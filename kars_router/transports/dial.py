"""TCP connections to servers: what a name leads to, and which of that is tried in which order.

Owns resolving, which happens once for each connection, and connecting to the very addresses that
came of it. Must not know what is allowed, which is `guard`'s.

Source: RFC 8305 (Happy Eyeballs), sections 4 and 5.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import trio

from kars_router.telemetry import log
from kars_router.transports.guard import Guard, cluster_domains

_PATIENCE: Final = 0.25  # seconds until the next address is tried as well
_CLOSE_SECONDS: Final = 1.0
_RESOLV_CONF: Final = Path("/etc/resolv.conf")
_MOST_NAMED: Final = 8


def guard_for(host: str, networks: Iterable[str] = ()) -> Guard:
    """The guard of a URL's host, where this process runs.

    Args:
        host: as for `Guard.of`.
        networks: CIDR blocks that a name may lead to although they are not public.

    Raises:
        ValueError: a network is none.
    """
    return Guard.of(host, networks, _domains_here())


async def dial(guard: Guard, port: int) -> trio.SocketStream:
    """Connects to the host of a guard, at an address that it permits.

    Args:
        guard: has the host.
        port: 1 to 65535.

    Raises:
        AddressRefusedError: there is no such address.
        OSError: the name leads nowhere, or nobody answers there.
        ValueError: the host cannot be a name.

    Cancelled, it leaves no socket open.
    """
    if guard.literal is not None:
        return await trio.open_tcp_stream(guard.literal, port)
    found = [
        _address_of(entry[4])
        for entry in await trio.socket.getaddrinfo(guard.host, port, type=trio.socket.SOCK_STREAM)
    ]
    permitted = guard.permitted(found)
    if refused := [address for address in dict.fromkeys(found) if address not in permitted]:
        log().warning("addresses_refused", host=guard.host, addresses=refused[:_MOST_NAMED])
    if len(permitted) == 1:
        return await trio.open_tcp_stream(permitted[0], port)
    return await _race(_interleaved(permitted), port)


async def _race(addresses: Sequence[str], port: int) -> trio.SocketStream:
    """Connects to the first of several addresses that answers.

    Trio would do this for a name, but would look it up again.
    """
    winner: trio.SocketStream | None = None
    errors: list[OSError] = []

    async def attempt(address: str, failed: trio.Event) -> None:
        nonlocal winner
        try:
            stream = await trio.open_tcp_stream(address, port)
        except OSError as error:
            errors.append(error)
            failed.set()
            return
        if winner is not None:  # both were there at the same moment
            await trio.aclose_forcefully(stream)
            return
        winner = stream
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(attempt, address, failed)
                with trio.move_on_after(_PATIENCE):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await trio.aclose_forcefully(winner)
        raise
    if winner is None:
        text = f"none of {len(addresses)} addresses answers"
        raise OSError(text) from ExceptionGroup(text, errors)
    return winner


def _interleaved(addresses: Sequence[str]) -> list[str]:
    """Families in turn, the family of the first address first; else in the resolver's order."""
    first = ":" in addresses[0]
    ours = [address for address in addresses if (":" in address) is first]
    others = [address for address in addresses if (":" in address) is not first]
    pairs = itertools.zip_longest(ours, others)
    return [address for pair in pairs for address in pair if address is not None]


def _address_of(place: tuple[object, ...]) -> str:
    address, scope = str(place[0]), place[3] if len(place) > 3 else 0
    return f"{address}%{scope}" if scope and "%" not in address else address


@functools.cache
def _domains_here() -> tuple[str, ...]:
    try:
        return cluster_domains(_RESOLV_CONF.read_text("utf-8", "replace"))
    except OSError:
        return ()
