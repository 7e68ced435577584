"""The standing stream of a session of the stateless era, by `subscriptions/listen`.

The counterpart of `listener`, with the same states. Owns what is subscribed to, when the stream is
opened, reopened or given up, and that nothing is told twice or lost while one stream takes over
from another. Must not know agents, or what is done about a change.

There is no replay in this era: after a gap everything counts as changed.

Source: MCP 2026-07-28 "Subscriptions".
"""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from kars_router.model import Failure, Phase
from kars_router.session import subscription
from kars_router.session.backoff import Backoff
from kars_router.session.listener import ListenState
from kars_router.session.stamping import Stamps
from kars_router.session.subscription import LISTEN, UPDATED, Filter, Stream, list_changed
from kars_router.telemetry import log
from kars_router.transports.base import Connection
from kars_router.transports.signals import Signal
from kars_router.wire import envelope, jsonrpc
from kars_router.wire.jsonrpc import Kind, Message

_ACKNOWLEDGED: Final = "notifications/subscriptions/acknowledged"
# A stream that ends at once each time must not become a busy loop.
_SHORT_LIVED: Final = 1.0
_SHORT_ALLOWED: Final = 2
# What happened just before a new stream was open may still be on its way over the old one.
_HANDOVER_SECONDS: Final = 0.1


