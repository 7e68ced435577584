"""An httpx transport that runs an ASGI application in the same process, streaming.

`httpx.ASGITransport` runs an application to its end before it hands out the response, so an
event stream never gets through it. Here the head is handed out as soon as it is sent, and the
body chunk by chunk; a client that closes early is seen by the application as
`http.disconnect`. There is no socket and no thread, so a virtual clock works.

Knows nothing of MCP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import httpx
import trio
from attrs import define

from kars_router.testing._asgi import AsgiApp, Message, Scope
from kars_router.testing.faults import Fault, FaultPlan, Stage


class AsgiBridge(httpx.AsyncBaseTransport):
    """Carries requests to an ASGI application in the same Trio run.

    The application behaves as behind a real server: each request runs in its own task; a client
    that leaves does not cancel it, it gets `http.disconnect` and what it sends from then on is
    dropped. An application that returns before it has answered looks like a server that closed
    the connection; one that returns in the middle of a body, like a truncated response. An
    exception in the application ends `nursery`, so that a test fails on it.

    The client's connect and read time-outs hold. `request.extensions["kars_exchange"]`, if
    there, is an object that gets two attributes set: `accepted`, the number of bytes of the
    request that were taken, and `complete`, whether that was all of it.

    Args:
        app: the application. Its lifespan is not run.
        nursery: where its tasks run; cancelling it is the crash of the server.
        faults: what is to go wrong; nothing by default.
        buffered: how many body chunks the application may be ahead of the client before its
            `send` waits; at least 0.
    """

    def __init__(
        self,
        app: AsgiApp,
        nursery: trio.Nursery,
        *,
        faults: FaultPlan | None = None,
        buffered: int = 64,
    ) -> None:
        self._app = app
        self._nursery = nursery
        self._faults = faults
        self._buffered = buffered
        self._connections: set[_Connection] = set()
        self._count = 0

    @property
    def running(self) -> int:
        """How many requests the application is still working on, left by the client or not."""
        return sum(not connection.returned for connection in self._connections)

    @property
    def open_responses(self) -> int:
        """How many responses have a client that has neither read to the end nor closed."""
        return sum(not connection.left for connection in self._connections)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`; return the response as soon as its head is there.

        Raises:
            httpx.TransportError: as a transport over a network would, and as `faults` says.

        Cancellation: the application gets `http.disconnect`; nothing is left behind here.
        """
        fault = self._faults.take(request) if self._faults is not None else None
        body = b"".join([part async for part in request.stream])  # type: ignore[union-attr]
        size = _head_size(request) + len(body)
        _note_exchange(request, 0, complete=False)
        await self._meet(Stage.CONNECT, fault, request)
        if fault is not None and fault.stage is Stage.SEND:
            _note_exchange(request, min(fault.after, size - 1), complete=False)
            await self._meet(Stage.SEND, fault, request)
        _note_exchange(request, size, complete=True)
        if fault is not None and not fault.delivered:
            await self._meet(Stage.RESPONSE, fault, request)
        return await self._exchange(request, body, fault)

    async def _exchange(
        self, request: httpx.Request, body: bytes, fault: Fault | None
    ) -> httpx.Response:
        connection = _Connection(body, self._buffered, self._connections.discard)
        self._connections.add(connection)
        self._nursery.start_soon(self._run, self._scope(request), connection)
        answered = False
        try:
            with _read_deadline(request):
                await connection.head.wait()
                await self._meet(Stage.RESPONSE, fault, request)
            if not connection.status:
                raise httpx.RemoteProtocolError(
                    "server disconnected without sending a response", request=request
                )
            answered = True
        finally:
            if not answered:
                connection.client_left()
        return httpx.Response(
            connection.status,
            headers=connection.headers,
            stream=_Body(connection, request, self._cutter(fault, request)),
            extensions={"http_version": b"HTTP/1.1"},
        )

    async def aclose(self) -> None:
        """Leave every response that is still open."""
        for connection in tuple(self._connections):
            connection.client_left()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def _meet(self, stage: Stage, fault: Fault | None, request: httpx.Request) -> None:
        await trio.lowlevel.checkpoint()
        if fault is None or fault.stage is not stage:
            return
        if stage is Stage.CONNECT:
            with _deadline(request, "connect", httpx.ConnectTimeout):
                await trio.sleep(fault.seconds)
        else:
            await trio.sleep(fault.seconds)
        self._fire(fault, request)

    def _fire(self, fault: Fault, request: httpx.Request) -> None:
        if self._faults is not None:
            self._faults.fired += 1
        if fault.error is not None:
            raise fault.error(f"injected fault at {fault.stage}", request=request)

    async def _run(self, scope: Scope, connection: _Connection) -> None:
        try:
            await self._app(scope, connection.receive, connection.send)
        finally:
            connection.app_returned()

    def _cutter(self, fault: Fault | None, request: httpx.Request) -> _Cutter | None:
        if fault is None or fault.stage is not Stage.BODY:
            return None
        return _Cutter(fault.after, partial(self._fire, fault, request))

    def _scope(self, request: httpx.Request) -> Scope:
        self._count += 1
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (request.url.host, request.url.port or 80),
            "client": ("127.0.0.1", 40000 + self._count % 20000),
            "state": {},
            "extensions": {},
        }


