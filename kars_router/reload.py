"""Applies a changed configuration file while the router runs.

An invalid file is refused and reported, and the old configuration stays in force.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from kars_router.config.load import changed_servers, load
from kars_router.errors import ConfigError
from kars_router.service import Router
from kars_router.telemetry import log

_POLL_SECONDS = 2.0


async def watch(
    router: Router,
    path: Path,
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    *,
    poll: float = _POLL_SECONDS,
) -> None:
    """Applies the file each time it changes, until cancelled.

    Args:
        router: the running router.
        path: the file; a Kubernetes ConfigMap's symbolic links are followed anew each time.
        upstreams: what the command line added to the file at the start.
        overrides: what the command line replaced in it.
        poll: seconds between looks.
    """
    # The file may have changed since it was read at the start, so the first look reads it.
    seen: tuple[int, int, int] | None = None
    refused = False
    while True:
        await trio.sleep(poll)
        now = await _stamp(path)
        if now == seen:
            continue
        seen = now
        try:
            config = await trio.to_thread.run_sync(
                partial(load, path, upstreams=upstreams, overrides=overrides, environ=os.environ)
            )
        except ConfigError as error:
            router.metrics.reloads.labels("refused").inc()
            refused = True
            log().error("reload_refused", file=str(path), problems=list(error.problems))
            continue
        if config == router.config:
            if refused:
                log().info("reload_unchanged", file=str(path))
            refused = False
            continue
        refused = False
        changes = changed_servers(router.config, config)
        await router.apply(config)
        router.metrics.reloads.labels("applied").inc()
        log().info(
            "reload_applied",
            file=str(path),
            added=changes.added,
            removed=changes.removed,
            changed=changes.changed,
        )


async def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = await trio.Path(path).stat()
    except OSError:
        return None  # between two versions, usually; loading says what is wrong if it stays
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
