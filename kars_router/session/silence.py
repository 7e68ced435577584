"""When streams that ought to say something are looked at: one task for all sessions of a server.

Must not know what a stream is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import trio

from kars_router.session.base import Session


async def watch_silence(seconds: float, sessions: Callable[[], Collection[Session]]) -> None:
    """Has each session checked when its stream has been silent for too long, until cancelled.

    Args:
        seconds: how long a stream may be silent; a new one is not due before.
        sessions: the sessions at the moment.
    """
    while True:
        latest = trio.current_time() + seconds
        await trio.sleep_until(min([latest, *(session.silent_at for session in sessions())]))
        for session in sessions():
            if session.silent_at <= trio.current_time():
                session.check_silence()
