"""Binding an address, and serving an ASGI application there with hypercorn's protocol classes.

Owns sockets, connections and hypercorn's settings. Must not know what is served.

hypercorn's own server leaves two things open that matter to a router. It sends under a shield, so a
peer that stopped reading holds a shutdown up for as long as it likes. And it keeps connections that
their peer has closed until they would have been idle for too long. So the accept loop and the life
of a connection are ours; see docs/decisions/0008-hypercorn-connections.md.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import trio
from attrs import Factory, define, frozen
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from kars_router.config.addresses import Address
from kars_router.errors import UserError
from kars_router.front.exchange import Receive, Scope, Send
from kars_router.telemetry import server_logger

AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

# Longer than the clients of common SDKs keep an idle connection (4 and 5 seconds), so that it is
# they who close it.
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

    Speaks HTTP/1.1 only. The application gets no lifespan scope. What goes wrong with one
    connection is logged and ends that connection only.

    Args:
        app: the application.
        bound: where; closed in the end.
        stop: returns when no more connections are to be accepted. Idle connections are closed
            then, the others after the response under way.
        grace: seconds that open connections have from then on; what is left is cut off.
        task_status: told the URL once connections are accepted.

    Cancellation: every connection is cut off at once, also one whose peer does not read.
    """
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound.sock))
    server = _Server(app)
    async with trio.open_nursery() as outer:
        outer.start_soon(server.cut_off_when_cancelled)
        async with trio.open_nursery() as connections:
            async with trio.open_nursery() as accepting:
                accept = partial(trio.serve_listeners, handler_nursery=connections)
                await accepting.start(accept, server.handle, [listener])
                task_status.started(_url(bound))
                await stop()
                accepting.cancel_scope.cancel()
            await server.context.terminated.set()
            # Of the outer one, since the last task in it has to learn of it as well.
            outer.cancel_scope.deadline = trio.current_time() + grace
        outer.cancel_scope.cancel()


def _settings() -> Config:
    settings = Config()
    settings.accesslog = None
    settings.errorlog = server_logger()
    settings.include_server_header = False
    settings.keep_alive_timeout = _KEEP_ALIVE_SECONDS
    settings.keep_alive_max_requests = _ENDLESS_REQUESTS
    return settings


@define(eq=False)
class _Server:
    """The open connections of one address, and what they share."""

    app: AsgiApp
    config: Config = Factory(_settings)
    context: WorkerContext = Factory(lambda: WorkerContext(None))
    streams: set[trio.SocketStream] = Factory(set)

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serves one connection; whoever called it closes the stream."""
        self.streams.add(stream)
        try:
            await _Connection(self, stream).run()
        except* Exception:  # noqa: BLE001 - crash barrier: one connection
            await self.config.log.exception("a connection failed")
        finally:
            self.streams.discard(stream)

    async def cut_off_when_cancelled(self) -> None:
        """Waits to be cancelled, then closes every connection, which wakes shielded sends."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # closing forcefully waits for nothing
                for stream in [*self.streams]:
                    await trio.aclose_forcefully(stream)


class _Http1(H11Protocol):
    """hypercorn's HTTP/1.1 without its ways into HTTP/2, which no agent needs."""

    async def _check_protocol(self, event: Any) -> None:
        # An `Upgrade: h2c` is ignored (RFC 9110, section 7.8), a preface answered with an error.
        pass


class _Connection(TCPServer):
    """hypercorn's connection over plain sockets, which is over once its peer has gone."""

    def __init__(self, server: _Server, stream: trio.SocketStream) -> None:
        app: Any = server.app  # our messages are plain mappings, hypercorn's typed dictionaries
        plain: Any = stream  # hypercorn's annotation names TLS streams only
        super().__init__(ASGIWrapper(app), server.config, server.context, {}, plain)
        self._peer_gone = False

    async def run(self) -> None:
        sock = self.stream.socket
        try:
            ends = (
                parse_socket_addr(sock.family, sock.getpeername()),
                parse_socket_addr(sock.family, sock.getsockname()),
            )
            async with TaskGroup() as self._task_group:
                self.protocol = self._protocol(*ends)
                await self.idle_task.restart(self._task_group, self._idle_timeout)
                await self._read_data()
        except OSError:
            pass  # the peer had gone before it was looked at
        finally:
            # Under cancellation the socket is closed before the first checkpoint.
            await self._close()  # noqa: ASYNC102

    def _protocol(self, *ends: tuple[str, int] | None) -> Any:
        client, server = ends
        return _Http1(
            self.app,
            self.config,
            self.context,
            self._task_group,
            ConnectionState({}),
            False,
            client,
            server,
            self.protocol_send,
        )

    async def _read_data(self) -> None:
        await super()._read_data()
        self._peer_gone = True
        # It would go on until the connection had been idle for too long.
        await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if self._peer_gone and isinstance(event, Updated):
            event = Closed()  # nobody is there to send another request
        await super().protocol_send(event)


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
