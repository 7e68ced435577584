"""subscriptions/listen: what a stateless agent hears that belongs to none of its requests.

Owns the streams, their filters, and which resources are watched for whom. Must not know where
notifications come from.

Source: MCP 2026-07-28 "Subscriptions"; WHATWG HTML, section 9.2.7 (comments as keep-alives).
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio
from attrs import define, field, frozen

from kars_router.errors import AgentError
from kars_router.front.callers import Censor, Requester, censored
from kars_router.front.exchange import STREAM_HEADERS, Exchange
from kars_router.front.identity import Identity
from kars_router.front.operations import Operations
from kars_router.front.streams import KEEPALIVE_SECONDS
from kars_router.front.view import View, view_of
from kars_router.telemetry import Metrics, log
from kars_router.wire import capabilities, envelope, jsonrpc, raw, sse

_ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
_UPDATED: Final = "notifications/resources/updated"
# What switches a notification on, and the capability without which it never comes.
_LISTS: Final[Mapping[str, tuple[str, str]]] = {
    "toolsListChanged": ("notifications/tools/list_changed", "tools"),
    "promptsListChanged": ("notifications/prompts/list_changed", "prompts"),
    "resourcesListChanged": ("notifications/resources/list_changed", "resources"),
}
_RESOURCES: Final = "resourceSubscriptions"
_QUEUE_LIMIT: Final = 256
_QUEUE_BYTES: Final = 4 << 20
_MOST_STREAMS: Final = 16
_MOST_RESOURCES: Final = 256
_PATIENCE_SECONDS: Final = 10.0


@frozen
class Filter:
    """What an agent wants to hear.

    Attributes:
        lists: names of the list filters that it switched on.
        uris: the resources that it wants to hear of, as it calls them.
    """

    lists: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


def read_filter(params: bytes) -> Filter:
    """Reads the filter of a listen request; unknown kinds of notifications are left out.

    Raises:
        AgentError: it is no filter, or names more than 256 resources.
    """
    wanted = raw.fields((raw.fields(params) or {}).get("notifications"))
    if wanted is None:
        raise _wrong("subscriptions/listen needs notifications, an object")
    uris = raw.items(wanted.get(_RESOURCES, b"[]"))
    texts = None if uris is None else [raw.text(uri) for uri in uris]
    if texts is None or None in texts:
        raise _wrong(f"{_RESOURCES} must be a list of URIs")
    if len(texts) > _MOST_RESOURCES:
        raise _wrong(f"{_RESOURCES} may name at most {_MOST_RESOURCES} resources")
    return Filter(
        tuple(name for name in _LISTS if bytes(wanted.get(name, b"")) == b"true"),
        tuple(dict.fromkeys(text for text in texts if text is not None)),
    )


def _everything(_server: str) -> None:
    """Nothing is taken out."""


@define(eq=False)
class Subscription:
    """One open stream; when its reader is slow, the oldest notifications are dropped.

    256 of them wait at most, and no more than 4 MiB unless a single one is larger.

    Attributes:
        ident: the id of the request that opened it, as JSON.
        endpoint: the one server that it is for, or "" for all.
        lists: the notifications of changed lists that are let through, by method.
        overheard: what a server of this name says passes this.
        uris: the resources whose updates are let through.
    """

    ident: bytes
    endpoint: str
    view: View
    metrics: Metrics
    lists: frozenset[str]
    overheard: Callable[[str], Censor | None] = _everything
    uris: set[str] = field(factory=set)
    closed: bool = False
    _queue: deque[tuple[tuple[str, str], bytes]] = field(factory=deque)
    _held: int = 0
    _wake: trio.Event = field(factory=trio.Event)

    def notify(self, server: str, method: str, params: bytes) -> None:
        """Takes a notification if the filter lets it through; never waits.

        One that waits to be sent already is not sent twice.
        """
        if self.endpoint not in ("", server) or self.closed:
            return
        shown = censored(self.overheard(server), params)
        if shown is None:
            return
        params = shown
        if method in self.lists:
            self._put((method, ""), method, self.view.told(server, method, params))
        elif method == _UPDATED and self.uris:
            told = self.view.told(server, method, params)
            uri = raw.text((raw.fields(told) or {}).get("uri")) or ""
            if self._watches(uri):
                self._put((method, uri), method, told)

    def close(self) -> None:
        """Ends the stream once what is queued was taken."""
        self.closed = True
        self._wake.set()

    async def get(self) -> bytes | None:
        """The next message; None at the end."""
        while not self._queue:
            if self.closed:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        return self._next()

    def message(self, method: str, params: bytes) -> bytes:
        """A notification of this stream, as a message."""
        return jsonrpc.notification(method, envelope.tag(params, self.ident))

    def _watches(self, uri: str) -> bool:
        # A server may name a part of the resource that was asked for ("Resources / Updated").
        return uri in self.uris or any(
            uri.startswith(f"{watched.rstrip('/')}/") for watched in self.uris
        )

    def _put(self, key: tuple[str, str], method: str, params: bytes) -> None:
        if any(key == queued for queued, _ in self._queue):
            return
        try:
            message = self.message(method, params)
        except jsonrpc.MalformedError:
            return  # params that are no object: no notification that MCP knows
        while self._queue and (
            len(self._queue) >= _QUEUE_LIMIT or self._held + len(message) > _QUEUE_BYTES
        ):
            self._next()
            self.metrics.notifications_dropped.inc()
        self._queue.append((key, message))
        self._held += len(message)
        self._wake.set()

    def _next(self) -> bytes:
        message = self._queue.popleft()[1]
        self._held -= len(message)
        return message


class Subscriptions:
    """The open streams of all stateless agents.

    Args:
        operations: has resources watched.
        metrics: where dropped notifications are counted.
        server_info: who we are, as a JSON object.
    """

    def __init__(self, operations: Operations, metrics: Metrics, server_info: bytes) -> None:
        self._operations = operations
        self._metrics = metrics
        self._server_info = server_info
        self._watched: Counter[tuple[str, str, str]] = Counter()
        self._closed = False

    def close(self) -> None:
        """Ends each stream that opens from now on as soon as it is acknowledged."""
        self._closed = True

    async def serve(
        self,
        exchange: Exchange,
        ident: bytes,
        *,
        identity: Identity,
        who: Requester,
        wanted: Filter,
    ) -> None:
        """Holds a stream until the agent leaves or is forgotten, or the router stops.

        The first message says what of the filter is honoured: only what can be delivered. A
        stream that the router ends has the request's result as its last message.

        Args:
            exchange: the request, its body read.
            ident: its id, as JSON.
            identity: the agent.
            who: the same agent as one who makes requests.
            wanted: what it wants to hear.
        """
        offered = await self._operations.capabilities(who.endpoint)
        lists = {
            name: _LISTS[name][0]
            for name in wanted.lists
            if capabilities.has(offered, _LISTS[name][1], "listChanged")
        }
        uris = wanted.uris if capabilities.has(offered, "resources", "subscribe") else ()
        methods = frozenset(lists.values())
        stream = Subscription(
            ident,
            who.endpoint,
            view_of(who.endpoint),
            self._metrics,
            methods,
            lambda server: self._operations.overheard(server, who.agent),
        )
        if self._closed or identity.ended:
            # It came while the others were ended, too late to be among them.
            stream.close()
            uris = ()
        identity.ears.append(stream)
        for old in identity.ears[:-_MOST_STREAMS]:
            old.close()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_watch, exchange, nursery.cancel_scope)
                await exchange.start(200, STREAM_HEADERS)
                # Bytes at once: some clients and proxies report the stream as open only then.
                await exchange.write(sse.KEEPALIVE)
                await self._watch_all(who, uris, stream)
                honoured: dict[str, Any] = dict.fromkeys(lists, True)
                if found := [uri for uri in uris if uri in stream.uris]:
                    honoured[_RESOURCES] = found
                params = jsonrpc.encode({"notifications": honoured})
                await exchange.write(sse.encode(stream.message(_ACKNOWLEDGED, params)))
                await self._pass_on(exchange, stream)
                nursery.cancel_scope.cancel()
        finally:
            identity.ears.remove(stream)
            for uri in stream.uris:
                self._release(who, uri)

    async def _pass_on(self, exchange: Exchange, stream: Subscription) -> None:
        while True:
            with trio.move_on_after(KEEPALIVE_SECONDS) as quiet:
                message = await stream.get()
            if quiet.cancelled_caught:
                await exchange.write(sse.KEEPALIVE)
            elif message is None:
                break
            else:
                await exchange.write(sse.encode(message))
        ended = envelope.stamp_result(
            envelope.tag(b"", stream.ident), server_info=self._server_info
        )
        await exchange.write(sse.encode(jsonrpc.result(stream.ident, ended)))
        await exchange.finish()

    async def _watch_all(self, who: Requester, uris: tuple[str, ...], stream: Subscription) -> None:
        # A server that takes long must not keep the agent from what the others can do.
        with trio.move_on_after(_PATIENCE_SECONDS):
            async with trio.open_nursery() as nursery:
                for uri in uris:
                    nursery.start_soon(self._watch_one, who, uri, stream)

    async def _watch_one(self, who: Requester, uri: str, stream: Subscription) -> None:
        key = (who.agent, who.endpoint, uri)
        self._watched[key] += 1
        wrong: object = "not known in time"
        try:
            wrong = await self._operations.subscribe(who, jsonrpc.encode({"uri": uri}))
        except AgentError as error:
            wrong = error.message
        finally:
            if wrong is None:
                stream.uris.add(uri)
            else:
                log().debug("subscription_refused", agent=who.agent, reason=str(wrong))
                self._release(who, uri)

    def _release(self, who: Requester, uri: str) -> None:
        key = (who.agent, who.endpoint, uri)
        self._watched[key] -= 1
        if self._watched[key]:
            return
        del self._watched[key]
        try:
            self._operations.unsubscribe(who, jsonrpc.encode({"uri": uri}))
        except AgentError as error:  # the resource, or its server, is gone
            log().debug("unsubscription_refused", agent=who.agent, reason=error.message)


def _wrong(text: str) -> AgentError:
    return AgentError(jsonrpc.INVALID_PARAMS, text, status=400)


async def _watch(exchange: Exchange, scope: trio.CancelScope) -> None:
    await exchange.wait_disconnect()
    scope.cancel()
