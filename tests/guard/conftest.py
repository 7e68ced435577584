"""A pod and the world, with and without rules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from guard.network import Network, needs, open_network


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    needs()
    with open_network(tmp_path) as made:
        yield made
