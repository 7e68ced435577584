"""The command line of `kars mcp`, for those of its tests that need a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from unit.cli.kubeconfig_kit import write_kubeconfig
from unit.cli.mcp_kit import Bench

from kars_router.testing import serve
from kars_router.testing.kube import FakeCluster


@pytest.fixture
async def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Bench]:
    cluster = FakeCluster()
    async with serve(cluster) as url:
        yield Bench(cluster, write_kubeconfig(tmp_path / "kubeconfig", url.rstrip("/")), capsys)
