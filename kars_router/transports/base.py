"""What a session needs from the way to its server, whatever the transport.

A transport carries messages and reports failures as values; it must not know what a session, a
generation or a replay is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, field

from kars_router.model import Sent
from kars_router.wire.jsonrpc import Message

Deliver = Callable[[Message], None]


@define
class Delivery:
    """How much of one message the network had accepted; filled in by the transport.

    Attributes:
        sent: no byte, some, or all of it.
    """

    sent: Sent = field(default=Sent.NO)


@define
class Position:
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
    """

    session_id: str | None
    revision: str | None

    async def send(
        self, payload: bytes, *, method: str, delivery: Delivery, control: bool = False
    ) -> None:
        """Sends one message and hands everything that answers it to `deliver`, as it comes.

        Returns when the exchange is over: for a request, when its response was delivered or the
        server ended the stream without one.

        Args:
            payload: one JSON-RPC message.
            method: its method, or "" for a response; for the log.
            delivery: filled in as the message leaves, so that it can be read at any time.
            control: the message must not wait behind calls (pongs, for example).

        Raises:
            CallFailed: with the Failure that happened.

        Cancellation ends the exchange and closes what cannot be used again.
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
