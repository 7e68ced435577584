"""The suite, the SDK and the fixture servers, each installed or started once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest
from conformance.suite import Suite, install
from peers import free_port, start_peer, venv_peer

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def suite() -> Suite:
    return install()


@pytest.fixture(scope="session")
def sdk() -> Path:
    """Python of an environment with the official SDK that speaks both eras."""
    return venv_peer("python-sdk-2", ["mcp>=2,<3"])


@pytest.fixture(scope="session")
def fixture_server(
    sdk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], str]]:
    """URL of the server that has everything the suite asks for, by the eras that it serves.

    They are `dual`, `handshake` and `stateless`; each is started when it is first asked for.
    """
    with ExitStack() as stack:

        @cache
        def start(eras: str) -> str:
            port = free_port()
            program = HERE / "servers" / "fixture_server.py"
            log = tmp_path_factory.mktemp("server") / "server.log"
            stack.enter_context(
                start_peer([sdk, program, str(port), eras], port=port, log_path=log)
            )
            return f"http://127.0.0.1:{port}/mcp"

        yield start
