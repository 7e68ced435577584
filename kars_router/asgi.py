"""The router as an ASGI application for a plain `hypercorn -k trio kars_router.asgi:app`.

The configuration is named by `KARS_CONFIG`. The router lives in the application's lifespan here,
since hypercorn owns the process; `kars run` does not depend on that. The worker learns of SIGTERM
through hypercorn's own event, so that streams end and calls finish within its graceful time-out.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import trio

from kars_router.config.load import load
from kars_router.errors import KarsError, UserError
from kars_router.front.exchange import Receive, Scope, Send
from kars_router.reload import watch
from kars_router.service import Router, open_router
from kars_router.telemetry import configure_logging, log

_POLL_SECONDS = 0.1


class _App:
    def __init__(self) -> None:
        self._router: Router | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif self._router is not None:
            await self._router.app(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        try:
            trio.lowlevel.current_task()
        except RuntimeError:
            text = "the router runs on Trio only: start hypercorn with -k trio"
            await receive()
            await send({"type": "lifespan.startup.failed", "message": text})
            return
        await receive()
        try:
            path = os.environ.get("KARS_CONFIG")
            if not path:
                raise UserError("KARS_CONFIG must name the configuration file")
            config = load(Path(path), environ=os.environ)
            configure_logging(level=config.log.level.value, style=config.log.format.value)
            async with open_router(config, serve=False) as router, trio.open_nursery() as nursery:
                self._router = router
                nursery.start_soon(_watch_shutdown, router)
                if config.reload:
                    nursery.start_soon(watch, router, Path(path))
                await send({"type": "lifespan.startup.complete"})
                await receive()
                nursery.cancel_scope.cancel()
        except KarsError as error:
            configure_logging()
            # hypercorn wraps the sentence in a traceback.
            file = os.environ.get("KARS_CONFIG", "")
            log().error("startup_failed", problem=str(error), file=file)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.shutdown.complete"})


async def _watch_shutdown(router: Router) -> None:
    # hypercorn's worker gets the master's event as an argument of its process and polls it like
    # this; without it an open stream would hold the worker up until it is cut off. Where the
    # event cannot be found, shutdown begins with the lifespan's end instead.
    event: Any = getattr(multiprocessing.current_process(), "_kwargs", {}).get("shutdown_event")
    if event is None:
        return
    while not event.is_set():  # noqa: ASYNC110 - an event of another process
        await trio.sleep(_POLL_SECONDS)
    await router.drain()


app = _App()
