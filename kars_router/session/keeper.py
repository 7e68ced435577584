"""What is known of one server: its tools, what it can do, and whether it can be reached.

Owns when the tools are read again, and the tries while the server is down. Must not know agents.

Source: MCP 2025-11-25 "Tools / List Changed Notification"; 2026-07-28 "Caching".
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import trio

from kars_router.errors import CallFailed, UpstreamError
from kars_router.model import Failure, Phase, Sent, ServerInfo
from kars_router.session import catalogue
from kars_router.session.backoff import Backoff
from kars_router.session.base import Session
from kars_router.session.catalogue import Admits, Catalogue
from kars_router.session.listener import ListenState
from kars_router.session.slot import Slot
from kars_router.telemetry import log
from kars_router.transports.signals import Signal
from kars_router.wire import capabilities

_DEBOUNCE_SECONDS: Final = 0.2
_RETRY_CAP: Final = 10.0
# A session that was lost sooner was not worth opening: the next one is not hurried.
_SHORT_LIVED: Final = 5.0
# The GET stream opens within moments, and what is read after that cannot miss a change.
_OPENING_SECONDS: Final = 0.2
_LISTING_PAGES: Final = 4


class Keeper:
    """Keeps what is known of one server.

    Args:
        info: the server, as plugins may know it.
        admits: says which tools agents may see.
        connect_timeout: patience with one step towards the server, in seconds.
        tool_limit: most tools that are kept.
        changed: told when the admitted tools have changed.
        before: what was known of the same server under its old configuration.
        built: told each time that tools were admitted anew, changed or not.

    Attributes:
        catalogue: the tools it was last seen to offer; kept while it is down.
        capabilities: what it declared last, as a JSON object; None while it has never been reached.
        instructions: its instructions for the model.
        state: `starting`, `ready` or `down`.
        error: what was wrong last, for the operator; empty if nothing is.
        tried: set once the first attempt to read the tools has ended.
        stateful: whether its sessions hold something; None while that is not known.
    """

    def __init__(
        self,
        info: ServerInfo,
        admits: Admits,
        *,
        connect_timeout: float,
        tool_limit: int,
        changed: Callable[[], None],
        before: Keeper | None = None,
        built: Callable[[Catalogue], None] = lambda _: None,
    ) -> None:
        self.info = info
        self.state = "starting"
        self.error = ""
        self.tried = trio.Event()
        self.instructions: str = before.instructions if before else ""
        self.capabilities: bytes | None = before.capabilities if before else None
        self.stateful: bool | None = None
        self._definitions: list[catalogue.Definition] = before._definitions if before else []
        self._admits = admits
        self._connect_timeout = connect_timeout
        self._tool_limit = tool_limit
        self._changed = changed
        self._relist = trio.Event()
        self._unheard = False
        self._poked = trio.Event()
        self._attempted = trio.Event()
        self._built = built
        self.catalogue: Catalogue = self._build()

    async def run(self, slot: Slot) -> None:
        """Reads the tools, and reads them again when they change, until cancelled.

        Args:
            slot: where it has its own session.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lose_patience)
            await self._keep(slot)

    async def try_now(self, seconds: float) -> None:
        """Has a server that is down tried at once; waits for that for so many seconds at most."""
        if self.state == "ready":
            return
        self._poked.set()
        with trio.move_on_after(seconds):
            await self._attempted.wait()

    def relist(self) -> None:
        """Has the tools read again soon; never waits."""
        self._relist.set()

    async def reread(self) -> None:
        """Has the tools read again and waits for that, for as long as a server may take."""
        attempted = self._attempted
        self.relist()
        with trio.move_on_after(self._connect_timeout * 2):
            await attempted.wait()

    def rebuild(self, info: ServerInfo | None = None) -> None:
        """Admits the known tools anew, if need be under other settings."""
        self.info = info or self.info
        fresh = self._build()
        changed = not fresh.same_as(self.catalogue)
        self.catalogue = fresh
        if changed:
            log().info(
                "tools_changed", server=self.info.name, tools=len(fresh.tools), hidden=fresh.hidden
            )
            self._changed()

    def listening(self, new: ListenState) -> None:
        """Takes note of the state of the stream of its own session."""
        if self.state == "ready":
            if new is ListenState.WAITING:
                self.error = "the GET stream is interrupted; it is being opened again"
            elif new is ListenState.OPEN:
                self.error = ""
        if new is ListenState.NONE and self.state == "ready":
            self._relist.set()  # from now on the tools have to be asked for
        if new is ListenState.OPEN and self._unheard:
            # What changed after the tools were read and before this was not announced to us.
            self._unheard = False
            self._relist.set()

    async def _keep(self, slot: Slot) -> None:
        backoff = Backoff(0.25, _RETRY_CAP, random.random)
        last: Session | None = None
        since = 0.0
        while True:
            try:
                session = await slot.acquire()
                if session is not last:
                    last, since = session, trio.current_time()
                    self.stateful = session.stateful
                    with trio.move_on_after(_OPENING_SECONDS):
                        await session.settled.wait()
                self._relist = trio.Event()
                self._unheard = not session.heard
                await self._read(session)
            except UpstreamError as error:
                self._down(error.failure)
                self._settle()
                with trio.move_on_after(backoff.next()):
                    await self._poked.wait()
                continue
            self._settle()
            with trio.move_on_after(session.poll_seconds):
                await _either(session.ended, self._relist)
            if trio.current_time() - since >= _SHORT_LIVED:
                backoff.reset()
            elif session.ended.is_set():
                await trio.sleep(backoff.next())
            # Servers announce a change several times within milliseconds.
            await trio.sleep(_DEBOUNCE_SECONDS)

    async def _read(self, session: Session) -> None:
        page_limit = self._connect_timeout * 2

        async def fetch(params: bytes) -> bytes:
            return await session.request("tools/list", params, time_limit=page_limit)

        name = self.info.name
        if capabilities.has(session.capabilities, "tools"):
            try:
                with trio.fail_after(_LISTING_PAGES * page_limit):
                    found = await catalogue.read_definitions(name, fetch, limit=self._tool_limit)
            except trio.TooSlowError as error:
                raise _slow(name, _LISTING_PAGES * page_limit) from error
            self._definitions = found
        else:
            self._definitions = []
        self.instructions = session.instructions
        self.capabilities = session.capabilities
        if self.state != "ready":
            log().info("server_ready", server=name, tools=len(self._definitions))
        self.state, self.error = "ready", ""
        self.rebuild()

    def _build(self) -> Catalogue:
        stateful = self.stateful is not False
        fresh = catalogue.build(self.info, self._definitions, self._admits, stateful=stateful)
        self._built(fresh)
        return fresh

    async def _lose_patience(self) -> None:
        # Other servers' tools and the router's readiness do not wait for a list without an end.
        seconds = self._connect_timeout * 2
        await trio.sleep(seconds)
        if not self.tried.is_set():
            name = self.info.name
            self.error = f"{name}: its tools are not known after {seconds:g} s"
            log().warning("server_slow", server=name, seconds=seconds)
            self.tried.set()

    def _settle(self) -> None:
        self.tried.set()
        attempted, self._attempted = self._attempted, trio.Event()
        self._poked = trio.Event()
        attempted.set()

    def _down(self, failure: Failure) -> None:
        self.error = failure.summary()
        if self.state != "down":
            self.state = "down"
            log().warning("server_down", server=self.info.name, failure=self.error)


def _slow(server: str, seconds: float) -> CallFailed:
    return CallFailed(
        Failure(
            server=server,
            phase=Phase.RESULT,
            sent=Sent.YES,
            method="tools/list",
            code="timeout",
            detail=f"tools/list did not come to an end within {seconds:g} s",
        )
    )


async def _either(first: Signal, second: trio.Event) -> None:
    async def watch(event: Signal | trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, first, nursery.cancel_scope)
        nursery.start_soon(watch, second, nursery.cancel_scope)
