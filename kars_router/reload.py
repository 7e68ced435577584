"""Applies a changed configuration file, or a changed lock of tools, while the router runs.

An invalid one is refused and reported, and what was in force stays so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import trio

from kars_router.config.load import changed_servers, load
from kars_router.config.schema import Config
from kars_router.errors import ConfigError, PluginError
from kars_router.service import Router
from kars_router.telemetry import log

_POLL_SECONDS = 2.0

Stamp = tuple[int, int, int] | None


async def watch(
    router: Router,
    path: Path,
    upstreams: Sequence[str] = (),
    overrides: Mapping[str, object] | None = None,
    *,
    seen: Sequence[Stamp] = (),
    poll: float = _POLL_SECONDS,
) -> None:
    """Applies the file each time that it or the lock of tools changes, until cancelled.

    Args:
        router: the running router.
        path: the file; a Kubernetes ConfigMap's symbolic links are followed anew each time.
        upstreams: what the command line added to the file at the start.
        overrides: what the command line replaced in it.
        seen: the stamps of the file and of the lock, each taken before it was read at the start;
            without them the first look reads the file again.
        poll: seconds between looks.
    """
    read = partial(load, path, upstreams=upstreams, overrides=overrides, environ=os.environ)
    before = [*seen]
    refused: list[str] = []
    while True:
        await trio.sleep(poll)
        now = [stamp(path), stamp(router.config.tools_lock)]
        # What is wrong may be mended elsewhere, in a file that only the refused one names.
        if now == before and not refused:
            continue
        same, before = now == before, now
        problems = await _take_over(router, path, read, was_refused=bool(refused))
        if problems and not (same and problems == refused):
            router.metrics.reloads.labels("refused").inc()
            router.refuse(problems)
            log().error("reload_refused", file=str(path), problems=problems)
        refused = problems


async def _take_over(
    router: Router, path: Path, read: Callable[[], Config], *, was_refused: bool
) -> list[str]:
    """Applies the file if it differs from what is in force; returns what is wrong with it."""
    try:
        config = await trio.to_thread.run_sync(read)
        if config == router.config:
            if was_refused:
                log().info("reload_unchanged", file=str(path))
                router.refuse(())
            return []
        changes = changed_servers(router.config, config)
        await router.apply(config)
    except ConfigError as error:
        return list(error.problems)
    except PluginError as error:
        return [str(error)]
    router.metrics.reloads.labels("applied").inc()
    log().info(
        "reload_applied",
        file=str(path),
        added=changes.added,
        removed=changes.removed,
        changed=changes.changed,
    )
    return []


def stamp(path: Path | None) -> Stamp:
    """What tells a version of a file from the next; None if there is no file.

    It asks the system at once: that takes microseconds, and a thread for it would cost half a
    megabyte and two wake-ups, over and over.
    """
    if path is None:
        return None
    try:
        stat = path.stat()
    except OSError:
        return None  # between two versions, usually; loading says what is wrong if it stays
    return stat.st_ino, stat.st_mtime_ns, stat.st_size
