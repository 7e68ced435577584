"""Constructs every `httpx.AsyncClient` of the project.

Owns what all of them have in common. Must not know what they are used for. The switch from httpx
to its successor begins here; docs/decisions/0003-http-transport.md says how it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import httpx

from kars_router._version import __version__
from kars_router.transports.http import View

_HEADERS: Final = {
    "user-agent": f"kars-router/{__version__}",
    # httpx would offer gzip and the like, and decode. Nothing here gains from that: events must
    # not wait in a compressor, and limits count what was received.
    "accept-encoding": "identity",
}


def new_client(
    transport: httpx.AsyncBaseTransport, *, headers: Mapping[str, str] | None = None
) -> httpx.AsyncClient:
    """Make a client with a cookie jar of its own on a shared transport.

    Environment variables (proxies, netrc, CA bundles) and redirects are ignored: where a request
    goes is decided by the configuration, and each redirect by the caller. There are no default
    time limits; the caller passes `timeout` with each request.

    Args:
        transport: a `TrioTransport`, or a stand-in for one in tests. It stays the caller's:
            closing the client does not close it.
        headers: sent with every request, and stronger than the defaults here.

    Returns:
        A client to be closed by the caller. It holds no connection, so that a client which is
        merely dropped leaks nothing.
    """
    return httpx.AsyncClient(
        transport=View(transport),
        headers={**_HEADERS, **(headers or {})},
        timeout=httpx.Timeout(None),
        trust_env=False,
        follow_redirects=False,
    )
