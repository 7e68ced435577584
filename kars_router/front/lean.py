"""Serving an ASGI application to neighbours: plain HTTP/1.1 over sockets, and nothing else.

Owns the life of a connection: whose turn it is, how long what may take, how it ends. Must not know
what is served. For loopback and Unix sockets: no TLS, no HTTP/2, no web sockets, no upgrade.

A connection is one task and a raw socket. The application runs in that task, and while it works the
socket is read only by its own `receive()`: what comes before it asks waits in the kernel, so that
nothing has to be signalled between tasks and nothing piles up. What has to wake a connection (its
time is up, the server stops, a response has ended while another task of the application waits for
the peer to leave) does so with `notify_closing`, which costs nothing as long as nobody needs it.
One task watches the time for all connections. See docs/decisions/0019-lean-listener.md.
"""

from __future__ import annotations

import math
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from kars_router.front.exchange import BODY_AT_HAND
from kars_router.front.http_request import BadRequestError, Head, take_head
from kars_router.front.http_response import Dates, refusal
from kars_router.front.http_scope import End, http_scope
from kars_router.front.lean_cycle import Cycle
from kars_router.telemetry import server_logger

if TYPE_CHECKING:
    from kars_router.front.listen import AsgiApp

_READ_SIZE: Final = 64 * 1024
# How long, and how much, a peer may still send that nobody reads.
_LINGER_SECONDS: Final = 2.0
_LINGER_BYTES: Final = 16 * 1024 * 1024
# All connections are looked at together, so that when many expire, one by one, each of them does
# not have all others looked at. It is how much longer than said a connection may live.
_LOOK_SECONDS: Final = 0.1


class LeanServer:
    """The open connections of one address, and what they share.

    Args:
        app: what is served. It gets no lifespan scope.
        keep_alive: seconds that a connection has to bring its next request's head.
    """

    def __init__(self, app: AsgiApp, *, keep_alive: float) -> None:
        self.app = app
        self.keep_alive = keep_alive
        self.stopping = False
        self.dates = Dates()
        self.log = server_logger()
        self._connections: set[Connection] = set()
        self._next_look = math.inf
        self._sooner = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        """Serves one connection, to its end; what goes wrong with it is logged."""
        sock = socket.socket(fileno=stream.socket.detach())
        connection = Connection(self, sock)
        self._connections.add(connection)
        try:
            await connection.run()
        except* Exception:  # crash barrier: one connection
            self.log.exception("a connection failed")
        finally:
            self._connections.discard(connection)
            connection.cut_off()  # a task of the application's may still be writing elsewhere

    async def run(self) -> None:
        """Ends what takes too long, until it is cancelled; then cuts every connection off."""
        try:
            while True:
                with trio.move_on_at(self._next_look):
                    await self._sooner.wait()
                self._look()
        finally:
            for connection in [*self._connections]:
                connection.cut_off()

    async def stop(self) -> None:
        """Closes idle connections now, the others after the response under way."""
        self.stopping = True
        for connection in [*self._connections]:
            if connection.deadline != math.inf:
                connection.expire()

    def expect(self, connection: Connection, seconds: float) -> None:
        """Gives a connection so long from now on; whoever gave it ends that by itself."""
        connection.deadline = deadline = trio.current_time() + seconds
        if deadline < self._next_look:
            self._next_look = deadline
            self._sooner.set()

    def _look(self) -> None:
        now = trio.current_time()
        self._sooner = trio.Event()
        self._next_look = math.inf
        for connection in [*self._connections]:
            if connection.deadline <= now:
                connection.expire()
            elif connection.deadline < self._next_look:
                self._next_look = connection.deadline
        self._next_look = max(self._next_look, now + _LOOK_SECONDS)


