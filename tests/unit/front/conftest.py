"""A router in front of one scripted server, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from agent_kit import Bench, open_bench
from trio.testing import MockClock


@pytest.fixture
async def bench(autojump_clock: MockClock) -> AsyncIterator[Bench]:
    async with open_bench() as one:
        yield one
