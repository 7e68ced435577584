"""A nursery for what lives exactly as long as a `with` block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def open_owned_nursery(grace: float = 0.0) -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled when the block ends, or `grace` seconds later.

    Without a grace its tasks end there and then; with one they are waited for that long. A block
    that is left by an exception gives no grace.

    A single error leaves it bare, as it was raised, so that `pytest.raises` and a reader of a
    failed test see the error and not the group around it; several stay a group.
    """
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
            nursery.cancel_scope.deadline = trio.current_time() + grace
    except BaseExceptionGroup as group:
        if len(group.exceptions) != 1:
            raise
        error = group.exceptions[0]
    else:
        return
    raise error
