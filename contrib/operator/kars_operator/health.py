"""The operator's own address: `/healthz`, `/readyz` and `/metrics`.

Owns three answers. Must not know Kubernetes. Nothing here changes anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from typing import Any, Final

import trio
from hypercorn.config import Config
from hypercorn.trio import serve

from kars_router.errors import UserError
from kars_router.telemetry import METRICS_TYPE, server_logger

_TEXT: Final = "text/plain; charset=utf-8"
_Message = MutableMapping[str, Any]


def application(*, waiting: Callable[[], str], metrics: Callable[[], bytes]) -> Any:
    """The ASGI application.

    Args:
        waiting: what the operator still waits for before it is ready; "" if for nothing.
        metrics: the metrics.
    """

    async def app(
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        if scope["type"] == "lifespan":
            await _follow(receive, send)
        if scope["type"] != "http":
            return
        status, kind, body = 404, _TEXT, b"there are /healthz, /readyz and /metrics\n"
        if scope["method"] not in {"GET", "HEAD"}:
            status, body = 405, b"only GET\n"
        elif scope["path"] == "/metrics":
            status, kind, body = 200, METRICS_TYPE, metrics()
        elif scope["path"] in {"/healthz", "/readyz"}:
            # That it answers is all that its health is: what is wrong elsewhere no restart mends.
            wrong = waiting() if scope["path"] == "/readyz" else ""
            status, body = (503, wrong.encode()) if wrong else (200, b"ok")
        headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        if scope["method"] == "HEAD":
            body = b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def run(
    app: Any, address: str, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    """Serves until cancelled; started with the URL that it answers at.

    Args:
        app: the application.
        address: `HOST:PORT`; port 0 is any free one.
        task_status: told the URL.

    Raises:
        UserError: the address cannot be used.
    """
    config = Config()
    config.bind = [address]
    config.accesslog = None
    config.errorlog = server_logger()
    config.graceful_timeout = 1.0
    try:
        async with trio.open_nursery() as nursery:
            (url,) = await nursery.start(
                partial(serve, app, config, shutdown_trigger=trio.sleep_forever)
            )
            task_status.started(url)
    except* OSError as group:
        reason = _first(group).strerror
        raise UserError(f"--health {config.bind[0]}: cannot listen there: {reason}") from group


def _first(group: BaseExceptionGroup[OSError]) -> OSError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _follow(
    receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
) -> None:
    while True:
        kind = (await receive())["type"].removeprefix("lifespan.")
        await send({"type": f"lifespan.{kind}.complete"})
        if kind == "shutdown":
            return
