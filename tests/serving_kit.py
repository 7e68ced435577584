"""HTTP clients of an application in this process: over memory, or behind one of the real listeners.

Which of them is said by the fixture `each_listener` or pytest's option `--listener`, as for routers
that tests start as processes; memory if nothing says it. The listeners are on Unix sockets: what
one end sends there is at once readable at the other, whereas loopback may take a moment. So nothing
is ever on its way when all tasks wait, and a virtual clock works as it does with memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from kars_router.config.addresses import Address
from kars_router.config.schema import Listener
from kars_router.front import listen
from kars_router.front.exchange import Receive, Scope, Send
from kars_router.testing import AsgiBridge


def chosen_listener() -> Listener | None:
    """The listener that this test is to run with; None for memory."""
    name = os.environ.get("KARS_TEST_LISTENER")
    return Listener(name) if name else None


@asynccontextmanager
async def open_client(
    app: listen.AsgiApp, nursery: trio.Nursery
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application, for a `with` block.

    Args:
        app: the application. An exception in it fails the test.
        nursery: where it runs; whoever leaves the block cancels it.
    """
    listener = chosen_listener()
    if listener is None:
        transport: httpx.AsyncBaseTransport = AsgiBridge(app, nursery)
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:
            yield client
    else:
        async with (
            open_socket(app, nursery, listener) as path,
            httpx.AsyncClient(transport=_OverSocket(path), timeout=None) as client,
        ):
            yield client


@asynccontextmanager
async def open_socket(
    app: listen.AsgiApp, nursery: trio.Nursery, listener: Listener
) -> AsyncIterator[str]:
    """Serves an application with a real listener; the path of its Unix socket, for a `with` block.

    Args:
        app: the application. An exception in it fails the test.
        nursery: where it runs; whoever leaves the block cancels it.
        listener: what speaks HTTP.
    """
    failures: list[Exception] = []

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await app(scope, receive, send)
        except Exception as error:
            failures.append(error)  # a listener makes a 500 of it
            raise

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "agents.sock")
        bound = listen.bind(Address(path=path))

        async def serve(*, task_status: trio.TaskStatus[str]) -> None:  # noqa: ASYNC128
            await listen.serve(
                watched,
                bound,
                trio.sleep_forever,
                grace=1,
                listener=listener,
                task_status=task_status,
            )

        await nursery.start(serve)
        yield path
    if failures:
        raise ExceptionGroup("the application failed", failures)


class _OverSocket(httpx.AsyncHTTPTransport):
    """httpx's own transport, each request on a connection of its own.

    A kept one might be closed for being idle in the very moment that it is used again.
    """

    def __init__(self, path: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        super().__init__(uds=path, limits=limits)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        # Whitespace around a value is not part of it (RFC 9110, section 5.5), and h11 sends none.
        raw = [(name, value.strip(b" \t")) for name, value in request.headers.raw]
        request.headers = httpx.Headers(raw)
        if isinstance(request.stream, httpx.ByteStream):
            request.stream = _Once(request.content)
        return await super().handle_async_request(request)


class _Once(httpx.AsyncByteStream):
    """A body of one piece; httpx's own complains if it is answered before it was sent."""

    def __init__(self, body: bytes) -> None:
        self._parts = iter([body])

    def __aiter__(self) -> _Once:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration
