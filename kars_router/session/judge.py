"""What a failure says of a session of the stateless era: hardly ever that it is lost.

There is nothing on the server that could be gone. But the server itself may have been replaced by
one that speaks otherwise, and then the session is of no use. Must not know requests or streams.

Source: MCP 2026-07-28 "Versioning", "Streamable HTTP / Backward Compatibility".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import trio
from attrs import evolve

from kars_router.errors import CallFailed
from kars_router.model import Failure, LossVerdict
from kars_router.session.discovery import DISCOVER
from kars_router.session.eras import OTHER_REVISION, speaks_handshake
from kars_router.session.exchange import CLIENT_ERRORS, NO_REPLY
from kars_router.wire.envelope import UNSUPPORTED_VERSION

_PROBE_SECONDS: Final = 5.0


class Judged(Protocol):
    """The session, as far as it is judged."""

    @property
    def alive(self) -> bool:
        """See `Session.alive`."""
        ...

    async def request(self, method: str, params: bytes = b"", *, time_limit: float) -> bytes:
        """See `Session.request`."""
        ...

    def lose(self, verdict: LossVerdict, failure: Failure | None = None) -> None:
        """See `Session.lose`."""
        ...


class Judge:
    """The judge of one session.

    Args:
        session: the session.
        classify: judges failures that are no refusals, as for any session: the end of a channel,
            for example.
    """

    def __init__(self, session: Judged, classify: Callable[[Failure], LossVerdict]) -> None:
        self._session = session
        self._classify = classify
        self._checked: trio.Event | None = None

    async def judge(self, failure: Failure) -> bool:
        """Loses the session if a failure means that; whether it is lost.

        Cancellation leaves the question open.
        """
        session = self._session
        if failure.method == DISCOVER:
            return False  # whoever asked that judges by it
        # One odd answer to one call must not cut off all others: the server is asked again.
        if failure.rpc_code == UNSUPPORTED_VERSION:
            await self._check()
        elif failure.status in CLIENT_ERRORS:
            if failure.status not in NO_REPLY:
                await self._check()
        elif (verdict := self._classify(failure)).lost:
            session.lose(verdict, failure)
        return not session.alive

    async def _check(self) -> None:
        # A refusal may mean that another server has come in the place of this one. What it can do
        # is asked with nothing of an agent's in it; one answer serves all who doubt meanwhile.
        if self._checked is not None:
            await self._checked.wait()
            return
        self._checked = trio.Event()
        try:
            await self._session.request(DISCOVER, time_limit=_PROBE_SECONDS)
        except CallFailed as error:
            unknown = error.failure.rpc_code == UNSUPPORTED_VERSION
            if unknown or speaks_handshake(error.failure):
                self._lose_revision(error.failure)
        finally:
            self._checked.set()
            self._checked = None

    def _lose_revision(self, failure: Failure) -> None:
        verdict = LossVerdict(True, "the server speaks another revision of MCP now", "session")
        self._session.lose(verdict, evolve(failure, code=OTHER_REVISION))
