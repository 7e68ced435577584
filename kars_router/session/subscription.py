"""One stream of `subscriptions/listen`: what it is asked for, agrees to and brings, and its end.

Must not know other streams, or when one is needed.

Source: MCP 2026-07-28 "Subscriptions".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import trio
from attrs import define, field, frozen

from kars_router.errors import CallFailed
from kars_router.model import Failure, Phase, Sent
from kars_router.session.listener import ListenState
from kars_router.telemetry import log
from kars_router.transports.base import Connection, Delivery
from kars_router.wire import headers, jsonrpc, raw
from kars_router.wire.capabilities import has
from kars_router.wire.jsonrpc import Message

LISTEN: Final = "subscriptions/listen"
UPDATED: Final = "notifications/resources/updated"
# The members of the filter, by the capability that declares each.
_LISTS: Final[Mapping[str, str]] = {
    "tools": "toolsListChanged",
    "prompts": "promptsListChanged",
    "resources": "resourcesListChanged",
}
_URIS: Final = "resourceSubscriptions"

_UNAUTHORIZED: Final = (401, 403)
_PASSING: Final = (408, 429)
_CLIENT_ERRORS: Final = range(400, 500)
# After the result of the request has come the stream should end by itself.
_LINGER_SECONDS: Final = 1.0


@frozen
class Filter:
    """What a stream is to bring.

    Attributes:
        lists: which of `tools`, `prompts` and `resources` are told of when they change.
        uris: the resources whose updates are told.
    """

    lists: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether it is to bring anything."""
        return bool(self.lists or self.uris)

    def params(self) -> bytes:
        """The params of the request, as JSON."""
        wanted: dict[str, Any] = {_LISTS[name]: True for name in _LISTS if name in self.lists}
        if self.uris:
            wanted[_URIS] = sorted(self.uris)
        return jsonrpc.encode({"notifications": wanted})

    def admits(self, method: str) -> bool:
        """Whether a notification is one that was asked for."""
        if method == UPDATED:
            return bool(self.uris)
        return any(method == list_changed(name) for name in self.lists)

    def honoured(self, params: bytes) -> Filter:
        """What a server agreed to.

        Args:
            params: those of its acknowledgement, as JSON.
        """
        found = raw.fields((raw.fields(params) or {}).get("notifications")) or {}
        lists = [one for one in self.lists if bytes(found.get(_LISTS[one], b"")) == b"true"]
        uris = [raw.text(one) for one in raw.items(found.get(_URIS)) or ()]
        return Filter(frozenset(lists), self.uris.intersection(uri for uri in uris if uri))


@define(eq=False)
class Stream:
    """One stream.

    Attributes:
        server: the server's configured name.
        ident: the id of the request that opens it, as JSON.
        asked: what it is asked for.
        opened: trio's clock when that was, in seconds.
        honoured: what the server has agreed to.
        acked: set once it has.
        over: set once the stream has ended; its owner does that.
        scope: cancelled to end it.
        failure: why it was refused or broke off, if it did.
    """

    server: str
    ident: bytes
    asked: Filter
    opened: float
    honoured: Filter = field(factory=Filter)
    acked: trio.Event = field(factory=trio.Event)
    over: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    delivery: Delivery = field(factory=Delivery)
    failure: Failure | None = None

    @property
    def live(self) -> bool:
        """Whether it brings something."""
        return self.acked.is_set() and not self.over.is_set()

    @property
    def abandoned(self) -> bool:
        """Whether it was ended here, and not by the server."""
        return self.scope.cancel_called

    async def run(self, connection: Connection, payload: bytes, *, silence: float) -> None:
        """Holds the stream until the server ends it, or nothing has come for too long.

        Args:
            connection: the session's.
            payload: the request.
            silence: seconds without a byte after which it is given up.

        Cancellation closes it.
        """
        with self.scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_silence, silence)
                try:
                    await connection.send(
                        payload,
                        method=LISTEN,
                        delivery=self.delivery,
                        ident=self.ident,
                        control=True,
                        headers={headers.METHOD_HEADER: LISTEN},
                    )
                except CallFailed as error:
                    self.failure = self.failure or error.failure
                nursery.cancel_scope.cancel()

    def take_end(self, message: Message) -> None:
        """Takes the response that ends it; never waits."""
        deadline = trio.current_time() + _LINGER_SECONDS
        self.scope.deadline = min(self.scope.deadline, deadline)
        if message.error is not None:
            code, text = jsonrpc.error_code(message.error)
            self.failure = Failure(
                server=self.server,
                phase=Phase.LISTEN,
                sent=Sent.YES,
                method=LISTEN,
                body=text[:512],
                rpc_code=code,
                rpc_error=message.error,
                code="rpc_error",
                detail=f"{LISTEN} was refused",
            )

    async def _watch_silence(self, seconds: float) -> None:
        while (due := max(self.opened, self.delivery.heard) + seconds) > trio.current_time():
            if math.isinf(due):
                await trio.sleep_forever()
            await trio.sleep_until(due)
        log().info("listen_silent", server=self.server, seconds=seconds)
        self.scope.cancel()


def declared(capabilities: bytes) -> frozenset[str]:
    """The lists that a server says it can report changes of.

    Args:
        capabilities: what it declared, as a JSON object.
    """
    return frozenset(name for name in _LISTS if has(capabilities, name, "listChanged"))


def list_changed(name: str) -> str:
    """The notification that says that a list has changed."""
    return f"notifications/{name}/list_changed"


def uri_of(params: bytes) -> str | None:
    """The resource that a notification is about, if it is about one."""
    return raw.text((raw.fields(params) or {}).get("uri"))


def final_state(failure: Failure) -> ListenState | None:
    """What the refusal of a stream means for good; None if another attempt may fare better."""
    status = failure.status
    if status in _UNAUTHORIZED:
        return ListenState.UNAUTHORIZED
    if status in _PASSING or (status is not None and status >= 500):
        return None
    if status in _CLIENT_ERRORS or failure.rpc_code is not None:
        return ListenState.NONE
    return None
