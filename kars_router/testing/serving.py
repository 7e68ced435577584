"""Serving an ASGI application on a real loopback socket, for a `with` block."""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, cast

import hypercorn.config
import hypercorn.trio
import trio

from kars_router.testing._asgi import AsgiApp
from kars_router.testing._nursery import open_owned_nursery


@contextlib.asynccontextmanager
async def serve(
    app: AsgiApp, host: str = "127.0.0.1", port: int = 0, *, grace: float = 0.5
) -> AsyncIterator[str]:
    """Serve `app` over HTTP/1.1 with hypercorn.

    Only errors of the application are logged, to the logger `kars_router.testing.serving`.

    Args:
        app: the ASGI application.
        host: address to bind.
        port: port to bind; 0 takes a free one.
        grace: seconds that running responses are given when the block ends; those that are
            still open then are broken off.

    Yields:
        The URL it is bound to, without a path: `http://127.0.0.1:PORT`.

    Raises:
        OSError: the address cannot be bound.

    Cancellation: the socket and all connections are closed at once.
    """
    log = logging.getLogger(__name__)
    log.setLevel(logging.ERROR)
    config = hypercorn.config.Config()
    config.bind = [f"fd://{_listen(host, port).detach()}"]
    config.errorlog = log
    config.accesslog = None
    config.graceful_timeout = grace
    stop = trio.Event()
    async with open_owned_nursery(grace=grace + 0.5) as nursery:
        run = partial(hypercorn.trio.serve, cast(Any, app), config, shutdown_trigger=stop.wait)
        binds: list[str] = await nursery.start(run)
        yield binds[0]
        stop.set()


def _listen(host: str, port: int) -> socket.socket:
    """Bind here and not in hypercorn, which leaks the socket and nests the error if it fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.bind((host, port))
        stack.pop_all()
    return sock
