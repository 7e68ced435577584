"""What an ASGI application is told of a request that we have read ourselves.

Must not know where it came from.

Source: ASGI HTTP message format 2.x.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any
from urllib.parse import unquote

from kars_router.front.http_request import Head

End = tuple[str, int] | None


def http_scope(head: Head, client: End, server: End) -> MutableMapping[str, Any]:
    """The scope of one request, which belongs to whoever gets it.

    Args:
        head: of the request.
        client: the peer's address and port; None on a Unix socket.
        server: ours.
    """
    path, _, query = head.target.partition(b"?")
    return {
        "type": "http",
        "http_version": head.version,
        "asgi": {"spec_version": "2.1", "version": "3.0"},
        "method": head.method,
        "scheme": "http",
        "path": unquote(path.decode("ascii")),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": head.headers,
        "client": client,
        "server": server,
        "state": {},
        "extensions": {},
    }
