"""One configured server while the router runs: its catalogue, its slots, its health.

Owns the session that reads the catalogue (the shared one, where sessions are shared), when the
catalogue is read again, and the idle limit. Must not know agents beyond their identifier.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final, Protocol

import trio
from attrs import frozen

from kars_router.config.schema import Server, SessionScope
from kars_router.errors import CallFailed, UpstreamError
from kars_router.hookspecs import Credentials
from kars_router.model import Failure, Phase, Sent, ServerInfo
from kars_router.plugins import Plugins
from kars_router.session import catalogue
from kars_router.session.backoff import Backoff
from kars_router.session.catalogue import Catalogue
from kars_router.session.listener import ListenState
from kars_router.session.records import Records
from kars_router.session.slot import Slot
from kars_router.session.upstream import SessionOptions, UpstreamSession, open_session
from kars_router.telemetry import Metrics, log
from kars_router.transports.base import Connection, Deliver
from kars_router.wire.jsonrpc import Message

_DEBOUNCE_SECONDS: Final = 0.2
_RETRY_CAP: Final = 10.0
_RESTARTED: Final = "the router was restarted"
_RECONFIGURED: Final = "the server's configuration changed"
# A session that was lost sooner was not worth opening: the next one is not hurried.
_SHORT_LIVED: Final = 5.0
# The GET stream opens within moments, and what is read after that cannot miss a change.
_OPENING_SECONDS: Final = 0.2
_LISTING_PAGES: Final = 4
_CLOSE_SECONDS: Final = 2.0


class Connector(Protocol):
    """The way to one server, shared by all of its sessions."""

    def connect(self, deliver: Deliver, credentials: Credentials | None) -> Connection:
        """Makes one session's connection.

        Args:
            deliver: takes every message that arrives.
            credentials: what authenticates the router, or None.
        """
        ...

    async def aclose(self) -> None:
        """Closes what the sessions shared; they are over by then."""
        ...


@frozen(kw_only=True)
class Surroundings:
    """What every server of a router shares."""

    plugins: Plugins
    metrics: Metrics
    records: Records
    version: str
    tool_limit: int
    changed: Callable[[str], None]


class ServerRuntime:
    """A server while the router runs.

    Args:
        name: its configured name.
        settings: its configuration.
        connector: the way to it; closed when the server is stopped.
        around: what all servers share.
        reconfigured: whether it is there because the configuration changed while the router ran.
        replaces: the same server under its old configuration; its tools are shown until the new
            ones are known.

    Attributes:
        settings: its configuration.
        catalogue: the tools it was last seen to offer; kept while it is down.
        state: `starting`, `ready` or `down`.
        error: what was wrong last, for the operator; empty if nothing is.
        tried: set once the first attempt to read the catalogue has ended.
    """

    def __init__(
        self,
        name: str,
        settings: Server,
        connector: Connector,
        around: Surroundings,
        *,
        reconfigured: bool = False,
        replaces: ServerRuntime | None = None,
    ) -> None:
        self.name = name
        self.settings = settings
        self.info = _info(name, settings)
        self.state = "starting"
        self.error = ""
        self.tried = trio.Event()
        self.slots: dict[str, Slot] = {}
        self.instructions: str = replaces.instructions if replaces else ""
        self._definitions: list[catalogue.Definition] = replaces._definitions if replaces else []
        self._fresh_reason = _RECONFIGURED if reconfigured else _RESTARTED
        self._connector = connector
        self._around = around
        self._credentials = around.plugins.credentials(self.info)
        self.catalogue = self._build()
        self._relist = trio.Event()
        self._unheard = False
        self._poked = trio.Event()
        self._attempted = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()

    @property
    def shared(self) -> bool:
        """Whether all agents share one session."""
        return self.settings.session_scope is SessionScope.SHARED

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reads the catalogue, keeps it fresh, and runs the slots, until stopped or cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    task_status.started()
                    try:
                        keeper = self._new_slot("", nursery)
                        nursery.start_soon(self._expire)
                        nursery.start_soon(self._lose_patience)
                        await self._keep(keeper)
                    finally:
                        # Before the nursery can close: whoever uses it then gets an error.
                        self._nursery = None
        finally:
            with trio.move_on_after(_CLOSE_SECONDS, shield=True):
                await self._connector.aclose()
            self.tried.set()
            self._stopped.set()

    async def try_now(self, seconds: float) -> None:
        """Has a server that is down tried at once; waits for that for so many seconds at most."""
        if self.state == "ready" or self._nursery is None:
            return
        self._poked.set()
        with trio.move_on_after(seconds):
            await self._attempted.wait()

    async def stop(self) -> None:
        """Ends every session of the server; returns when that is done."""
        self._scope.cancel()
        await self._stopped.wait()

    def slot_for(self, agent: str) -> Slot | None:
        """The slot whose sessions serve an agent; None once the server is stopping."""
        key = "" if self.shared else agent
        slot = self.slots.get(key)
        if slot is None and self._nursery is not None:
            slot = self._new_slot(key, self._nursery)
        return slot

    def existing_slot(self, agent: str) -> Slot | None:
        """The slot whose sessions serve an agent, if there is one already."""
        return self.slots.get("" if self.shared else agent)

    def end_agent(self, agent: str, reason: str) -> None:
        """Ends an agent's own sessions, in the background; shared ones live on."""
        slot = None if self.shared else self.slots.pop(agent, None)
        if slot is not None and self._nursery is not None:
            self._nursery.start_soon(slot.close, reason)

    def update(self, settings: Server) -> None:
        """Takes over settings that concern no session: which tools are admitted, and limits."""
        self.settings = settings
        self.info = _info(self.name, settings)
        self._rebuild()

    def _new_slot(self, key: str, nursery: trio.Nursery) -> Slot:
        records = self._around.records
        before = (
            records.latest(self.name)
            if self.shared or not key
            else (records.used(key, self.name) or 0)
        )
        slot = Slot(
            self.name,
            key,
            partial(self._open, key),
            self._around.metrics,
            opened=self._around.plugins.session_opened,
            closed=self._around.plugins.session_closed,
            generation=before,
            lost_reason=self._fresh_reason if before else "",
        )
        self.slots[key] = slot
        # The one place where a nursery is used across modules: a slot's task belongs to the
        # server, whoever asked for it.
        nursery.start_soon(slot.run)
        return slot

    def _open(self, agent: str) -> AbstractAsyncContextManager[UpstreamSession]:
        timeouts = self.settings.timeouts
        options = SessionOptions(
            server=self.name,
            connect_timeout=timeouts.connect,
            silence=self.settings.listen_silence,
            client_version=self._around.version,
        )
        return open_session(
            options,
            lambda deliver: self._connector.connect(deliver, self._credentials),
            classify=self._around.plugins.classify_loss,
            metrics=self._around.metrics,
            on_notification=self._notified,
            on_listen=partial(self._listening, agent),
        )

    async def _keep(self, keeper: Slot) -> None:
        backoff = Backoff(0.25, _RETRY_CAP, random.random)
        last: UpstreamSession | None = None
        since = 0.0
        while True:
            try:
                session = await keeper.acquire()
                if session is not last:
                    last, since = session, trio.current_time()
                    with trio.move_on_after(_OPENING_SECONDS):
                        await session.listener.settled.wait()
                self._relist = trio.Event()
                self._unheard = session.listener.opened == 0
                await self._read(session)
            except UpstreamError as error:
                self._down(error.failure)
                self._settle()
                with trio.move_on_after(backoff.next()):
                    await self._poked.wait()
                continue
            self._settle()
            await _either(session.ended, self._relist)
            if trio.current_time() - since >= _SHORT_LIVED:
                backoff.reset()
            elif session.ended.is_set():
                await trio.sleep(backoff.next())
            # Servers announce a change several times within milliseconds.
            await trio.sleep(_DEBOUNCE_SECONDS)

    async def _read(self, session: UpstreamSession) -> None:
        page_limit = self.settings.timeouts.connect * 2

        async def fetch(params: bytes) -> bytes:
            return await session.request("tools/list", params, time_limit=page_limit)

        capabilities = session.initialized.get("capabilities")
        if isinstance(capabilities, dict) and "tools" in capabilities:
            limit = self._around.tool_limit
            try:
                with trio.fail_after(_LISTING_PAGES * page_limit):
                    found = await catalogue.read_definitions(self.name, fetch, limit=limit)
            except trio.TooSlowError as error:
                raise _slow(self.name, _LISTING_PAGES * page_limit) from error
            self._definitions = found
        else:
            self._definitions = []
        text = session.initialized.get("instructions")
        self.instructions = text if isinstance(text, str) else ""
        if self.state != "ready":
            log().info("server_ready", server=self.name, tools=len(self._definitions))
        self.state, self.error = "ready", ""
        self._rebuild()

    def _rebuild(self) -> None:
        fresh = self._build()
        changed = not fresh.same_as(self.catalogue)
        self.catalogue = fresh
        if changed:
            log().info(
                "tools_changed", server=self.name, tools=len(fresh.tools), hidden=fresh.hidden
            )
            self._around.changed(self.name)

    def _build(self) -> Catalogue:
        return catalogue.build(self.info, self._definitions, self._around.plugins.admits_tool)

    async def _lose_patience(self) -> None:
        # Other servers' tools and the router's readiness do not wait for a list without an end.
        seconds = self.settings.timeouts.connect * 2
        await trio.sleep(seconds)
        if not self.tried.is_set():
            self.error = f"{self.name}: its tools are not known after {seconds:g} s"
            log().warning("server_slow", server=self.name, seconds=seconds)
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
            log().warning("server_down", server=self.name, failure=self.error)

    def _notified(self, message: Message) -> None:
        if message.method == "notifications/tools/list_changed":
            self._relist.set()
        else:
            self._around.metrics.dropped.labels(self.name, "notification").inc()

    def _listening(self, agent: str, old: ListenState | None, new: ListenState) -> None:
        gauge = self._around.metrics.listen_state
        if old is not None and old is not ListenState.CLOSED:
            gauge.labels(self.name, old.value).dec()
        if new is not ListenState.CLOSED:
            gauge.labels(self.name, new.value).inc()
        if not agent and self.state == "ready":
            if new is ListenState.WAITING:
                self.error = "the GET stream is interrupted; it is being opened again"
            elif new is ListenState.OPEN:
                self.error = ""
        level = logging.DEBUG if new is ListenState.OPENING else logging.INFO
        log().log(level, "listen_state", server=self.name, agent=agent, state=new.value)
        if new is ListenState.OPEN and not agent and self._unheard:
            # What changed after the tools were read and before this was not announced to us.
            self._unheard = False
            self._relist.set()

    async def _expire(self) -> None:
        idle = self.settings.timeouts.idle
        while True:
            await trio.sleep(min(idle / 4, 30.0))
            idle = self.settings.timeouts.idle
            for key, slot in list(self.slots.items()):
                if key:
                    slot.retire_if_idle(idle)


def _info(name: str, settings: Server) -> ServerInfo:
    return ServerInfo(
        name=name,
        allowed_tools=settings.allowed_tools,
        bearer_from_env=settings.bearer_from_env or "",
        bearer_from_file=str(settings.bearer_from_file or ""),
    )


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


async def _either(first: trio.Event, second: trio.Event) -> None:
    async def watch(event: trio.Event, scope: trio.CancelScope) -> None:
        await event.wait()
        scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, first, nursery.cancel_scope)
        nursery.start_soon(watch, second, nursery.cancel_scope)
