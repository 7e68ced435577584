"""Who is told of the life of upstream sessions: plugins, and the record.

Must not know what a session is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define

from kars_router.model import SessionInfo
from kars_router.plugins import Plugins

Note = Callable[..., None]


def _nothing(_event: str, **_fields: Any) -> None:
    """Nothing is recorded."""


@define(eq=False)
class Observer:
    """Tells everybody who wants to know.

    Attributes:
        plugins: the loaded plugins.
        note: writes a record; takes the event and its fields.
    """

    plugins: Plugins
    note: Note = _nothing

    def opened(self, session: SessionInfo) -> None:
        """A session has been opened."""
        self.plugins.session_opened(session)
        self._note("session_opened", session)

    def lost(self, session: SessionInfo, reason: str) -> None:
        """A session was lost; its end follows."""
        self.plugins.session_lost(session, reason)
        self._note("session_lost", session, reason)

    def restored(self, session: SessionInfo, reason: str) -> None:
        """A session has taken the place of one that was lost for this reason."""
        self.plugins.session_restored(session, reason)
        self._note("session_restored", session, reason)

    def closed(self, session: SessionInfo, reason: str) -> None:
        """A session has ended."""
        self.plugins.session_closed(session, reason)
        self._note("session_closed", session, reason)

    def _note(self, event: str, session: SessionInfo, reason: str = "") -> None:
        fields = {"reason": reason} if reason else {}
        self.note(
            event,
            server=session.server,
            agent=session.agent,
            generation=session.generation,
            **fields,
        )