class Connection:
    """One connection; whoever made it closes its socket.

    Attributes:
        sock: does not block.
        data: what has come and belongs to no request yet.
        deadline: when it has to be over with what it is at; infinite while that is a request's
            answer, whose time is the application's.
        ended: whether nothing more can come.
        broken: whether nothing more can be sent.
        congestion: where other tasks wait while one of them is sending what the peer is slow to
            read; None while nothing has to be waited for.
    """

    __slots__ = (
        "_client",
        "_expired",
        "_place",
        "broken",
        "congestion",
        "data",
        "deadline",
        "ended",
        "server",
        "sock",
    )

    def __init__(self, server: LeanServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.data = b""
        self.deadline = math.inf
        self.ended = False
        self.broken = False
        self.congestion: trio.lowlevel.ParkingLot | None = None
        self._expired = False
        self._client: End = None
        self._place: End = None

    async def run(self) -> None:
        """Serves requests, one after the other, until the connection is over."""
        self.sock.setblocking(False)
        try:
            self._client = _address(self.sock, self.sock.getpeername())
            self._place = _address(self.sock, self.sock.getsockname())
        except OSError:
            return  # the peer had gone before it was looked at
        try:
            while (head := await self._next_head()) is not None:
                if not await self._serve(head):
                    break
        except BadRequestError as error:
            await self.write([refusal(error.status, self.server.dates.line())])
            await self._linger()

    async def fill(self) -> bool:
        """Waits until something has come, or it is time to look around.

        Returns:
            whether something has come.
        """
        try:
            try:
                await trio.lowlevel.wait_readable(self.sock)
            except trio.ClosedResourceError:
                if not self._expired:
                    return False  # woken without a reason of the socket's
            # What has come by the last moment still counts.
            part = self.sock.recv(_READ_SIZE)
        except BlockingIOError:
            return False
        except OSError:
            self.broken = self.ended = True
            return False
        if not part:
            self.ended = True
            return False
        self.data = self.data + part if self.data else part
        return True

    async def write(self, parts: list[bytes]) -> None:
        """Sends; returns once all is with the kernel, or the peer has gone.

        One task at a time: where there are several, each waits for its `turn` first.

        Cancellation: does not end it, or what comes next would not be understood. Only
        `cut_off` does.
        """
        for at, part in enumerate(parts):
            if self.broken:
                return
            try:
                sent = self.sock.send(part)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.broken = True
                return
            if sent < len(part):
                left = [memoryview(part)[sent:], *(memoryview(each) for each in parts[at + 1 :])]
                await self._write_slowly(left)
                return

    async def turn(self) -> None:
        """Waits until no other task is sending; need not be called while there is no congestion."""
        while self.congestion is not None:
            await self.congestion.park()

    async def _write_slowly(self, parts: list[memoryview]) -> None:
        self.congestion = congestion = trio.lowlevel.ParkingLot()
        try:
            with trio.CancelScope(shield=True):  # ended by TCP_USER_TIMEOUT, or by `cut_off`
                for rest in parts:
                    while rest:
                        try:
                            await trio.lowlevel.wait_writable(self.sock)
                            rest = rest[self.sock.send(rest) :]  # noqa: PLW2901 - what is left
                        except BlockingIOError:
                            continue
        except (OSError, trio.ClosedResourceError):
            self.broken = True
        finally:
            self.congestion = None
            congestion.unpark_all()

    def wake(self) -> None:
        """Has whoever waits for the socket look around."""
        if self.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self.sock)

    def expire(self) -> None:
        """Ends the connection, which waits for its peer."""
        self._expired = True
        self.deadline = math.inf
        self.wake()

    def cut_off(self) -> None:
        """Ends the connection whatever it is at."""
        self.broken = self.ended = self._expired = True
        self.wake()
        self.sock.close()

    async def _next_head(self) -> Head | None:
        if self.data:
            await trio.lowlevel.checkpoint()  # requests that came at once are not one turn
        elif self.server.stopping:
            return None
        self.server.expect(self, self.server.keep_alive)
        while True:
            if self.data and (found := take_head(self.data)) is not None:
                self.deadline = math.inf
                self._expired = False  # it made it
                head, self.data = found
                return head
            if self.ended and self.data:
                raise BadRequestError(400)
            if self.ended or self._expired:
                return None
            await self.fill()

    async def _serve(self, head: Head) -> bool:
        cycle = Cycle(self, head)
        scope = http_scope(head, self._client, self._place)
        scope["extensions"] = {BODY_AT_HAND: cycle.body_at_hand}
        try:
            await self.server.app(scope, cycle.receive, cycle.send)
        except Exception:  # crash barrier: one request
            self.server.log.exception("the application failed")
        finally:
            cycle.over()
        response = cycle.response
        if not response.complete:
            if response.written:
                return False  # cut off, which is how its reader learns that it is not all
            status = 400 if cycle.torn else 500
            await self.write([refusal(status, self.server.dates.line())])
        elif cycle.body_taken():
            if response.keep and not self.server.stopping:
                return True
            if not self.data:
                return False
        await self._linger()
        return False

    async def _linger(self) -> None:
        # Something of what came is unread: closing at once would reset the connection, and the
        # peer would lose the answer that it has not read yet.
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:
            return
        self.server.expect(self, _LINGER_SECONDS)
        read = 0
        while not (self.ended or self._expired) and read < _LINGER_BYTES:
            self.data = b""
            await self.fill()
            read += len(self.data)


def _address(sock: socket.socket, address: Any) -> End:
    # Scopes and flow labels of IPv6 do not belong into a scope.
    return address[:2] if sock.family in (socket.AF_INET, socket.AF_INET6) else None
