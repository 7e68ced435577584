"""Event streams towards the agent: the GET stream, and a POST's answer that takes long.

Owns keep-alive comments and the end of a stream. Must not know where messages come from.

Source: MCP 2025-11-25 "Listening for Messages from the Server"; WHATWG HTML, section 9.2.7 (a
comment every 15 seconds keeps proxies from closing a stream).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import trio

from kars_router.front.agents import AgentSession, AgentStream
from kars_router.front.exchange import JSON, STREAM_HEADERS, Exchange, Header
from kars_router.telemetry import Metrics
from kars_router.wire import sse

KEEPALIVE_SECONDS: Final = 15.0
# A client that reconnects may leave old connections behind; more than this and the oldest ends.
_MAX_STREAMS: Final = 4


async def serve_get(exchange: Exchange, session: AgentSession, metrics: Metrics) -> None:
    """Holds an agent's GET stream until the agent leaves, its session ends, or the router stops.

    Messages that waited for a stream are sent first. Cancellation cuts the stream off.
    """
    stream = AgentStream()
    session.streams.append(stream)
    for old in list(session.streams)[:-_MAX_STREAMS]:
        old.close()
    backlog, session.backlog[:] = list(session.backlog), []
    for message in backlog:
        stream.put(message, metrics)
    try:
        await exchange.start(200, STREAM_HEADERS)
        # Bytes at once: some clients and proxies report the stream as open only then.
        await exchange.write(sse.KEEPALIVE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch, exchange, nursery.cancel_scope)
            while True:
                with trio.move_on_after(KEEPALIVE_SECONDS) as quiet:
                    message_ = await stream.get()
                if quiet.cancelled_caught:
                    await exchange.write(sse.KEEPALIVE)
                elif message_ is None:
                    break
                else:
                    await exchange.write(sse.encode(message_))
            nursery.cancel_scope.cancel()
        await exchange.finish()
    finally:
        session.streams.remove(stream)
        session.touched = trio.current_time()


async def answer(
    exchange: Exchange, work: Callable[[], Awaitable[bytes]], headers: tuple[Header, ...] = ()
) -> bool:
    """Answers a POST with what `work` returns.

    Plain JSON if that takes less than fifteen seconds; else an event stream with comments until
    the answer is there. The agent's leaving does not stop the work.

    Args:
        exchange: the request, its body read.
        work: makes the JSON-RPC response.
        headers: further response headers.

    Returns:
        whether the agent was still there when the answer was sent.
    """
    result: list[bytes] = []
    done = trio.Event()

    async def run() -> None:
        result.append(await work())
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.note_disconnect)
        nursery.start_soon(run)
        while not done.is_set():
            with trio.move_on_after(KEEPALIVE_SECONDS):
                await done.wait()
                break
            if not exchange.started:
                await exchange.start(200, (*STREAM_HEADERS, *headers))
            await exchange.write(sse.KEEPALIVE)
        # Asked before the end is sent: servers also report a finished exchange as a disconnect.
        there = not exchange.gone
        if exchange.started:
            await exchange.write(sse.encode(result[0]))
            await exchange.finish()
        else:
            await exchange.respond(200, result[0], (JSON, *headers))
        nursery.cancel_scope.cancel()
    return there


async def _watch(exchange: Exchange, scope: trio.CancelScope) -> None:
    await exchange.wait_disconnect()
    scope.cancel()