class Standing:
    """The standing stream of one session.

    Args:
        connection: the session's connection.
        stamps: what each message says of this hop.
        server: its configured name, for the log.
        patience: seconds that an acknowledgement may take.
        silence: seconds without a byte after which the stream is opened anew.
        abandon: tells the server that nobody reads the answer to a request any more.
        doubt: finds out whether a refusal means that the session is over; returns whether it is.
        notify: takes the method and params of what the server says; must not wait.
        changed: called with (old, new) at each change of state.
        jitter: returns a float in [0, 1).

    Attributes:
        state: where it stands.
        settled: set once it is open, or known not to be.
        opened: how many times a stream was acknowledged.
        honoured: what the open stream brings; empty while there is none.
    """

    def __init__(
        self,
        connection: Connection,
        stamps: Stamps,
        *,
        server: str,
        patience: float,
        silence: float,
        abandon: Callable[[bytes], None],
        doubt: Callable[[Failure], Awaitable[bool]],
        notify: Callable[[str, bytes], None],
        changed: Callable[[ListenState | None, ListenState], None],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.state = ListenState.OPENING
        self.settled = Signal()
        self.opened = 0
        self._connection = connection
        self._stamps = stamps
        self._abandon = abandon
        self._doubt = doubt
        self._server = server
        self._patience = patience
        self._silence = silence
        self._notify = notify
        self._changed = changed
        self._backoff = Backoff(0.25, 30.0, jitter)
        self._lists: frozenset[str] = frozenset()
        self._uris: frozenset[str] = frozenset()
        self._refused: Filter | None = None
        self._streams: dict[bytes, Stream] = {}
        self._current: Stream | None = None
        self._held: dict[tuple[str, str | None], bytes] | None = None
        self._short = 0
        self._wanted = trio.Event()
        self._turn = trio.Event()
        self._started = False
        self._scope = trio.CancelScope()

    @property
    def honoured(self) -> Filter:
        """What the open stream brings; nothing while there is none."""
        current = self._current
        return current.honoured if current is not None and current.live else Filter()

    @property
    def uris(self) -> frozenset[str]:
        """The resources whose updates are wanted."""
        return self._uris

    async def run(self, capabilities: bytes) -> None:
        """Holds the stream until it is closed.

        Args:
            capabilities: what the server declared, as a JSON object; it says which lists can
                change.

        Cancellation closes the stream.
        """
        if self._scope.cancel_called:
            return
        self._lists = subscription.declared(capabilities)
        self._started = True
        self._changed(None, self.state)
        with self._scope:
            async with trio.open_nursery() as nursery:
                while True:
                    await self._step(nursery)

    def close(self) -> None:
        """Ends the stream because the session is over; never waits."""
        self._scope.cancel()
        if self._started:
            self._become(ListenState.CLOSED)
        self._pulse()

    def watch(self, uris: frozenset[str]) -> None:
        """Says of which resources updates are wanted, all of them; never waits."""
        if uris != self._uris:
            self._uris = uris
            self._wanted.set()

    async def subscribe(self, uri: str, seconds: float) -> bytes | None:
        """Has updates of one more resource told, and waits for the server's word.

        Returns:
            None, or what is wrong, as a JSON-RPC error object; then it is not watched.
        """
        if self._refused is not None and uri in self._refused.uris:
            self._refused = None  # the server is asked again
        self.watch(self._uris | {uri})
        error = f"the server {self._server} did not say in time whether it reports updates"
        code = jsonrpc.INTERNAL_ERROR
        with trio.move_on_after(seconds):
            while not self._scope.cancel_called:
                current, refused = self._current, self._refused
                if current is not None and current.live and uri in current.asked.uris:
                    if uri in current.honoured.uris:
                        return None
                    code, error = jsonrpc.INVALID_PARAMS, "updates of it are not reported"
                    break
                if refused is not None and uri in refused.uris:
                    code, error = jsonrpc.METHOD_NOT_FOUND, "updates are not reported"
                    break
                await self._turn.wait()
        self.watch(self._uris - {uri})
        return jsonrpc.error_object(code, error)

    def take(self, message: Message, cause: bytes) -> bool:
        """Takes a message if it belongs to one of its streams; never waits.

        Args:
            message: any message of the server.
            cause: the id of the request that it came with; empty if nothing says so.

        Returns:
            whether it did.
        """
        if not self._streams or (cause and cause not in self._streams):
            return False
        params, tag = envelope.untag(message.params)
        stream = self._streams.get(cause or tag or message.id)
        if stream is None:
            return False
        if message.kind is Kind.RESPONSE:
            stream.take_end(message)
        elif message.method == _ACKNOWLEDGED:
            stream.honoured = stream.asked.honoured(params)
            stream.acked.set()
        elif stream.acked.is_set() and stream.asked.admits(message.method):
            if self._held is not None:
                self._held[message.method, subscription.uri_of(params)] = params
            else:
                self._notify(message.method, params)
        return True

    async def _step(self, nursery: trio.Nursery) -> None:
        wanted = Filter(self._lists, self._uris)
        current = self._current
        if current is not None and current.over.is_set():
            self._current = current = None
            await self._rest()
            return
        self._wanted = trio.Event()
        if current is None and not wanted:
            self._give_up(ListenState.NONE)
            await self._wanted.wait()
        elif current is None:
            await self._open(nursery, wanted)
        elif wanted in (current.asked, self._refused):
            await _either(current.over, self._wanted)
        elif wanted:
            await self._open(nursery, wanted)
        else:
            self._current = None
            current.scope.cancel()

    async def _rest(self) -> None:
        """Waits after a stream that was open has ended: usually not at all."""
        if self._short > _SHORT_ALLOWED:
            self._become(ListenState.WAITING)
            await trio.sleep(self._backoff.next())

    async def _open(self, nursery: trio.Nursery, wanted: Filter) -> None:
        old = self._current
        if old is None:
            self._become(ListenState.OPENING)
        # What both streams bring is told once, after both have had the time to bring it.
        self._held = {}
        stream = self._start(nursery, wanted)
        with trio.move_on_after(self._patience):
            await _either(stream.acked, stream.over)
        if not stream.acked.is_set():
            stream.scope.cancel()
            self._release()
            await self._refuse(stream, old)
            return
        self._refused = None
        gap = self.opened > 0 and (old is None or old.over.is_set())
        if old is not None:
            with trio.move_on_after(_HANDOVER_SECONDS):
                await old.over.wait()
            old.scope.cancel()
        self._current = stream
        self.opened += 1
        self._release()
        self._become(ListenState.OPEN)
        self.settled.set()
        self._pulse()
        if gap:
            self._announce(stream.honoured)

    def _start(self, nursery: trio.Nursery, wanted: Filter) -> Stream:
        stream = Stream(self._server, self._stamps.next_ident(), wanted, opened=trio.current_time())
        self._streams[stream.ident] = stream
        nursery.start_soon(self._serve, stream)
        return stream

    async def _serve(self, stream: Stream) -> None:
        payload = jsonrpc.request(stream.ident, LISTEN, self._stamps.stamp(stream.asked.params()))
        try:
            # Over a channel nothing comes while there is nothing to say.
            silence = self._silence if self._connection.correlates else math.inf
            await stream.run(self._connection, payload, silence=silence)
        finally:
            del self._streams[stream.ident]
            if stream.abandoned:
                self._abandon(stream.ident)
            # One that lived for a while says nothing against the next one.
            if trio.current_time() - stream.opened >= _SHORT_LIVED:
                self._backoff.reset()
                self._short = 0
            self._short += not stream.scope.cancel_called
            stream.over.set()

    async def _refuse(self, stream: Stream, old: Stream | None) -> None:
        """Deals with a stream that was not acknowledged; the old one goes on if there is one."""
        failure = stream.failure or Failure(
            server=self._server,
            phase=Phase.LISTEN,
            sent=stream.delivery.sent,
            method=LISTEN,
            code="no_answer",
            detail=f"{LISTEN} was not acknowledged",
        )
        if await self._doubt(failure):
            await trio.sleep_forever()  # the session ends, and this with it
        state = subscription.final_state(failure)
        if state is None:
            pause = self._backoff.next()
            log().warning(
                "listen_failed",
                server=self._server,
                failure=failure.summary(),
                retry_in=round(pause, 3),
            )
            with trio.move_on_after(pause):
                if old is not None:
                    await old.over.wait()
                else:
                    self._become(ListenState.WAITING)
                    await trio.sleep_forever()
            return
        self._refused = stream.asked
        log().info("listen_refused", server=self._server, failure=failure.summary())
        if old is None:
            self._give_up(state)
            await self._wanted.wait()
        else:
            self._pulse()

    def _give_up(self, state: ListenState) -> None:
        self._become(state)
        self.settled.set()
        self._pulse()

    def _release(self) -> None:
        held, self._held = self._held or {}, None
        for (method, _), params in held.items():
            self._notify(method, params)

    def _announce(self, honoured: Filter) -> None:
        for name in sorted(honoured.lists):
            self._notify(list_changed(name), b"")
        for uri in sorted(honoured.uris):
            self._notify(UPDATED, jsonrpc.encode({"uri": uri}))

    def _pulse(self) -> None:
        turn, self._turn = self._turn, trio.Event()
        turn.set()

    def _become(self, state: ListenState) -> None:
        if state is not self.state and self.state is not ListenState.CLOSED:
            old, self.state = self.state, state
            self._changed(old, state)


async def _either(first: trio.Event, second: trio.Event) -> None:
    async def watch(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, first, nursery.cancel_scope)
        nursery.start_soon(watch, second, nursery.cancel_scope)
