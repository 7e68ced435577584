"""A message on its way, and the one outcome that it ends with.

Must not know how it is sent or what is done about a failure.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable

import msgspec
import trio
from msgspec import field

from kars_router.model import Discreet, Failure
from kars_router.transports.base import Delivery
from kars_router.wire.jsonrpc import Message


class Pending(Discreet, msgspec.Struct, eq=False):
    """A request to an upstream that has not ended yet.

    It ends exactly once: with the server's reply or with a failure, whichever comes first.

    Attributes:
        ident: its id on this connection, as JSON.
        method: its method.
        delivery: how much of it the network has accepted.
        reply: the server's response, once there is one.
        failure: what went wrong instead.
        lost: whether the session was lost with this failure.
        cancelled: whether whoever made it has cancelled it.
        reason: why, as a JSON string, or empty.
        token: the progress token of whoever made it, as JSON, or empty.
        scope: where it is being sent; its deadline is the time limit. Others are sent there after
            it has ended.
    """

    ident: bytes
    method: str
    payload: bytes
    delivery: Delivery = field(default_factory=Delivery)
    reply: Message | None = None
    failure: Failure | None = None
    lost: bool = False
    cancelled: bool = False
    reason: bytes = b""
    token: bytes = b""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    _paused: int = 0
    _left: float = math.inf
    _done: trio.Event = field(default_factory=trio.Event)

    unsaid = ("payload",)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.reply is not None or self.failure is not None

    def resolve(self, reply: Message) -> bool:
        """Ends it with a reply; False if it had ended already."""
        if self.done:
            return False
        self.reply = reply
        self._done.set()
        return True

    def fail(self, failure: Failure, *, lost: bool = False) -> bool:
        """Ends it with a failure; False if it had ended already."""
        if self.done:
            return False
        self.failure, self.lost = failure, lost
        self._done.set()
        return True

    def cancel(self, reason: bytes = b"") -> None:
        """Has it given up, and its server told if the message had left; never waits.

        It then ends with a failure of code `cancelled`.
        """
        if self.done or self.cancelled:
            return
        self.cancelled, self.reason = True, reason
        self.scope.cancel()

    def pause(self) -> None:
        """Stops the clock of its time limit, because the server waits for somebody."""
        if not self._paused and not self.done:
            self._left = self.scope.deadline - trio.current_time()
            self.scope.deadline = math.inf
        self._paused += 1

    def resume(self) -> None:
        """Lets the clock go on; each `pause` needs one."""
        self._paused -= 1
        if not self._paused and not self.done:
            self.scope.deadline = trio.current_time() + self._left

    def wait(self) -> Awaitable[None]:
        """Waits for the end. Cancellation leaves the request on its way."""
        return self._done.wait()
