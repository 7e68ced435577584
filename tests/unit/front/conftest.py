"""A router in front of one scripted server, on virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from agent_kit import Bench, open_bench
from trio.testing import MockClock


def _run_on_virtual_time(*args: Any, clock: MockClock | None = None, **more: Any) -> Any:
    return trio.run(*args, clock=clock or MockClock(autojump_threshold=0), **more)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A test that asks for one of these alone would get the real clock: pytest-trio looks for a
    # clock among the test's own arguments only.
    for item in items:
        ours = item.path.is_relative_to(Path(__file__).parent)
        if ours and {"bench", "place"} & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.trio(run=_run_on_virtual_time))


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with open_bench() as one:
        yield one
