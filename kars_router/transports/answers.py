"""Reading what a server answers over HTTP: JSON bodies, event streams, refusals.

Owns content types, limits and framing, and hands on every message as it comes. Must not know how
a request is made, nor whether the rest of a stream that has ended is asked for.

Source: MCP 2025-11-25 "Transports / Sending Messages to the Server".
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, Protocol

import httpx
import msgspec
import trio
from attrs import frozen
from msgspec import field

from kars_router.errors import CallFailed
from kars_router.model import Phase, Sent
from kars_router.telemetry import log
from kars_router.transports.base import Deliver, Delivery, Position
from kars_router.transports.client import HttpxReply, Reply
from kars_router.wire import eras, jsonrpc, sse
from kars_router.wire.jsonrpc import Kind

_EXCERPT: Final = 512
_MOST_ERROR: Final = 64 * 1024
# Around an error object: the id and the other members, written with any amount of white space.
_ENVELOPE: Final = 4 * 1024
_NO_BODY: Final = (202, 204)
_DRAIN_SECONDS: Final = 1.0
# After its response has come a stream should end by itself; then its connection can be kept.
_LINGER_SECONDS: Final = 1.0


class Fail(Protocol):
    """Makes the error for an answer that is no good."""

    def __call__(
        self,
        phase: Phase,
        name: str,
        detail: str,
        *,
        code: str,
        sent: Sent = ...,
        status: int | None = ...,
        body: str = ...,
    ) -> CallFailed:
        """Takes what a `Failure` is made of."""
        ...


class Reading(msgspec.Struct, eq=False):
    """How far the answer to one message has been read, over all the streams that it comes in.

    Attributes:
        name: the method of the message, for failures; "GET" for the stream of no message.
        ident: the id of the request, as JSON; empty if there is none to be answered.
        delivery: told when something was heard.
        position: how far its event stream has got.
        phase: what a failure of its event stream is to be called.
        answered: the response has been delivered.
        unreadable: the stream cannot be read on, now or later.
        events: how many events came.
        ended: trio's clock when its stream ended last, in seconds.
    """

    name: str
    ident: bytes = b""
    delivery: Delivery = field(default_factory=Delivery)
    position: Position = field(default_factory=Position)
    phase: Phase = Phase.STREAM
    answered: bool = False
    unreadable: bool = False
    events: int = 0
    ended: float = 0.0


@frozen
class Refusal:
    """What a response says that is none of success.

    Attributes:
        text: at most the first 512 characters of its body; not redacted.
        rpc_code: the code of the JSON-RPC error in it, if there is one.
        rpc_error: that error as JSON; empty if there is none, or if it takes more than 64 KiB.
    """

    text: str = ""
    rpc_code: int | None = None
    rpc_error: bytes = b""


class Answers:
    """Reads the answers to one session's messages.

    Args:
        server: its configured name, for the log.
        deliver: takes every message that arrives, at once and without waiting.
        fail: makes the errors.
        event_limit: most bytes of one event.
        body_limit: most bytes of one JSON response.
    """

    def __init__(
        self, server: str, deliver: Deliver, fail: Fail, *, event_limit: int, body_limit: int
    ) -> None:
        self._server = server
        self._deliver = deliver
        self._fail = fail
        self._event_limit = event_limit
        self._body_limit = body_limit

    async def read(self, reply: Reply, reading: Reading) -> None:
        """Reads a successful answer to a POST, of whichever type, to its end.

        Raises:
            CallFailed: it is of no known type, too large, no JSON-RPC, or it broke off.
        """
        status = reply.status
        if status in _NO_BODY:
            return
        self.check_encoding(reply, Phase.STREAM, reading.name)
        kind = media_type(reply)
        if kind == eras.STREAM_TYPE:
            await self.read_events(reply, reading)
            return
        body = reply.whole()
        if body is None:
            body = await self._read_body(reply, reading)
        elif len(body) > self._body_limit:
            raise self._too_large(reply, reading)
        if not body.strip():
            return
        if kind != eras.JSON_TYPE:
            raise self._fail(
                Phase.STREAM,
                reading.name,
                f"an answer of type {kind or '(none)'}",
                code="protocol",
                status=status,
                sent=Sent.YES,
                body=_excerpt(body),
            )
        try:
            self._take(body, reading)
        except jsonrpc.MalformedError as error:
            raise self._fail(
                Phase.STREAM,
                reading.name,
                f"the server sent {error}",
                code="protocol",
                status=status,
                sent=Sent.YES,
            ) from error

    async def read_events(
        self, reply: Reply, reading: Reading, *, until_answered: bool = False
    ) -> None:
        """Reads an event stream to its end, on from where `reading` stands.

        What has not ended a second after its response is left.

        Args:
            reply: has the stream; whoever got it closes it.
            reading: is kept up to date.
            until_answered: whether the response is the end of it, too; the connection is lost then.

        Raises:
            CallFailed: it broke off, or an event is too large.
        """
        position, delivery = reading.position, reading.delivery
        decoder = sse.Decoder(self._event_limit)
        decoder.last_event_id, decoder.retry = position.last_event_id, position.retry
        malformed = 0
        try:
            with trio.CancelScope() as patience:
                async for chunk in reply:
                    position.heard = delivery.heard = trio.current_time()
                    events = decoder.feed(chunk)
                    position.retry = decoder.retry
                    for event in events:
                        # Not the decoder's: that may be of an event which never gets whole.
                        position.last_event_id = event.id
                        reading.events += 1
                        if event.event == "message" and event.data:
                            quiet = malformed > 0
                            malformed += not self._take_event(event.data, reading, quiet=quiet)
                    if reading.answered and until_answered:
                        break
                    if reading.answered and reading.ident and patience.deadline == math.inf:
                        patience.deadline = trio.current_time() + _LINGER_SECONDS
        except (httpx.TransportError, sse.EventTooLargeError) as error:
            reading.unreadable = isinstance(error, sse.EventTooLargeError)
            raise self._fail(
                reading.phase,
                reading.name,
                describe(error),
                code="broken_stream",
                status=reply.status,
                sent=Sent.YES,
            ) from error
        finally:
            reading.ended = trio.current_time()
            if malformed > 1:
                log().warning("malformed_messages", server=self._server, count=malformed)

    def check_encoding(self, reply: Reply, phase: Phase, name: str) -> None:
        """Refuses a compressed answer.

        We ask for identity. What is compressed all the same is not unpacked: a few kilobytes can
        become gigabytes, and httpx unpacks before any limit is asked.

        Raises:
            CallFailed: it is compressed.
        """
        if encoding := _encoding(reply):
            raise self._fail(
                phase,
                name,
                f"an answer in the content encoding {encoding[:40]}",
                code="protocol",
                status=reply.status,
                sent=Sent.YES,
            )

    async def _read_body(self, reply: Reply, reading: Reading) -> bytes:
        parts: list[bytes] = []
        size = 0
        try:
            async for chunk in reply:
                reading.delivery.heard = trio.current_time()
                size += len(chunk)
                if size > self._body_limit:
                    raise self._too_large(reply, reading)
                parts.append(chunk)
        except httpx.TransportError as error:
            raise self._fail(
                Phase.STREAM,
                reading.name,
                describe(error),
                code="broken_stream",
                status=reply.status,
                sent=Sent.YES,
            ) from error
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _too_large(self, reply: Reply, reading: Reading) -> CallFailed:
        return self._fail(
            Phase.STREAM,
            reading.name,
            f"an answer exceeds {self._body_limit} bytes",
            code="too_large",
            status=reply.status,
            sent=Sent.YES,
        )

    def _take_event(self, data: bytes, reading: Reading, *, quiet: bool) -> bool:
        # One bad event says nothing about the ones after it, so the stream goes on; a call whose
        # answer it was ends as a stream without an answer. Only the first of a stream is logged,
        # as a server may send nothing else.
        try:
            self._take(data, reading)
        except jsonrpc.MalformedError as error:
            if not quiet:
                log().warning("malformed_message", server=self._server, error=str(error))
            return False
        return True

    def _take(self, data: bytes, reading: Reading) -> None:
        if jsonrpc.is_batch(data):
            messages = [jsonrpc.parse(part) for part in jsonrpc.split_batch(data)]
        else:
            messages = [jsonrpc.parse(data)]
        for message in messages:
            if message.kind is Kind.RESPONSE and message.id == reading.ident:
                reading.answered = True
            self._deliver(message, reading.ident)


async def read_refusal(reply: Reply) -> Refusal:
    """Reads as much of a refusal as says why, for at most a second, and closes it."""
    wanted = _EXCERPT
    if media_type(reply) == eras.JSON_TYPE:
        wanted = _MOST_ERROR + _ENVELOPE
    body = bytearray()
    try:
        with trio.move_on_after(_DRAIN_SECONDS):
            async for chunk in reply:
                body += chunk
                if len(body) >= wanted:
                    break
    except httpx.TransportError:
        pass  # the status alone is enough to judge by
    finally:
        await release(reply)  # noqa: ASYNC102 - shielded and bounded there
    if _encoding(reply):
        return Refusal()  # nothing that a person or a rule could read
    error = _error_in(bytes(body))
    code = jsonrpc.error_code(error)[0] if error else None
    return Refusal(_excerpt(body), code, error if len(error) <= _MOST_ERROR else b"")


def _error_in(body: bytes) -> bytes:
    """The error object of a JSON-RPC error response; empty if the body is none."""
    if not body.lstrip().startswith(b"{"):
        return b""
    try:
        return jsonrpc.parse(body).error or b""
    except jsonrpc.MalformedError:
        return b""


def _excerpt(body: bytes | bytearray) -> str:
    return body[:_EXCERPT].decode("utf-8", "replace")


def media_type(reply: Reply) -> str:
    """The media type without its parameters, or ""."""
    return reply.header("content-type").partition(";")[0].strip().lower()


def _encoding(reply: Reply) -> str:
    """The content encoding, or "" if there is none (RFC 9110, section 8.4)."""
    value = reply.header("content-encoding")
    if not value:
        return ""
    plain = all(part.strip().lower() in ("", "identity") for part in value.split(","))
    return "" if plain else value


def describe(error: Exception) -> str:
    """One clause for the log."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


@asynccontextmanager
async def open_chunks(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body of a response of httpx, chunk by chunk; releases it however it is left."""
    reply = HttpxReply(response)
    try:
        yield aiter(reply)
    finally:
        # Also one that is closed by now: somebody may have walked away from it before.
        with trio.move_on_after(_DRAIN_SECONDS, shield=True):
            await reply.aclose()


async def release(response: httpx.Response | Reply) -> None:
    """Closes a response, for at most a second. Shielded from cancellation.

    Closing one whose body was not read to its end drops the connection, which may say goodbye to
    a TLS peer; that must not hold anything up.
    """
    if response.is_closed:  # as after the end of a body; a cancel scope for nothing has its price
        return
    with trio.move_on_after(_DRAIN_SECONDS, shield=True):
        await response.aclose()
