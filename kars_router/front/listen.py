"""Binding an address, and serving an ASGI application there with hypercorn.

Owns sockets and hypercorn's settings. Must not know what is served.

hypercorn sends under a shield, so a peer that stopped reading would hold a shutdown up for as long
as it likes; the kernel is told to give such connections up.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import hypercorn.trio
import trio
from attrs import frozen
from hypercorn.config import Config

from kars_router.config.addresses import Address
from kars_router.errors import UserError
from kars_router.front.exchange import Receive, Scope, Send
from kars_router.telemetry import server_logger

AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Longer than the clients of common SDKs keep an idle connection (4 and 5 seconds), so that it is
# they who close it. hypercorn holds on to closed connections for as long, so not much longer.
_KEEP_ALIVE_SECONDS: Final = 10.0
# How long a peer may leave what was sent to it unread before its connection is given up.
_STUCK_SECONDS: Final = 15.0
_ENDLESS_REQUESTS: Final = 2**62
_BACKLOG: Final = 1024


@frozen
class Bound:
    """An address that was bound and is not served yet; its owner serves or closes it."""

    sock: socket.socket
    address: Address

    def close(self) -> None:
        """Gives the address up."""
        self.sock.close()


def bind(address: Address) -> Bound:
    """Binds an address and listens there.

    Args:
        address: a host and a port, 0 for any; or the path of a socket, where one that nobody
            listens on any more is replaced.

    Raises:
        UserError: it cannot be bound; names the address.
    """
    try:
        sock = _unix(Path(address.path)) if address.path else _tcp(address)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UserError(f"cannot listen on {address}: {reason}; choose another address") from error
    return Bound(sock, address)


async def serve(
    app: AsgiApp,
    bound: Bound,
    stop: Callable[[], Awaitable[None]],
    *,
    grace: float,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves an application until `stop` returns and its connections are done.

    Args:
        app: the application.
        bound: where; closed in the end.
        stop: returns when no more connections are to be accepted.
        grace: seconds that open connections have from then on.
        task_status: told the URL once connections are accepted.
    """
    settings = Config()
    settings.accesslog = None
    settings.errorlog = server_logger()
    settings.include_server_header = False
    settings.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    settings.keep_alive_max_requests = _ENDLESS_REQUESTS
    settings.graceful_timeout = grace
    settings.backlog = _BACKLOG
    # hypercorn takes the descriptor over, and closes it.
    settings.bind = [f"fd://{bound.sock.detach()}"]
    framework: Any = app  # our messages are plain mappings, hypercorn's are typed dictionaries
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(_run, framework, settings, stop)
        task_status.started(urls[0])


async def _run(
    app: Any,
    settings: Config,
    stop: Callable[[], Awaitable[None]],
    *,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    await hypercorn.trio.serve(
        app, settings, shutdown_trigger=stop, task_status=task_status, mode="asgi"
    )


def _tcp(address: Address) -> socket.socket:
    family, kind, protocol, _, place = socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Accepted connections inherit it.
        milliseconds = int(_STUCK_SECONDS * 1000)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        sock.bind(place)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _is_served(path):
            path.unlink()
        sock.bind(str(path))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True
