"""What a session needs from the way to its server, whatever the transport.

A transport carries messages and reports failures as values; it must not know what a session, a
generation or a replay is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

import msgspec
import trio

from kars_router.model import Sent
from kars_router.wire.jsonrpc import Message

# Takes a message, and the id of the request on whose stream it came (empty if it came on none).
Deliver = Callable[[Message, bytes], None]
# Takes None once the server has accepted a message; else what has to be awaited, within a time
# limit, to know; that raises, and may be cancelled, as `Connection.send`. Returns whether it will
# be awaited. Must not wait itself.
Told = Callable[[Callable[[], Awaitable[None]] | None], bool]


class Delivery(msgspec.Struct):
    """How one message fares; filled in by the transport.

    Attributes:
        sent: how much of it the network had accepted: no byte, some, or all of it.
        on_open: called once, when the server has begun to answer the message and has not refused
            it; must not wait or raise. A transport that cannot tell does not call it.
        heard: trio's clock at the last byte that came in answer to it, in seconds; 0 before.
    """

    sent: Sent = Sent.NO
    on_open: Callable[[], None] | None = None
    heard: float = 0.0


class Position(msgspec.Struct):
    """How far the stream of unsolicited messages has got, over all its reconnections.

    Attributes:
        last_event_id: the last event id seen, for resumption.
        retry: the reconnection time that the server asked for, in seconds.
        heard: trio's clock at the last byte, in seconds.
    """

    last_event_id: str | None = None
    retry: float | None = None
    heard: float = 0.0


class Connection(Protocol):
    """One session's way to its server.

    Attributes:
        session_id: the id that the server gave to the session, or None.
        revision: the negotiated revision; set by the session after the handshake.
        correlates: whether a message of the server comes on the stream of the request that caused
            it. Where it does not, everything comes over one channel, and the end of the channel
            is the end of the session: `send` and `listen` then fail with code `channel_closed`.
    """

    session_id: str | None
    revision: str | None
    correlates: bool

    async def open(self, nursery: trio.Nursery) -> None:
        """Opens what has to be there before the first message; called once.

        Args:
            nursery: the session's own, for the tasks that read; cancelled after `close`.

        Raises:
            CallFailed: the server cannot be reached.
        """
        ...

    async def send(
        self,
        payload: bytes,
        *,
        method: str,
        delivery: Delivery,
        ident: bytes = b"",
        control: bool = False,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Sends one message and hands everything that answers it to `deliver`, as it comes.

        Returns when the exchange is over: for a request, when its response was delivered or the
        server ended the stream without one, and could not be asked to go on with it.

        Args:
            payload: one JSON-RPC message.
            method: its method, or "" for a response; for the log.
            delivery: filled in as the message leaves, so that it can be read at any time.
            ident: the id of a request, as JSON; empty for other messages. Messages that come on
                this request's stream are delivered together with it.
            control: the message must not wait behind calls (pongs, for example).
            headers: further HTTP headers; ignored by transports that have none.

        Raises:
            CallFailed: with the Failure that happened.

        Cancellation ends the exchange and closes what cannot be used again.
        """
        ...

    def send_now(self, payload: bytes, told: Told) -> bool:
        """Sends a message that needs no answer, if that takes no waiting.

        Nobody waits for what the server says to it. It is looked at when the way to the server is
        used again.

        Args:
            payload: one JSON-RPC message that is no request.
            told: called once, at any time from now on, unless the session ends before.

        Returns:
            False if nothing was sent, so that it is one for `send`.
        """
        ...

    async def listen(self, position: Position, on_open: Callable[[], None]) -> None:
        """Holds the server's stream of unsolicited messages until the server ends it.

        Args:
            position: where an earlier stream had got to; kept up to date, so that it is right
                however this one ends.
            on_open: called once the stream is open.

        Raises:
            CallFailed: the stream could not be opened, or broke off.
        """
        ...

    async def close(self) -> None:
        """Tells the server that the session is over (DELETE), if it has one.

        Raises:
            CallFailed: the server could not be told.
        """
        ...
