"""Which era a server is of: asked once, remembered for a while, asked again when it proves wrong.

The one place that picks a strategy. Owns what counts as evidence: only what a server says of
itself does, never that it could not be reached, was busy or wanted other credentials. Must not
know what either strategy sends.

Source: MCP 2026-07-28 "Streamable HTTP / Backward Compatibility", "Versioning".
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

import trio

from kars_router.config.schema import Era
from kars_router.errors import HandshakeError
from kars_router.model import Failure
from kars_router.session.base import Session
from kars_router.telemetry import log
from kars_router.wire import eras, jsonrpc
from kars_router.wire.envelope import HEADER_MISMATCH, MISSING_CAPABILITY, UNSUPPORTED_VERSION

LIFETIME: Final = 86_400.0
# The code of a failure that says that the server speaks none of the revisions of a strategy.
OTHER_REVISION: Final = "other_revision"

# A status that says something about the request, the credentials or the moment, not the server.
_NO_EVIDENCE: Final = frozenset({401, 403, 408, 429})
# What a server of the stateless era finds wrong with a message that has no envelope.
_STATELESS_ERRORS: Final = (
    HEADER_MISMATCH,
    UNSUPPORTED_VERSION,
    jsonrpc.INVALID_PARAMS,
    jsonrpc.METHOD_NOT_FOUND,
)
_CLIENT_ERRORS: Final = range(400, 500)
# The probe, the other era, and the probe once more if the other one is refused, too.
_MOST_ATTEMPTS: Final = 3

Opener = Callable[[], AbstractAsyncContextManager[Session]]


class Order(enum.Enum):
    """Which strategy is tried first where nothing is known.

    Over HTTP a server of the handshake era answers a probe with an error and lives on. One that
    is spoken to over a single channel may end at a first message that it does not know.
    """

    STATELESS_FIRST = "stateless first"
    HANDSHAKE_FIRST = "handshake first"
    HANDSHAKE_ONLY = "handshake only"


class Verdict:
    """What is known of one server's era, for all of its sessions.

    Args:
        pinned: the era that the configuration says; it is never doubted. None if it says none.
        lifetime: seconds after which a server is asked again, as it may have been upgraded.
    """

    def __init__(self, pinned: Era | None, lifetime: float = LIFETIME) -> None:
        self.pinned = pinned
        self._lifetime = lifetime
        self._known: Era | None = None
        self._until = 0.0

    @property
    def current(self) -> Era | None:
        """The server's era; None if it has to be asked."""
        if self.pinned is not None:
            return self.pinned
        if self._known is not None and trio.current_time() >= self._until:
            self._known = None
        return self._known

    def learn(self, era: Era) -> None:
        """Remembers an era from now on; what was known already does not get younger."""
        if self.pinned is None and era is not self.current:
            self._known, self._until = era, trio.current_time() + self._lifetime

    def forget(self) -> None:
        """Has the server asked again."""
        self._known = None


@asynccontextmanager
async def open_by_era(
    verdict: Verdict,
    *,
    handshake: Opener,
    stateless: Opener,
    order: Order = Order.STATELESS_FIRST,
) -> AsyncIterator[Session]:
    """Opens a session by the strategy that the server needs.

    Args:
        verdict: what is known of the server; kept up to date.
        handshake: opens a session of the handshake era.
        stateless: opens one of the stateless era.
        order: which one is tried first where nothing is known.

    Yields:
        the session.

    Raises:
        HandshakeError: no session could be set up; what is known of the era stays unless the
            failure proves it wrong.
    """
    openers = {Era.HANDSHAKE: handshake, Era.STATELESS: stateless}
    first = Era.STATELESS if order is Order.STATELESS_FIRST else Era.HANDSHAKE
    era = verdict.current or first
    fixed = verdict.pinned is not None or order is Order.HANDSHAKE_ONLY
    attempts = 0
    session: Session | None = None
    while session is None:
        attempts += 1
        try:
            async with openers[era]() as session:
                verdict.learn(era)
                try:
                    yield session
                finally:
                    failure = session.loss_failure
                    if failure is not None and failure.code == OTHER_REVISION:
                        verdict.forget()
        except HandshakeError as error:
            # Once there is a session, it is not the opening that has failed.
            other = _other(era, error.failure) if session is None else None
            if other is None or fixed or attempts == _MOST_ATTEMPTS:
                raise
            log().debug("other_era", era=other.value, failure=error.failure.summary())
            verdict.forget()
            era = other


def _other(era: Era, failure: Failure) -> Era | None:
    if era is Era.STATELESS:
        return Era.HANDSHAKE if speaks_handshake(failure) else None
    return Era.STATELESS if speaks_stateless(failure) else None


def speaks_handshake(failure: Failure) -> bool:
    """Whether the way in which a probe of the stateless era failed proves the handshake era."""
    if failure.code == OTHER_REVISION:
        return True
    status = failure.status
    if status is not None and (status in _NO_EVIDENCE or status >= 500):
        return False
    if failure.rpc_code == UNSUPPORTED_VERSION:
        named = supported(failure.rpc_error)
        return any(eras.is_usable(revision) for revision in named)
    if failure.rpc_code is not None:
        return failure.rpc_code not in (HEADER_MISMATCH, MISSING_CAPABILITY)
    return status in _CLIENT_ERRORS


def speaks_stateless(failure: Failure) -> bool:
    """Whether the way in which `initialize` failed calls for a probe of the stateless era."""
    if failure.status is not None and (failure.status in _NO_EVIDENCE or failure.status >= 500):
        return False
    asked = failure.rpc_code in (UNSUPPORTED_VERSION, jsonrpc.METHOD_NOT_FOUND)
    return asked or refuses_handshake(failure)


def refuses_sessions(failure: Failure) -> bool:
    """Whether `initialize` failed because the server knows no sessions, and not for the moment."""
    if failure.status in _NO_EVIDENCE:
        return False
    return failure.status in _CLIENT_ERRORS or failure.rpc_code is not None


def refuses_handshake(failure: Failure) -> bool:
    """Whether a message of the handshake era was refused as a server of the other one would."""
    return failure.status in _CLIENT_ERRORS and failure.rpc_code in _STATELESS_ERRORS


def supported(error: bytes) -> list[str]:
    """The revisions that a server says it speaks, in an error object; none if it says nothing."""
    try:
        value: Any = jsonrpc.decode(error)
        found = value["data"]["supported"]
    except (jsonrpc.MalformedError, LookupError, TypeError):
        return []
    return [one for one in found if isinstance(one, str)] if isinstance(found, list) else []
