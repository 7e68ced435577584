"""Trying whether a TCP connection can be made, and what that shows.

Owns the words for how an attempt ends, and what each of them proves. Must not know what was
declared.
"""

from __future__ import annotations

import enum
import errno
import socket
from typing import Any, Final

import trio
from attrs import frozen

_MOST_ADDRESSES: Final = 8
_NO_WAY: Final = frozenset(
    {
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.EHOSTDOWN,
        errno.EACCES,
        errno.EPERM,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ENOPROTOOPT,
    }
)


class Ending(enum.StrEnum):
    """How an attempt ended."""

    CONNECTED = "connected"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"
    TIMEOUT = "timeout"
    UNRESOLVED = "unresolved"


# Of several addresses of a name, the one that shows most counts.
_ORDER: Final = (Ending.CONNECTED, Ending.REFUSED, Ending.TIMEOUT, Ending.UNREACHABLE)


@frozen
class Attempt:
    """What came of trying to connect.

    Attributes:
        ending: how it ended.
        said: that and what it shows, in a sentence.
        addresses: those that were tried.
    """

    ending: Ending
    said: str
    addresses: tuple[str, ...] = ()


async def attempt(host: str, port: int, seconds: float) -> Attempt:
    """Tries to connect to every address of a host at once, and sends nothing.

    Args:
        host: a name or an address.
        port: the port.
        seconds: after which it is given up.
    """
    deadline = trio.current_time() + seconds
    found: list[Any] = []
    with trio.move_on_at(deadline) as scope:
        try:
            found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            return Attempt(Ending.UNRESOLVED, f"The name cannot be looked up ({error.strerror}).")
    if scope.cancelled_caught:
        said = f"The name was not looked up within {seconds:g} s."
        return Attempt(Ending.UNRESOLVED, said)
    targets = list(dict.fromkeys((family, there) for family, _, _, _, there in found))
    endings: list[Ending] = []
    async with trio.open_nursery() as nursery:
        for family, there in targets[:_MOST_ADDRESSES]:
            nursery.start_soon(_try, family, there, deadline, endings)
    ending = min(endings, key=_ORDER.index)
    addresses = tuple(there[0] for _, there in targets[:_MOST_ADDRESSES])
    return Attempt(ending, _said(ending, seconds), addresses)


async def _try(family: int, there: tuple[Any, ...], deadline: float, endings: list[Ending]) -> None:
    ending = Ending.TIMEOUT
    with trio.move_on_at(deadline):
        ending = await _connect(family, there)
    endings.append(ending)


async def _connect(family: int, there: tuple[Any, ...]) -> Ending:
    try:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        return Ending.UNREACHABLE
    with sock:
        try:
            await sock.connect(there)
        except OSError as error:
            if error.errno == errno.ETIMEDOUT:
                return Ending.TIMEOUT
            return Ending.UNREACHABLE if error.errno in _NO_WAY else Ending.REFUSED
    return Ending.CONNECTED


def _said(ending: Ending, seconds: float) -> str:
    match ending:
        case Ending.CONNECTED:
            return "A connection was made."
        case Ending.REFUSED:
            return (
                "The connection was refused: nothing listens there, or a firewall answers in its "
                "place."
            )
        case Ending.UNREACHABLE:
            return "The system or the network said that there is no way there."
        case _:
            return (
                f"No answer came within {seconds:g} s: it was dropped on its way, or nobody is "
                "there, or the network is slow."
            )
