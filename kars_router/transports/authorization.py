"""The credentials of one session: got once, renewed once for all who were refused together.

Owns which headers are the newest, and which ones may still be quoted by a server. Must not know
requests, responses or failures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import trio

from kars_router.errors import UserError
from kars_router.hookspecs import Credentials, LiveCredentials

_REMEMBERED: Final = 4
_NONE: Final[Mapping[str, str]] = {}


class Authorization:
    """The authentication headers of one session.

    Args:
        credentials: where they come from, or None if there are none.

    Attributes:
        refreshable: whether asking again could bring other ones.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self.refreshable = credentials is not None
        self._credentials = credentials
        self._live = credentials if isinstance(credentials, LiveCredentials) else None
        # The newest last; the ones before it may still come back in the answer to an older request.
        self._known: tuple[Mapping[str, str], ...] = ()  # a deque takes 760 bytes per session
        self._lock = trio.Lock()
        self._failures = 0
        self._failure = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The newest headers; empty before there are any.

        Read before anything is awaited, this very object is what `renew` takes as refused.
        """
        return self._known[-1] if self._known else _NONE

    async def ensure(self, *, urgent: bool = False) -> None:
        """See to it that there are headers, and that they are not known to be out of date.

        There is no checkpoint if nothing is to be done.

        Args:
            urgent: what is to be sent must not wait longer than it has to.

        Raises:
            UserError: there are none to be had.

        Cancellation leaves the attempt to the next one who needs it.
        """
        credentials = self._credentials
        if credentials is None:
            return
        newest = self.headers
        if self._known and (self._live is None or not self._live.stale(newest, urgent=urgent)):
            return
        await self._replace(newest, lambda: credentials.headers(refresh=False))

    async def renew(
        self, refused: Mapping[str, str], *, status: int = 401, challenge: str = ""
    ) -> bool:
        """Get others than those which the server refused, unless somebody did meanwhile.

        Requests that are refused together wait for one attempt, and share its failure too.

        Args:
            refused: the headers that were sent.
            status: what they were refused with.
            challenge: the `WWW-Authenticate` fields of the refusal; untrusted.

        Returns:
            whether there are others now, so that it is worth trying again.

        Raises:
            UserError: there are none to be had.

        Cancellation leaves the attempt to the next one who needs it.
        """
        credentials, live = self._credentials, self._live
        if credentials is None:
            return False

        def another() -> Awaitable[Mapping[str, str]]:
            if live is not None:
                return live.renew(refused, status=status, challenge=challenge)
            return credentials.headers(refresh=True)

        await self._replace(refused, another)
        # Those that cannot tell whether they changed anything get their second chance.
        return live is None or self.headers != refused

    async def _replace(
        self, old: Mapping[str, str], another: Callable[[], Awaitable[Mapping[str, str]]]
    ) -> None:
        if self.headers is not old:
            return
        failures = self._failures
        async with self._lock:
            if self.headers is not old:
                return
            if self._failures > failures:
                raise UserError(self._failure)
            try:
                found = await another()
            except UserError as error:
                self._failures += 1
                self._failure = str(error)
                raise
            # A copy is another object, even if it says the same: those who wait must not ask again.
            self._known = (*self._known, dict(found))[-_REMEMBERED:]

    def values(self) -> set[str]:
        """What must not be shown of them: each value, with and without its scheme."""
        found = set()
        for headers in self._known:
            for value in headers.values():
                found |= {value, value.partition(" ")[2]}  # the latter without "Bearer"
        return found
