"""What is allowed but seldom meant."""

from __future__ import annotations

from typing import Any

import pytest

from kars_router.config.advice import advice
from kars_router.config.load import build

TOKEN = {"tokenFromEnv": "TOKEN"}


def paths(**settings: Any) -> list[str]:
    servers = {"box": {"url": "http://127.0.0.1:1/mcp"}}
    return [path for path, _ in advice(build({"servers": servers, **settings}))]


@pytest.mark.parametrize(
    "listen", ["0.0.0.0:8443", "[::]:1", "10.0.0.1:1", "router:1", "127.0.0.1.example:1"]
)
def test_a_listener_for_everybody_that_asks_for_nothing(listen: str) -> None:
    assert paths(listen=listen) == ["listen"]
    assert paths(listen=listen, agentAuth=TOKEN) == []


@pytest.mark.parametrize(
    "listen", ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/run/kars.sock"]
)
def test_a_listener_for_this_machine(listen: str) -> None:
    assert paths(listen=listen) == []


def test_the_default_is_for_this_machine() -> None:
    assert paths() == []
