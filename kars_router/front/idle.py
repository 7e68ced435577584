"""How long a connection may be idle.

Owns the one task for it. Must not know what a connection is, nor what closing it takes.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio


class _Event(Protocol):
    """What of hypercorn's events is used."""

    async def wait(self) -> None: ...

    def is_set(self) -> bool: ...


class IdleTimer:
    """Ends a connection that has been idle for too long, or is idle when the server stops.

    It stands for hypercorn's task, which is made anew for every request. This is one task for the
    whole life of a connection, and a request only notes when it would be over: the task looks at
    that when the time is up which it has last gone to sleep with.

    Args:
        seconds: how long a connection may be idle.
        terminated: set once the server stops.
    """

    def __init__(self, seconds: float, terminated: _Event) -> None:
        self._seconds = seconds
        self._terminated = terminated
        self._deadline = math.inf
        self._scope = trio.CancelScope()
        self._over = False

    def resume(self) -> None:
        """The connection is idle from now on."""
        self._deadline = trio.current_time() + self._seconds
        self._scope.deadline = min(self._scope.deadline, self._deadline)

    def pause(self) -> None:
        """The connection is not idle."""
        self._deadline = math.inf

    def end(self) -> None:
        """There is nothing to watch any more."""
        self._over = True
        self._scope.cancel()

    async def run(self, close: Callable[[], Awaitable[None]]) -> None:
        """Watches until the connection is to be closed, or there is nothing to watch any more.

        Args:
            close: closes the connection; is called once at most, and not when this is cancelled.
        """
        while True:
            with self._scope:
                await self._terminated.wait()
            if self._over:
                return
            stopping = self._terminated.is_set()
            if self._deadline < math.inf and (stopping or self._deadline <= trio.current_time()):
                with trio.CancelScope(shield=True):  # closing waits for nothing
                    await close()
                return
            if stopping:
                return  # the response under way is the last one
            # It was not idle meanwhile, or a request came at the last moment.
            self._scope = trio.CancelScope(deadline=self._deadline)
