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
    """`--listener`: with which listener every router of a test is run."""
    parser.addoption(
        "--listener",
        choices=LISTENERS,
        help="the listener of every router; without it processes have their default, routers in "
        "the test's own process none, and tests for each listener run with each",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Hands `--listener` on to where routers are started, in processes of tests as well."""
    if chosen := config.getoption("--listener"):
        os.environ["KARS_TEST_LISTENER"] = chosen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests that ask for `each_listener` run with each, or with the one that `--listener` names."""
    if "each_listener" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--listener")
        metafunc.parametrize("each_listener", [chosen] if chosen else LISTENERS, indirect=True)


@pytest.fixture
def each_listener(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A listener, which the routers of this test have, in processes of their own or in this one."""
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
