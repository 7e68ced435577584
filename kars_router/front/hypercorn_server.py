"""The connections of an address, served with hypercorn's protocol classes where those are needed.

Owns hypercorn's settings, what of hypercorn is overridden, and whose turn it is on a connection.
Must not know what is served.

hypercorn's own server leaves two things open that matter to a router. It sends under a shield, so a
peer that stopped reading holds a shutdown up for as long as it likes. And it keeps connections that
their peer has closed until they would have been idle for too long. So the accept loop and the life
of a connection are ours; see docs/decisions/0008-hypercorn-connections.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.events import Response, StreamClosed
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import MAX_RECV, TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr

from kars_router.front.exchange import BODY_AT_HAND
from kars_router.front.http_response import Dates
from kars_router.front.http_scope import End, http_scope
from kars_router.front.idle import IdleTimer
from kars_router.front.ordinary import Ordinary, take_ordinary
from kars_router.telemetry import server_logger
from kars_router.transports.counted_stream import CountedStream

if TYPE_CHECKING:
    from kars_router.front.listen import AsgiApp

_ENDLESS_REQUESTS: Final = 2**62
# How long an application's queue may be full that is to be told that its exchange is over.
_TELL_SECONDS: Final = 1.0
# What is read ahead of requests behind the one that is being answered.
_AHEAD: Final = 64 * 1024


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
        self.dates = Dates()
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

    Args:
        owner: the connection.
        args: hypercorn's.
    """

    def __init__(self, owner: _Connection, *args: Any) -> None:
        super().__init__(*args)
        self._owner = owner
        self._pass_on = self.send
        self.send = self._collect
        self._holding = False
        self._held = b""

    async def handle(self, event: Event) -> None:
        over = isinstance(event, Closed)
        if over:
            self._owner.hear_no_more()
        await super().handle(event)
        if over:
            self._owner.let_reader_go()

    async def stream_send(self, event: Any) -> None:
        self._holding = isinstance(event, Response) and any(
            name == b"content-length" for name, _ in event.headers
        )
        if isinstance(event, StreamClosed):
            await self._finish(event)
        else:
            await super().stream_send(event)

    async def _finish(self, event: Any) -> None:
        # Whoever finishes may be cancelled, and is told of the end first, through a queue that
        # may be full of a body that nobody takes.
        with trio.move_on_after(_TELL_SECONDS, shield=True) as telling:
            await super().stream_send(event)
        if telling.cancelled_caught:
            await self.send(Closed())

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

    async def _create_stream(self, request: Any) -> None:
        # One that was read ahead may get its turn after the end; without a stream it gets none.
        if not self._owner.over:
            await super()._create_stream(request)

    async def _check_protocol(self, event: Any) -> None:
        # An `Upgrade: h2c` is ignored (RFC 9110, section 7.8), a preface answered with an error.
        pass


