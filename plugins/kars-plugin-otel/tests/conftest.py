from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from kars_plugin_otel.testing import Collector


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of whoever runs the tests tells the SDK what to do."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    # Real sockets on loopback, whatever proxies are set.
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector.running() as running:
        yield running
