"""For how long a list of the stateless era may be kept before it is read again.

Must not know sessions, or whether a server says by itself that its lists have changed.

Source: MCP 2026-07-28 "Caching".
"""

from __future__ import annotations

import random
from typing import Final

from kars_router.wire import jsonrpc, raw

# If the server does not say, and whatever it says.
_USUAL: Final = 300.0
_SHORTEST: Final = 60.0
_LONGEST: Final = 86_400.0


def ttl_of(result: bytes) -> float | None:
    """For how many seconds a result stays fresh, as its server says; None if it says nothing."""
    value = (raw.fields(result) or {}).get("ttlMs")
    try:
        milliseconds = None if value is None else jsonrpc.decode(bytes(value))
        if isinstance(milliseconds, bool) or not isinstance(milliseconds, int | float):
            return None
        return milliseconds / 1000
    except (jsonrpc.MalformedError, OverflowError):  # a number that nothing here can hold
        return None


def poll_after(ttl: float | None) -> float:
    """After how many seconds a list is to be read again: a minute at least, and a day at most.

    Args:
        ttl: for how many seconds it stays fresh; None if the server does not say.
    """
    spread = 0.9 + random.random() / 5  # noqa: S311 - lest all routers ask at once
    return min(max(_USUAL if ttl is None else ttl, _SHORTEST), _LONGEST) * spread
