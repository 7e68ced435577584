"""A place for one upstream session after another, for one server on behalf of one agent.

Owns generations: sessions are opened here and nowhere else, one at a time by construction, since
one task does it. Must not know what a tool is called in public.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import trio
from attrs import define, field

from kars_router.errors import HandshakeError
from kars_router.model import Failure, LossVerdict, Phase, SessionInfo, SessionReset
from kars_router.session.backoff import Backoff
from kars_router.session.base import Session
from kars_router.session.observer import Observer
from kars_router.session.questions import RootsMemory
from kars_router.session.watchers import Watchers
from kars_router.telemetry import Metrics, log
from kars_router.transports.signals import Signal
from kars_router.wire import levels

# Calls in flight at a loss get their own verdict: most servers refuse each of them at once, and
# what was refused can be replayed, whereas what is cut off has an unknown fate.
_LOSS_GRACE: Final = 2.0
_SHORT_LIVED: Final = 5.0

Opener = Callable[["Slot"], AbstractAsyncContextManager[Session]]


@define(eq=False)
class _Attempt:
    done: Signal = field(factory=Signal)
    failure: Failure | None = None


class Slot:
    """Sessions to one server, one after another.

    Args:
        server: the server's configured name.
        agent: the agent session it belongs to; "" if shared.
        opener: opens one session for the slot.
        metrics: where generations and losses are counted.
        observer: told of each new session, each loss and each end.
        generation: the last generation that existed before this process.
    """

    def __init__(
        self,
        server: str,
        agent: str,
        opener: Opener,
        metrics: Metrics,
        *,
        observer: Observer,
        generation: int = 0,
        lost_reason: str = "",
    ) -> None:
        self.server = server
        self.agent = agent
        self.generation = generation
        self.session: Session | None = None
        self.info: SessionInfo | None = None
        self.last_used = trio.current_time()
        self.lost_reason = lost_reason
        self.log_level = ""
        self._backoff = Backoff(0.25, 30.0, random.random)
        self._subscribing: trio.Lock | None = None
        self.roots = RootsMemory()
        self.watchers = Watchers()
        self._opener = opener
        self._metrics = metrics
        self._observer = observer
        self._lost = ""
        self._wanted = Signal()
        self._attempt = _Attempt()
        self._scope = trio.CancelScope()
        self._finished = Signal()
        self._close_reason = "shutdown"
        self._retired = ""
        self.served: set[str] = set()  # agents with a call that this generation may have executed
        self._owed: dict[str, SessionReset] = {}

    @property
    def subscribing(self) -> trio.Lock:
        """Held by whoever has a resource watched; made when somebody does."""
        if self._subscribing is None:
            self._subscribing = trio.Lock()
        return self._subscribing

    async def run(self) -> None:
        """Opens sessions as they are wanted, until cancelled or closed.

        Cancellation ends the current session, which is deleted on its server within a bound.
        """
        try:
            with self._scope:
                while True:
                    # Who watches a resource calls nothing, and wants to hear of it all the same.
                    patience = self._backoff.next() if self.watchers.uris else math.inf
                    with trio.move_on_after(patience):
                        await self._wanted.wait()
                    opened = trio.current_time()
                    await self._guarded()
                    if trio.current_time() - opened >= _SHORT_LIVED:
                        self._backoff.reset()
        finally:
            self._settle(_closing(self.server))
            self._finished.set()

    async def acquire(self) -> Session:
        """The live session; opened first if there is none, once for all who ask meanwhile.

        Raises:
            HandshakeError: it could not be opened.
        """
        self.last_used = trio.current_time()
        while True:
            session = self.session
            if session is not None and session.alive:
                return session
            if self._finished.is_set() or self._scope.cancel_called:
                raise HandshakeError(_closing(self.server))
            attempt = self._attempt
            self._wanted.set()
            await attempt.done.wait()
            if attempt.failure is not None:
                raise HandshakeError(attempt.failure)

    async def close(self, reason: str) -> None:
        """Ends the slot and its session; returns when that is done."""
        self._close_reason = reason
        self._scope.cancel()
        await self._finished.wait()

    def retire_if_idle(self, seconds: float) -> None:
        """Ends the current session if no call has used it for so long; the slot stays."""
        session = self.session
        if session is None or not session.alive or session.in_flight or self.watchers.uris:
            return
        if trio.current_time() - self.last_used >= seconds:
            self._retired = f"no call for {seconds:g} s"
            session.finish()

    def note_use(self, agent: str, generation: int, before: int | None) -> None:
        """Notes that an agent's call goes to a generation.

        Args:
            agent: the agent session.
            generation: the generation that the call goes to.
            before: the generation that the agent used last, or None.
        """
        if before is not None and before < generation:
            reason = self.lost_reason or "the session was replaced"
            self._owed[agent] = SessionReset(generation, reason)

    def want_level(self, level: str) -> None:
        """Has log messages of a level sent, beside those that somebody wanted before."""
        self.set_level(levels.most_verbose([self.log_level, level]))

    def set_level(self, level: str) -> None:
        """Says which log messages are wanted, now and in later sessions."""
        self.log_level = level
        if self.session is not None:
            self.session.set_log_level(level)

    def take_reset(self, agent: str) -> SessionReset | None:
        """What the agent has to be told of lost state; asked once for each result."""
        return self._owed.pop(agent, None)

    def return_reset(self, agent: str, reset: SessionReset) -> None:
        """Takes back what the agent could not be told, unless there is something newer."""
        self._owed.setdefault(agent, reset)

    def forget(self, agent: str) -> None:
        """Forgets what an agent that is gone was owed, and what it watched."""
        self._owed.pop(agent, None)
        for uri in self.watchers.forget(agent):
            if self.session is not None:
                self.session.unsubscribe(uri)

    async def _guarded(self) -> None:
        try:
            await self._one()
        except* HandshakeError as group:
            error = _first(group)
            failure = error.failure if isinstance(error, HandshakeError) else _closing(self.server)
            # The router's own attempts are reported by the server's state, once.
            level = logging.WARNING if self.agent else logging.DEBUG
            log().log(level, "session_refused", server=self.server, failure=failure.summary())
            self._settle(failure)
        except* Exception as group:  # noqa: BLE001 - crash barrier: one session
            log().error("session_crashed", server=self.server, exc_info=group)
            self._settle(
                Failure(
                    server=self.server,
                    phase=Phase.CONNECT,
                    code="internal",
                    detail="the session crashed",
                )
            )
            # A crash that repeats must not spin; the next call waits this long at most.
            await trio.sleep(0.1)

    async def _one(self) -> None:
        async with self._opener(self) as session:
            self.generation += 1
            self.served.clear()
            self.info = info = SessionInfo(
                server=self.server,
                agent=self.agent,
                generation=self.generation,
                key=f"{self.server}/{self.agent}/{self.generation}",
            )
            self.session = session
            self._metrics.generations.labels(self.server).inc()
            self._metrics.sessions.labels(self.server).inc()
            log().info(
                "session_opened", server=self.server, agent=self.agent, generation=self.generation
            )
            self._observer.opened(info)
            if self._lost:
                self._observer.restored(info, self._lost)
                self._lost = ""
            self._settle(None)
            reason = ""

            def note_end() -> None:
                nonlocal reason
                if session.lost is not None:
                    reason = self._lost = self._note_loss(session, session.lost)
                    self._observer.lost(info, reason)
                else:
                    reason = self.lost_reason = self._retired

            try:
                await session.hold(note_end, _LOSS_GRACE)
            finally:
                reason = reason or self._close_reason
                self.session = None
                self._metrics.sessions.labels(self.server).dec()
                self._observer.closed(info, reason)
                log().info(
                    "session_closed",
                    server=self.server,
                    agent=self.agent,
                    generation=info.generation,
                    reason=reason,
                )

    def _note_loss(self, session: Session, verdict: LossVerdict) -> str:
        failure = session.loss_failure
        self.lost_reason = verdict.reason
        self._metrics.losses.labels(self.server, _label(failure)).inc()
        log().warning(
            "session_lost",
            server=self.server,
            agent=self.agent,
            generation=self.generation,
            reason=verdict.reason,
            judged_by=verdict.source,
            status=failure.status if failure else None,
            body=failure.body[:160] if failure else "",
        )
        return verdict.reason

    def _settle(self, failure: Failure | None) -> None:
        attempt, self._attempt = self._attempt, _Attempt()
        self._wanted = Signal()
        attempt.failure = failure
        attempt.done.set()


def _label(failure: Failure | None) -> str:
    if failure is None:
        return "unknown"
    return f"status_{failure.status}" if failure.status is not None else failure.code


def _closing(server: str) -> Failure:
    return Failure(server=server, phase=Phase.CONNECT, code="closing", detail="shutting down")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
