"""Events that many objects have and few tasks wait for.

Must not know what has happened.
"""

from __future__ import annotations

import trio


class Signal:
    """A `trio.Event` that takes a fifth of its memory until somebody waits for it."""

    __slots__ = ("_event", "_is_set")

    def __init__(self) -> None:
        self._is_set = False
        self._event: trio.Event | None = None

    def is_set(self) -> bool:
        """Whether it has happened."""
        return self._is_set

    def set(self) -> None:
        """Notes that it has, and wakes whoever waits; never waits."""
        self._is_set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Waits until it has happened. Cancellation changes nothing."""
        if self._event is None:
            self._event = trio.Event()
            if self._is_set:
                self._event.set()
        await self._event.wait()
