"""What every test gets: settings that make a failure repeatable, and logging of its own."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The same examples on every run and no deadline: a busy machine must not decide a test's outcome.
settings.register_profile(
    "repeatable",
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
# To look for new counterexamples: pytest --hypothesis-profile=search
settings.register_profile("search", deadline=None, max_examples=2000)
settings.load_profile("repeatable")

LISTENERS = ("hypercorn", "lean")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--listener`: with which listener tests that do not say run the router as a process."""
    parser.addoption("--listener", choices=LISTENERS, help="the router's listener, its own if none")


def pytest_configure(config: pytest.Config) -> None:
    """Hands `--listener` on to where routers are started, in processes of tests as well."""
    if chosen := config.getoption("--listener"):
        os.environ["KARS_TEST_LISTENER"] = chosen


@pytest.fixture(params=LISTENERS)
def each_listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test once with each listener of the router that it starts as a process."""
    monkeypatch.setenv("KARS_TEST_LISTENER", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """Undoes what a command that ran in this process did to logging."""
    handlers = list(logging.getLogger().handlers)
    yield
    # Environments that only check the project's own files have no structlog.
    if (structlog := sys.modules.get("structlog")) is not None:
        structlog.reset_defaults()
    logging.getLogger().handlers[:] = handlers