class _Connection:
    """One request and its response, between the application's task and the client's."""

    def __init__(self, body: bytes, buffered: int, on_over: Callable[[_Connection], None]) -> None:
        self.head = trio.Event()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.whole = False
        self.left = False
        self.returned = False
        self._body: bytes | None = body
        self._over = trio.Event()
        self._on_over = on_over
        self._sender, self.chunks = trio.open_memory_channel[bytes](buffered)

    async def receive(self) -> Message:
        if self._body is not None:
            body, self._body = self._body, None
            await trio.lowlevel.checkpoint()
            return {"type": "http.request", "body": body, "more_body": False}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        if self.left:
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = [(bytes(k), bytes(v)) for k, v in message.get("headers", ())]
            self.head.set()
        elif message["type"] == "http.response.body":
            if not self.status:
                raise RuntimeError("the application sent a body before a status")
            try:
                if message.get("body"):
                    await self._sender.send(bytes(message["body"]))
            except trio.BrokenResourceError:
                return  # the client left while this waited; behind a real server also no error
            if not message.get("more_body", False):
                self.whole = True
                self._close()

    def app_returned(self) -> None:
        self.returned = True
        self.head.set()
        self._close()

    def client_left(self) -> None:
        self.left = True
        self.chunks.close()
        self._close()

    def _close(self) -> None:
        self._sender.close()
        self._over.set()
        if self.left and self.returned:
            self._on_over(self)


@define
class _Cutter:
    """Counts down to the byte at which a response breaks off."""

    remaining: int
    fire: Callable[[], None]


class _Body(httpx.AsyncByteStream):
    """The body of a response, read as the application sends it."""

    def __init__(
        self, connection: _Connection, request: httpx.Request, cutter: _Cutter | None
    ) -> None:
        self._connection = connection
        self._request = request
        self._cutter = cutter

    def __aiter__(self) -> _Body:
        return self

    async def __anext__(self) -> bytes:
        if self._cutter is not None and self._cutter.remaining == 0:
            self._connection.client_left()
            self._cutter.fire()
        try:
            with _read_deadline(self._request):
                chunk = await self._connection.chunks.receive()
        except trio.EndOfChannel:
            whole = self._connection.whole
            self._connection.client_left()
            if whole:
                raise StopAsyncIteration from None
            raise httpx.RemoteProtocolError(
                "peer closed connection without sending complete message body",
                request=self._request,
            ) from None
        except trio.ClosedResourceError:
            raise httpx.ReadError("the response was closed", request=self._request) from None
        if self._cutter is not None:
            chunk = chunk[: self._cutter.remaining]
            self._cutter.remaining -= len(chunk)
        return chunk

    async def aclose(self) -> None:
        self._connection.client_left()
        await trio.lowlevel.cancel_shielded_checkpoint()


@contextmanager
def _deadline(
    request: httpx.Request, kind: str, error: type[httpx.TimeoutException]
) -> Iterator[None]:
    """`trio.fail_after` by one of httpx's time-outs, raising httpx's error."""
    limits: dict[str, float | None] = request.extensions.get("timeout") or {}
    seconds = limits.get(kind)
    try:
        with trio.fail_after(math.inf if seconds is None else seconds):
            yield
    except trio.TooSlowError:
        raise error("timed out", request=request) from None


def _read_deadline(request: httpx.Request) -> AbstractContextManager[None]:
    return _deadline(request, "read", httpx.ReadTimeout)


def _head_size(request: httpx.Request) -> int:
    line = len(request.method) + len(request.url.raw_path) + len("  HTTP/1.1\r\n\r\n")
    return line + sum(len(name) + len(value) + 4 for name, value in request.headers.raw)


def _note_exchange(request: httpx.Request, accepted: int, *, complete: bool) -> None:
    exchange: Any = request.extensions.get("kars_exchange")
    if exchange is not None:
        exchange.accepted = accepted
        exchange.complete = complete
