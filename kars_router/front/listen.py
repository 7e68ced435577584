"""Binding an address, and serving an ASGI application there.

Owns sockets, the accept loop, and when a server stops. Must not know what is served, nor how HTTP
is spoken: that is one of two servers' business, hypercorn's protocol classes or our own lean one.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import trio
from attrs import frozen

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.errors import UserError
from kars_router.front.exchange import Receive, Scope, Send

AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Longer than the clients of common SDKs keep an idle connection (4 and 5 seconds), so that it is
# they who close it.
_KEEP_ALIVE_SECONDS: Final = 10.0
# How long a peer may leave what was sent to it unread before its connection is given up.
_STUCK_SECONDS: Final = 15.0
_BACKLOG: Final = 1024


class _Server(Protocol):
    """The open connections of one address."""

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serves one connection; what goes wrong with it is logged and ends nothing else."""

    async def run(self) -> None:
        """Does what concerns all connections, until cancelled; then cuts every one off at once."""

    async def stop(self) -> None:
        """Closes idle connections now, the others after the response under way."""


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
    listener: Listener = Listener.HYPERCORN,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serves an application until `stop` returns and its connections are done.

    Speaks HTTP/1.1 only. The application gets no lifespan scope. What goes wrong with one
    connection is logged and ends that connection only.

    Args:
        app: the application.
        bound: where; closed in the end.
        stop: returns when no more connections are to be accepted. Idle connections are closed
            then, the others after the response under way.
        grace: seconds that open connections have from then on; what is left is cut off.
        listener: what speaks HTTP.
        task_status: told the URL once connections are accepted.

    Cancellation: every connection is cut off at once, also one whose peer does not read.
    """
    accepting_on = trio.SocketListener(trio.socket.from_stdlib_socket(bound.sock))
    server = _server(app, listener)
    async with trio.open_nursery() as outer:
        outer.start_soon(server.run)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accept = partial(trio.serve_listeners, handler_nursery=connections)
                await accepting.start(accept, server.handle, [accepting_on])
                task_status.started(_url(bound))
                await stop()
                accepting.cancel_scope.cancel()
            await server.stop()
            # Of the outer one, since the last task in it has to learn of it as well.
            outer.cancel_scope.deadline = trio.current_time() + grace
        outer.cancel_scope.cancel()


def _server(app: AsgiApp, listener: Listener) -> _Server:
    # Each brings what the other does not need.
    if listener is Listener.LEAN:
        from kars_router.front.lean import LeanServer

        return LeanServer(app, keep_alive=_KEEP_ALIVE_SECONDS)
    from kars_router.front.hypercorn_server import HypercornServer

    return HypercornServer(app, keep_alive=_KEEP_ALIVE_SECONDS)


def _url(bound: Bound) -> str:
    if bound.address.path:
        return f"http://unix:{bound.address.path}"
    host, port = bound.sock.getsockname()[:2]
    return f"http://{Address(host, port)}"


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
