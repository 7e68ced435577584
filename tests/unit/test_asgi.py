"""`kars_router.asgi` where it cannot run; where it can, tests/e2e/test_hypercorn.py runs it."""

from __future__ import annotations

import contextlib
from collections.abc import MutableMapping
from typing import Any

from kars_router.asgi import app


def test_without_trio_it_says_what_is_missing() -> None:
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "lifespan.startup"}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    # Nothing waits here, so any event loop would do; none will do, too.
    coroutine = app({"type": "lifespan"}, receive, send)
    with contextlib.suppress(StopIteration):
        coroutine.send(None)
    assert sent == [
        {
            "type": "lifespan.startup.failed",
            "message": "the router runs on Trio only: start hypercorn with -k trio",
        }
    ]