class _Connection(TCPServer):
    """hypercorn's connection over plain sockets, which is over once its peer has gone.

    Ordinary requests are answered here, all others by hypercorn's protocol, in whatever order they
    come. Between two requests that protocol is as it was made, so it does not miss the ordinary
    ones.

    Once we have ended a connection, nothing that comes on it is anybody's request: it may be the
    rest of a body that was refused, and its sender does not hear what became of it. That holds by
    construction: both ways to end one, `_close` and telling hypercorn's protocol that it is closed,
    begin with `hear_no_more`. What was read ahead is dropped there, what is read later (closing
    takes a turn) in `_note`, and what that protocol has read ahead gets no turn.

    Attributes:
        dates: the server's.
        over: whether we have ended it.
    """

    def __init__(self, server: HypercornServer, stream: trio.SocketStream) -> None:
        app: Any = server.app  # our messages are plain mappings, hypercorn's typed dictionaries
        plain: Any = stream  # hypercorn's annotation names TLS streams only
        super().__init__(ASGIWrapper(app), server.config, server.context, {}, plain)
        self.dates = server.dates
        self._plain_app = server.app
        self.over = False
        self._wire = CountedStream(stream)
        self._idle = IdleTimer(server.config.keep_alive_timeout, server.context.terminated)
        self._ends: tuple[End, End] = (None, None)
        # Whether nothing more comes, and whether all that came has been looked at.
        self._ended = False
        self._peer_gone = False
        self._ordinary: Ordinary | None = None
        # Whether hypercorn's protocol is in the middle of something.
        self._others_turn = False
        # What has come and whose turn it is not yet.
        self._ahead = b""
        self._pause = trio.CancelScope()
        self._handling = trio.CancelScope()

    async def run(self) -> None:
        sock = self.stream.socket
        try:
            self._ends = (
                parse_socket_addr(sock.family, sock.getpeername()),
                parse_socket_addr(sock.family, sock.getsockname()),
            )
            async with TaskGroup() as self._task_group:
                self.protocol = self._protocol(*self._ends)
                self._idle.resume()
                self._task_group.spawn(self._idle.run, self._initiate_server_close)
                await self._read_data()
        except OSError:
            pass  # the peer had gone before it was looked at
        finally:
            # Under cancellation the socket is closed before the first checkpoint.
            await self._close()  # noqa: ASYNC102

    def _protocol(self, client: End, server: End) -> Any:
        return _Http1(
            self,
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

    @property
    def stopping(self) -> bool:
        """As for `ordinary.Carrier`."""
        return self.context.terminated.is_set()

    async def _read_data(self) -> None:
        while True:
            waits = self._ordinary is not None and self._ordinary.busy
            if self._ahead and not waits:
                data, self._ahead = self._ahead, b""
                await self._take(data)
            elif not self._ended:
                await self._read()
            elif self._ahead:
                await self._rest()
            else:
                break
        await self._left()
        self._peer_gone = True
        # It would go on until the connection had been idle for too long.
        self._idle.end()

    async def _read(self) -> None:
        try:
            if not self._ahead:
                self._note(await self._wire.receive_next(MAX_RECV))
            elif len(self._ahead) >= _AHEAD:
                await self._rest()
            else:
                with trio.CancelScope() as self._pause:
                    self._note(await self._wire.receive_next(MAX_RECV))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._break()

    def _note(self, data: bytes) -> None:
        if self._ended:
            return  # it was read while the connection was ended
        if data:
            self._ahead = self._ahead + data if self._ahead else data
        else:
            self._end()

    def hear_no_more(self) -> None:
        """Ends what is taken for requests; idempotent."""
        self.over = self._ended = True
        self._ahead = b""

    async def _close(self) -> None:
        self.hear_no_more()
        with trio.CancelScope(shield=True):  # closing waits for nothing
            await super()._close()

    def let_reader_go(self) -> None:
        """Ends its wait for a turn, or for room, in hypercorn's protocol: neither comes any more.

        To be called once that protocol knows of the end, which it may learn in the reader's task.
        """
        self._handling.cancel()

    def _break(self) -> None:
        self._ahead = b""  # there is nobody to answer it to
        self._ended = True
        if self._ordinary is not None:
            self._ordinary.leave()

    def _end(self) -> None:
        self._ended = True
        if self._ordinary is not None and self._ordinary.whole:
            self._ordinary.leave()

    async def _rest(self) -> None:
        with trio.CancelScope() as self._pause:
            await trio.sleep_forever()

    def look(self) -> None:
        """As for `ordinary.Carrier`."""
        self._pause.cancel()

    async def _take(self, data: bytes) -> None:
        if self._ordinary is not None:
            self._ahead = self._ordinary.feed(data)
            if self._ended:
                self._end()  # it may be whole only now
        elif not self._others_turn and (found := take_ordinary(data)) is not None:
            self._idle.pause()
            self._ordinary = Ordinary(self, found[0])
            self._ahead = self._ordinary.feed(found[1])
            if self._ended:
                self._end()
            self._task_group.spawn(self._serve, self._ordinary)
        else:
            self._others_turn = True
            await self._handle(RawData(data))

    async def _handle(self, event: Event) -> None:
        with trio.CancelScope() as self._handling:
            await self.protocol.handle(event)

    async def _left(self) -> None:
        if self._ordinary is None:
            if not self.over:
                await self._handle(RawData(b""))
            await self._handle(Closed())
        elif not self._ordinary.whole:
            await self._ordinary.refuse(400)
            self._ordinary.leave()
            await self._close()

    async def _serve(self, ordinary: Ordinary) -> None:
        scope = http_scope(ordinary.head, *self._ends)
        scope["extensions"] = {BODY_AT_HAND: ordinary.body_at_hand}
        try:
            await self._plain_app(scope, ordinary.receive, ordinary.send)
        except Exception:  # noqa: BLE001 - crash barrier: one request
            await self.config.log.exception("the application failed")
        await ordinary.over()

    async def write(self, parts: list[bytes]) -> None:
        """As for `ordinary.Carrier`."""
        try:
            for at, part in enumerate(parts):
                sent = 0 if self.send_lock.locked() else self._wire.send_now(part)
                if sent < len(part):
                    # All that belongs together: another task's might come in between.
                    await self._write_slowly(memoryview(part)[sent:], *parts[at + 1 :])
                    break
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._break()

    async def _write_slowly(self, *rest: bytes | memoryview) -> None:
        # Ended by TCP_USER_TIMEOUT, or by whoever closes the stream.
        with trio.CancelScope(shield=True):
            async with self.send_lock:
                for part in rest:
                    await self.stream.send_all(part)

    async def finish(self, ordinary: Ordinary) -> None:
        """As for `ordinary.Carrier`."""
        self._ordinary = None
        goes_on = ordinary.whole and ordinary.response.keep and not self.stopping
        if goes_on and (self._ahead or not self._ended):
            self._idle.resume()
        else:
            await self._close()
        self.look()

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            if not self._peer_gone:
                self._mark(event)
                return
            event = Closed()  # nobody is there to send another request
        await super().protocol_send(event)

    def _mark(self, event: Updated) -> None:
        if event.idle:
            protocol: Any = self.protocol
            self._others_turn = bool(protocol.connection.trailing_data[0])
            self._idle.resume()
        else:
            self._idle.pause()
