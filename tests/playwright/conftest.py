"""Servers, pages and controls for the tests of this folder, each started once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack

import pytest
import trio
from peers import RunningRouter, run_router

from playwright import servers
from playwright.controls import Controls, run_controls
from playwright.routed import configuration
from playwright.servers import NEW, OLD, VERSIONS, BrowserServer


@pytest.fixture(scope="session")
def pages() -> Iterator[str]:
    with servers.pages() as url:
        yield url


@pytest.fixture(scope="session")
def browsers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, BrowserServer]]:
    """A server of each version, by version."""
    with ExitStack() as stack:
        yield {
            version: stack.enter_context(
                servers.browser_server(version, tmp_path_factory.mktemp("browser"))
            )
            for version in VERSIONS
        }


@pytest.fixture(scope="session")
def controls(browsers: Mapping[str, BrowserServer], pages: str) -> Controls:
    return trio.run(run_controls, browsers[OLD], browsers[NEW], f"{pages}/apples")


@pytest.fixture(scope="session")
def router(
    controls: Controls,
    browsers: Mapping[str, BrowserServer],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningRouter]:
    """A router before both servers; only if these servers do reap naive clients."""
    controls.require_reaped()
    configured = configuration(*browsers.values())
    with run_router(configured, tmp_path_factory.mktemp("router")) as running:
        yield running
