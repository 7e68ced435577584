"""The connections of an address, served with hypercorn's protocol classes.

Owns hypercorn's settings and what of hypercorn is overridden. Must not know what is served.

hypercorn's own server leaves two things open that matter to a router. It sends under a shield, so a
peer that stopped reading holds a shutdown up for as long as it likes. And it keeps connections that
their peer has closed until they would have been idle for too long. So the accept loop and the life
of a connection are ours; see docs/decisions/0008-hypercorn-connections.md.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Response
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from kars_router.telemetry import server_logger

if TYPE_CHECKING:
    from kars_router.front.listen import AsgiApp

_ENDLESS_REQUESTS: Final = 2**62


class HypercornServer:
    """The open connections of one address, and what they share.

    Args:
        app: what is served. It gets no lifespan scope.
        keep_alive: seconds that a connection has to bring its next request's head.
    """

    def __init__(self, app: AsgiApp, *, keep_alive: float) -> None:
        self.app = app
        self.config = _settings(keep_alive)
        self.context = WorkerContext(None)
        self.streams: set[trio.SocketStream] = set()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serves one connection; whoever called it closes the stream."""
        self.streams.add(stream)
        try:
            await _Connection(self, stream).run()
        except* Exception:  # noqa: BLE001 - crash barrier: one connection
            await self.config.log.exception("a connection failed")
        finally:
            self.streams.discard(stream)

    async def run(self) -> None:
        """Waits to be cancelled, then closes every connection, which wakes shielded sends."""
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # closing forcefully waits for nothing
                for stream in [*self.streams]:
                    await trio.aclose_forcefully(stream)

    async def stop(self) -> None:
        """Closes idle connections now, the others after the response under way."""
        await self.context.terminated.set()


def _settings(keep_alive: float) -> Config:
    settings = Config()
    settings.accesslog = None
    settings.errorlog = server_logger()
    settings.include_server_header = False
    settings.keep_alive_timeout = keep_alive
    settings.keep_alive_max_requests = _ENDLESS_REQUESTS
    return settings


class _Http1(H11Protocol):
    """hypercorn's HTTP/1.1 without its ways into HTTP/2, which no agent needs.

    A head that says how long the body is waits for it, and an end that is no bytes is not written:
    one write for a response, not three.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._pass_on = self.send
        self.send = self._collect
        self._holding = False
        self._held = b""

    async def stream_send(self, event: Any) -> None:
        self._holding = isinstance(event, Response) and any(
            name == b"content-length" for name, _ in event.headers
        )
        await super().stream_send(event)

    async def _collect(self, event: Event) -> None:
        if isinstance(event, RawData):
            data, self._held = self._held + event.data, b""
            if self._holding:
                self._holding = False
                self._held = data
            if self._held or not data:
                return
            event = RawData(data)
        await self._pass_on(event)

    async def _check_protocol(self, event: Any) -> None:
        # An `Upgrade: h2c` is ignored (RFC 9110, section 7.8), a preface answered with an error.
        pass


class _IdleTimer:
    """Stands for hypercorn's task that ends an idle connection, which it makes for every request.

    This is one task for the whole life of a connection; a request only moves its deadline.

    Args:
        seconds: how long a connection may be idle.
        terminated: set once the server stops.
    """

    def __init__(self, seconds: float, terminated: Any) -> None:
        self._seconds = seconds
        self._terminated = terminated
        self._deadline = math.inf
        self._scope = trio.CancelScope()
        self._started = False
        self._over = False

    async def restart(self, task_group: Any, close: Callable[[], Awaitable[None]]) -> None:
        """The connection is idle from now on."""
        self._move(trio.current_time() + self._seconds)
        if not self._started:
            self._started = True
            task_group.spawn(self._watch, close)

    async def stop(self) -> None:
        """The connection is not idle."""
        self._move(math.inf)

    def end(self) -> None:
        """There is nothing to watch any more."""
        self._over = True
        self._scope.cancel()

    def _move(self, deadline: float) -> None:
        self._deadline = self._scope.deadline = deadline

    async def _watch(self, close: Callable[[], Awaitable[None]]) -> None:
        while not self._over:
            with self._scope:
                await self._terminated.wait()
            if self._deadline < math.inf and not self._over:
                with trio.CancelScope(shield=True):  # closing waits for nothing
                    await close()
                return
            if self._terminated.is_set():
                return  # the response under way is the last one
            # A request came at the last moment.
            self._scope = trio.CancelScope(deadline=self._deadline)


class _Connection(TCPServer):
    """hypercorn's connection over plain sockets, which is over once its peer has gone."""

    def __init__(self, server: HypercornServer, stream: trio.SocketStream) -> None:
        app: Any = server.app  # our messages are plain mappings, hypercorn's typed dictionaries
        plain: Any = stream  # hypercorn's annotation names TLS streams only
        super().__init__(ASGIWrapper(app), server.config, server.context, {}, plain)
        self._peer_gone = False
        self.idle_task: Any = _IdleTimer(
            server.config.keep_alive_timeout, server.context.terminated
        )

    async def run(self) -> None:
        sock = self.stream.socket
        try:
            ends = (
                parse_socket_addr(sock.family, sock.getpeername()),
                parse_socket_addr(sock.family, sock.getsockname()),
            )
            async with TaskGroup() as self._task_group:
                self.protocol = self._protocol(*ends)
                await self.idle_task.restart(self._task_group, self._initiate_server_close)
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
        self.idle_task.end()

    async def _mark(self, event: Updated) -> None:
        if event.idle:
            await self.idle_task.restart(self._task_group, self._initiate_server_close)
        else:
            await self.idle_task.stop()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            if not self._peer_gone:
                await self._mark(event)
                return
            event = Closed()  # nobody is there to send another request
        await super().protocol_send(event)
