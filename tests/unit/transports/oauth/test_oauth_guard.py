"""Authorization servers are looked up and connected to as servers are: not by any name anywhere."""

from __future__ import annotations

import re

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked
from unit.transports.network_kit import Network
from unit.transports.oauth.oauth_kit import SECRET, SETTINGS

from kars_router.config.auth import AgentAuth, Jwt
from kars_router.front.auth import AgentGate
from kars_router.telemetry import Metrics
from kars_router.transports.oauth.credentials import source_for
from kars_router.transports.oauth.errors import TokenError

INSIDE = ["127.0.0.1", "10.0.0.7", "fd00::7", "::ffff:10.0.0.7", "64:ff9b::a00:7", "169.254.1.1"]
REFUSED = r"as\.test may be used: \S+ is "


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", SECRET)


@pytest.mark.parametrize("address", INSIDE)
async def test_no_issuer_of_tokens_leads_into_the_cluster(address: str) -> None:
    net = Network(names={"as.test": [[address]]}).install()
    with trio.fail_after(10), pytest.raises(TokenError, match=REFUSED):
        await source_for(SETTINGS, "https://mcp.test/mcp").get()
    assert net.looked_up == ["as.test"]
    assert net.tried == []


@pytest.mark.parametrize("address", INSIDE)
async def test_no_issuer_of_agents_tokens_leads_into_the_cluster(address: str) -> None:
    net = Network(names={"as.test": [[address]]}).install()
    settings = Jwt(issuer="https://as.test", audience=("me",))
    with trio.fail_after(10), capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(AgentGate(AgentAuth(jwt=settings), Metrics()).run)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    reasons = [each["reason"] for each in logs if each["event"] == "agent_keys_unavailable"]
    assert len(reasons) == 1
    assert re.search(REFUSED, reasons[0])
    assert set(net.looked_up) == {"as.test"}
    assert net.tried == []
