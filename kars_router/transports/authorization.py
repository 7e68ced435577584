"""The credentials of one session: got once, refreshed once for all who were refused together.

Owns which headers are the newest, and which ones may still be quoted by a server. Must not know
requests, responses or failures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

import trio

from kars_router.errors import UserError
from kars_router.hookspecs import Credentials

_REMEMBERED: Final = 4


class Authorization:
    """The authentication headers of one session.

    Args:
        credentials: where they come from, or None if there are none.

    Attributes:
        generation: how many were got so far. Read before anything is awaited, it is that of the
            `headers` which are then sent.
        refreshable: whether asking again could bring other ones.
    """

    def __init__(self, credentials: Credentials | None) -> None:
        self.generation = 0
        self.refreshable = credentials is not None
        self._credentials = credentials
        # The newest last; the ones before it may still come back in the answer to an older request.
        self._known: deque[Mapping[str, str]] = deque(maxlen=_REMEMBERED)
        self._lock = trio.Lock()
        self._failures = 0
        self._failure = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The newest headers; empty before there are any."""
        return self._known[-1] if self._known else {}

    async def ensure(self, *, refused: int = 0) -> None:
        """See to it that there are headers newer than those of the generation `refused`.

        Requests that are refused together wait for one refresh, and share its failure too. There
        is no checkpoint if nothing is to be done.

        Raises:
            UserError: there are none to be had.

        Cancellation leaves the refresh to the next one who needs it.
        """
        if self._credentials is None or self.generation > refused:
            return
        failures = self._failures
        async with self._lock:
            if self.generation > refused:
                return
            if self._failures > failures:
                raise UserError(self._failure)
            try:
                self._known.append(await self._credentials.headers(refresh=refused > 0))
            except UserError as error:
                self._failures += 1
                self._failure = str(error)
                raise
            self.generation += 1

    def values(self) -> set[str]:
        """What must not be shown of them: each value, with and without its scheme."""
        found = set()
        for headers in self._known:
            for value in headers.values():
                found |= {value, value.partition(" ")[2]}  # the latter without "Bearer"
        return found
