"""What a session is to those who use it, whichever era its server is of.

`upstream` and `stateless` implement it, one strategy for each era. Nothing above them asks which
one it has, but for `stateful`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kars_router.model import Failure, LossVerdict
from kars_router.session.caller import Caller
from kars_router.session.listener import ListenState
from kars_router.session.pending import Pending
from kars_router.transports.signals import Signal


class Session(Protocol):
    """A live session with one server.

    Attributes:
        stateful: whether the server may keep something between two requests that is lost with the
            session. Where it may not, one session serves all agents.
        capabilities: what the server declared, as a JSON object.
        instructions: its instructions for the model; "" if it gave none.
        ended: set once the session is lost or closed.
        lost: why it was lost, or None.
        loss_failure: the failure that it was judged by, or None.
        calls: how many calls were made.
        poll_seconds: after how long its lists are to be read again, because it will not say when
            they change; infinity if it will.
    """

    stateful: bool
    capabilities: bytes
    instructions: str
    ended: Signal
    lost: LossVerdict | None
    loss_failure: Failure | None
    calls: int
    poll_seconds: float

    @property
    def pings(self) -> int:
        """How many pings of the server came."""
        ...

    @property
    def silent_at(self) -> float:
        """Trio's clock when its standing stream is to be looked at; infinity if that is not due."""
        ...

    def check_silence(self) -> None:
        """Finds out what is wrong if the stream has been silent for too long; never waits."""
        ...

    @property
    def heard(self) -> bool:
        """Whether its standing stream has been open."""
        ...

    @property
    def settled(self) -> Signal:
        """Set once its standing stream is open, or known not to be offered."""
        ...

    @property
    def alive(self) -> bool:
        """Whether new requests may be made."""
        ...

    @property
    def in_flight(self) -> int:
        """How many requests are on their way."""
        ...

    @property
    def listen_state(self) -> ListenState:
        """The state of its standing stream."""
        ...

    @property
    def session_id(self) -> str | None:
        """The server's id for the session, if it gave one."""
        ...

    def submit(
        self, method: str, params: bytes, *, time_limit: float, caller: Caller | None = None
    ) -> Pending:
        """Starts one request in the session's own nursery.

        What the server says and asks while it works on the request goes to `caller`. Time that
        the server waits for an answer of the agent does not count against the limit.

        Args:
            method: its method.
            params: its params as a JSON object, or empty; a progress token in it is the agent's.
            time_limit: seconds until it is given up.
            caller: the agent's side; None if nobody can be told or asked anything.

        Returns:
            the request on its way; the caller waits for it, cancels it, or leaves it to its end.
        """
        ...

    async def request(self, method: str, params: bytes = b"", *, time_limit: float) -> bytes:
        """Makes one request of the router's own and waits for its result, as JSON.

        Raises:
            CallFailed: it failed, or the server answered with an error.
        """
        ...

    def lose(self, verdict: LossVerdict, failure: Failure | None = None) -> None:
        """Marks the session as lost; the first reason counts."""
        ...

    def finish(self) -> None:
        """Ends the session although nothing is wrong with it; the server is told."""
        ...

    async def hold(self, on_end: Callable[[], None], grace: float) -> None:
        """Holds the standing stream for as long as the session is good for anything.

        That is until it is lost or finished, and then until what is on its way has ended by
        itself or the grace is over: answers may come on that stream, too. Whoever opened the
        session calls this once.

        Args:
            on_end: called once the session is lost or finished, while the stream is still held;
                must not wait.
            grace: most seconds that are left to requests which are on their way then.

        Cancellation closes the stream.
        """
        ...

    async def drain(self, seconds: float) -> None:
        """Lets requests that are on their way end by themselves, for at most so many seconds."""
        ...

    async def subscribe(self, uri: str, *, time_limit: float) -> bytes | None:
        """Has updates of a resource reported, and waits until the server agrees.

        Args:
            uri: the resource, as the server calls it.
            time_limit: seconds.

        Returns:
            None, or what is wrong, as a JSON-RPC error object.
        """
        ...

    def unsubscribe(self, uri: str) -> None:
        """Ends the reports about a resource; never waits."""
        ...

    def restore(self, uris: frozenset[str], level: str) -> None:
        """Has a new session go on where an earlier one ended; never waits.

        Args:
            uris: the resources whose updates are to be reported.
            level: the least important log messages that are wanted; "" if nobody said.
        """
        ...

    def set_log_level(self, level: str) -> None:
        """Says which log messages are wanted, before the next call is made; never waits."""
        ...

    def roots_changed(self) -> None:
        """Tells the server that the agent's roots have changed; never waits."""
        ...
