"""Who may talk to a listener: Host and Origin checks against DNS rebinding.

Pure.

Source: MCP 2025-11-25 "Transports / Security Warning"; RFC 6454; RFC 9110, section 7.4 (421).
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from typing import Final

FORBIDDEN: Final = 403
MISDIRECTED: Final = 421
_REMEMBERED: Final = 64  # agents keep using the same few


class Guard:
    """The accepted Host and Origin values of one listener.

    Loopback names are accepted as Host with any port. An Origin is accepted if it is on the list,
    or if it is the listener itself under a loopback name; a page from another port on the same
    machine is another origin.

    Args:
        hosts: further Host values, `name` (any port) or `name:port`, lower case.
        origins: further Origins, lower case.
    """

    def __init__(self, hosts: Iterable[str] = (), origins: Iterable[str] = ()) -> None:
        self._hosts = frozenset(hosts)
        self._origins = frozenset(origins)
        self._judged = functools.lru_cache(maxsize=_REMEMBERED)(self._judge)

    def refuses(self, host: str, origin: str) -> int | None:
        """The HTTP status to refuse a request with, or None to let it pass.

        Args:
            host: the Host header; "" if absent.
            origin: the Origin header; "" if absent, as it is from anything but a web page.
        """
        return self._judged(host, origin)

    def _judge(self, host: str, origin: str) -> int | None:
        host, origin = host.lower(), origin.lower()
        if origin and origin not in self._origins and not self._is_own(host, origin):
            return FORBIDDEN
        name = _without_port(host)
        if host in self._hosts or name in self._hosts or _is_loopback(name):
            return None
        return MISDIRECTED

    def _is_own(self, host: str, origin: str) -> bool:
        return origin in (f"http://{host}", f"https://{host}") and _is_loopback(_without_port(host))


def is_address(host: str) -> bool:
    """Whether a Host header is an IP address: no name, so nothing that a page could rebind.

    Args:
        host: the header's value; "" counts as one, since browsers always send it.
    """
    try:
        return not host or bool(ipaddress.ip_address(_without_port(host).strip("[]")))
    except ValueError:
        return False


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _is_loopback(name: str) -> bool:
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
