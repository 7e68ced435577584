"""`kars run`: the router in the foreground, until SIGTERM or SIGINT."""

from __future__ import annotations

import gc
import linecache
import os
import resource
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import click

from kars_router.cli.examples import examples
from kars_router.cli.loading import loading, passing

# httpx has a command line, structlog a way to frame tracebacks and loggers for asyncio, hypercorn
# HTTP/2, prometheus_client a web server, importlib.metadata lists of files: 9 MiB that no router
# uses.
_WITHOUT: Final = ("pygments", "rich")
_LATER: Final = (
    *("asyncio", "h2", "h2.connection", "h2.events", "h2.exceptions", "priority"),
    *("csv", "html"),
)
# A file in YAML takes its parser, 1.5 MiB, and no more of it than what is in Python: an extension
# module would hold on to the rest.
_ONCE: Final = ("kars_router.config.yaml_document", "ruamel")
_UNUSED_PARSERS: Final = ("_ruamel_yaml", "_ruamel_yaml_clibz")

with loading(without=_WITHOUT, later=_LATER):
    import trio

    from kars_router.config.load import DEFAULT_FILE, default_path, load
    from kars_router.config.schema import Config, Listener
    from kars_router.errors import UserError
    from kars_router.reload import stamp, watch
    from kars_router.service import Router, open_router
    from kars_router.telemetry import configure_logging, log


@click.command(
    "run",
    epilog=examples(
        ("With ./kars.yaml, or what $KARS_CONFIG names", "kars run"),
        (
            "Without a file: one server, all of its tools",
            "kars run --upstream web=http://127.0.0.1:3000/mcp",
        ),
        (
            "Where a file is, and where agents are served",
            "kars run -c /etc/kars/kars.yaml --listen 127.0.0.1:8443",
        ),
    ),
)
@click.option(
    "-c",
    "--config",
    "file",
    type=click.Path(path_type=Path),
    help="The configuration; without it $KARS_CONFIG or ./kars.yaml.",
)
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="NAME=URL",
    help="A server with all of its tools; may be repeated, and is enough without a file.",
)
@click.option("--listen", metavar="HOST:PORT", help="Where agents are served.")
@click.option("--admin", metavar="HOST:PORT", help="Where health, metrics and status are served.")
@click.option(
    "--listener",
    type=click.Choice([choice.value for choice in Listener]),
    help="What speaks HTTP at both: hypercorn (the default), or lean, which is plain HTTP/1.1 for "
    "neighbours and costs less.",
)
def command(
    *,
    file: Path | None,
    upstreams: tuple[str, ...],
    listen: str | None,
    admin: str | None,
    listener: str | None,
) -> None:
    """Run the router.

    SIGTERM and SIGINT end it in order: no new calls, calls in flight finish within shutdownGrace,
    upstream sessions are deleted. A second signal cuts the waiting for calls short.
    """
    path = file if file is not None else default_path(os.environ)
    if path is None and not upstreams:
        raise UserError(
            f"there is no {DEFAULT_FILE} here; name one with -c or KARS_CONFIG, "
            "or give --upstream NAME=URL"
        )
    given = {"listen": listen, "admin": admin, "listener": listener}
    overrides = {k: v for k, v in given.items() if v is not None}
    file_seen = stamp(path)
    with passing(*_ONCE), loading(without=_UNUSED_PARSERS):
        config = load(path, upstreams=upstreams, overrides=overrides, environ=os.environ)
    seen = (file_seen, stamp(config.tools_lock))
    configure_logging(level=config.log.level.value, style=config.log.format.value)
    _raise_file_limit()
    if config.listener is Listener.HYPERCORN:
        # It would be loaded when it is used, with all that it takes along.
        with loading(without=_WITHOUT, later=_LATER):
            import kars_router.front.hypercorn_server  # noqa: F401
    # The sources of what attrs and cattrs have generated, for tracebacks only: 0.7 MiB.
    linecache.clearcache()
    follow = None
    if path is not None and config.reload:
        follow = partial(watch, path=path, upstreams=upstreams, overrides=overrides, seen=seen)
    trio.run(_run, config, follow)


def _raise_file_limit() -> None:
    # The soft limit is low for the sake of programs that use select(); Trio does not.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _run(config: Config, follow: Callable[[Router], Awaitable[None]] | None) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as outer:
            stop = trio.Event()
            async with open_router(config) as router, trio.open_nursery() as inner:
                # What is there now stays, so that no later collection needs to look at it.
                gc.freeze()
                # Outlives the router's nurseries on purpose: a second signal comes as they end.
                outer.start_soon(_heed, signals, stop, router)  # noqa: ASYNC111
                if follow is not None:
                    inner.start_soon(follow, router)
                await stop.wait()
                inner.cancel_scope.cancel()
            outer.cancel_scope.cancel()


async def _heed(signals: AsyncIterator[int], stop: trio.Event, router: Router) -> None:
    # The first signal is a request, the second one means it.
    async for number in signals:
        log().info("signal", name=signal.Signals(number).name)
        if stop.is_set():
            router.hurry()
        stop.set()
