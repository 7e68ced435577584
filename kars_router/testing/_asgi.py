"""The little of ASGI that the kit needs: names for its types, and a few helpers.

Knows nothing of MCP.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias

import trio

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


async def read_body(receive: Receive) -> bytes | None:
    """Return the whole request body, or None if the client left before it was sent."""
    parts = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


async def wait_disconnect(receive: Receive) -> None:
    """Return once the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Send the status and the headers; the body is still to come."""
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_body(send: Send, body: bytes = b"", *, more: bool = False) -> None:
    """Send a part of the body, the last one unless `more`."""
    await send({"type": "http.response.body", "body": body, "more_body": more})


async def respond(send: Send, status: int, headers: Mapping[str, str], body: bytes = b"") -> None:
    """Send a whole response, with its length."""
    await send_head(send, status, {**headers, "content-length": str(len(body))})
    await send_body(send, body)


async def send_until_disconnect(receive: Receive, send: Send, chunks: AsyncIterable[bytes]) -> None:
    """Send `chunks` as parts of a body that stays open; stop when they end or the client leaves."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await wait_disconnect(receive)
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        async for chunk in chunks:
            await send_body(send, chunk, more=True)
        nursery.cancel_scope.cancel()


async def discard(_: Message) -> None:
    """A `send` that drops what it is given."""
    await trio.lowlevel.checkpoint()


async def never() -> Message:
    """A `receive` from which nothing comes."""
    await trio.sleep_forever()
    raise AssertionError("unreachable")


async def run_lifespan(receive: Receive, send: Send) -> None:
    """Answer a server's lifespan events for an app that has nothing to start or stop."""
    while True:
        stage = (await receive())["type"]
        await send({"type": f"{stage}.complete"})
        if stage == "lifespan.shutdown":
            return
