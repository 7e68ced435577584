"""A real authorization server, a real server that wants its tokens, and the router between."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from attrs import frozen
from peers import RunningRouter, free_port, log_events, run_router, start_peer, venv_peer

from kars_router.testing import PlainAgent, text_of

SERVERS = Path(__file__).parent / "servers"
SECRET = "s3cret/with+signs"
ENV = {"CLIENT_ID": "router", "CLIENT_SECRET": SECRET}
BY_CREDENTIALS = {
    "clientIdFromEnv": "CLIENT_ID",
    "clientSecretFromEnv": "CLIENT_SECRET",
    "scopes": ["mcp"],
}


@frozen
class Site:
    """An authorization server and a server that it issues tokens for."""

    issuer: str
    url: str

    def told(self, **said: Any) -> dict[str, Any]:
        """Tells the authorization server something; returns its requests and its tokens."""
        url = self.issuer.replace("/realms/test", "/told")
        with httpx.Client(trust_env=False) as client:
            answer: dict[str, Any] = client.post(url, json=said).json()
        return answer

    def digests(self) -> set[str]:
        """What the server shows of each token that was issued."""
        tokens = self.told()["tokens"]
        return {hashlib.sha256(f"Bearer {token}".encode()).hexdigest() for token in tokens}

    def config(self, **oauth: Any) -> dict[str, Any]:
        """A configuration with that server."""
        box = {"url": self.url, "allowedTools": ["*"], "era": "handshake", "oauth": oauth}
        return {"servers": {"box": box}}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    ports = free_port(), free_port()
    issuer = f"http://127.0.0.1:{ports[0]}/realms/test"
    oauth = venv_peer("oauth", ["authlib", "flask"])
    sdk = venv_peer("python-sdk-2", ["mcp>=2,<3"])
    issuing = [str(oauth), str(SERVERS / "oauth_server.py"), str(ports[0])]
    serving = [str(sdk), str(SERVERS / "python_2_protected.py"), str(ports[1]), issuer]
    with (
        start_peer(issuing, port=ports[0], log_path=tmp_path / "oauth.log"),
        start_peer(serving, port=ports[1], log_path=tmp_path / "server.log"),
    ):
        yield Site(issuer, f"http://127.0.0.1:{ports[1]}/mcp")


@asynccontextmanager
async def agent_at(router: RunningRouter) -> AsyncIterator[PlainAgent]:
    """An agent with a token of its own, which is nobody else's business."""
    headers = {"authorization": "Bearer the-agents-own"}
    async with httpx.AsyncClient(timeout=30, headers=headers, trust_env=False) as client:
        agent = PlainAgent(client, router.mcp("box"))
        with trio.fail_after(60):
            await agent.initialize()
            yield agent


async def count(agent: PlainAgent) -> tuple[str, str]:
    """How often the session has called, and the digest of the token."""
    said, _, digest = text_of(await agent.call("count")).partition(" ")
    return said, digest


def shows_no_secret(site: Site, text: str) -> bool:
    hidden = [*site.told()["tokens"], SECRET, "the-agents-own"]
    return not [secret for secret in hidden if secret in text]


async def test_client_credentials_for_a_server_that_says_where(site: Site, tmp_path: Path) -> None:
    with run_router(site.config(**BY_CREDENTIALS), tmp_path, env=ENV) as router:
        async with agent_at(router) as agent:
            assert (await count(agent))[0] == "1"
            said, digest = await count(agent)
            assert said == "2"
            assert digest in site.digests()
        log = router.process.log()
    told = site.told()
    assert told["requests"] == [
        {
            "grant_type": "client_credentials",
            "scope": "mcp",
            "resource": site.url,
            "status": "200",
        }
    ]
    assert len(told["tokens"]) == 1
    assert [line["issuer"] for line in log_events(log) if line.get("event") == "token_issued"] == [
        site.issuer
    ]
    assert shows_no_secret(site, log)


async def test_tokens_are_renewed_and_the_session_stays(site: Site, tmp_path: Path) -> None:
    site.told(lifetime=5)
    config = site.config(issuer=site.issuer, **BY_CREDENTIALS)
    with run_router(config, tmp_path, env=ENV) as router:
        async with agent_at(router) as agent:
            shown = set()
            began, calls = time.monotonic(), 0
            while time.monotonic() - began < 8:
                said, digest = await count(agent)
                calls += 1
                assert said == str(calls)
                shown.add(digest)
                await trio.sleep(0.5)
        assert len(shown) >= 2
        assert shown <= site.digests()
        # Before they expired, that is.
        assert site.told()["dead"] == 0


async def test_a_revoked_token_costs_no_call_and_no_session(site: Site, tmp_path: Path) -> None:
    with run_router(site.config(**BY_CREDENTIALS), tmp_path, env=ENV) as router:
        async with agent_at(router) as agent:
            first = await count(agent)
            site.told(revoke=True)
            second = await count(agent)
            assert (first[0], second[0]) == ("1", "2")
            assert first[1] != second[1]
            assert site.told()["dead"] > 0


def workload_token(**claims: Any) -> str:
    """A token as a cluster mounts it, for a service account."""
    payload = {"sub": "system:serviceaccount:agents:one", "exp": time.time() + 600, **claims}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, payload)
    ]
    digest = hmac.digest(b"w" * 32, b".".join(parts), "sha256")
    return b".".join([*parts, base64.urlsafe_b64encode(digest).rstrip(b"=")]).decode()


async def test_a_workloads_own_token_is_exchanged(site: Site, tmp_path: Path) -> None:
    file = tmp_path / "workload"
    file.write_text(workload_token())
    config = site.config(
        issuer=site.issuer,
        grant="token-exchange",
        clientId="exchanger",
        subjectTokenFromFile=str(file),
        scopes=["mcp"],
    )
    with run_router(config, tmp_path) as router:
        async with agent_at(router) as agent:
            assert (await count(agent))[0] == "1"
            before = site.digests()
            # It has expired by the next time that it is needed, and the mounted file has changed.
            (tmp_path / "next").write_text(workload_token(iat=1))
            (tmp_path / "next").replace(file)
            site.told(revoke=True)
            said, digest = await count(agent)
            assert said == "2"
            assert digest in site.digests() - before
        log = router.process.log()
    assert {each["grant_type"] for each in site.told()["requests"]} == {
        "urn:ietf:params:oauth:grant-type:token-exchange"
    }
    assert all(token.count(".") == 2 for token in site.told()["tokens"])
    assert file.read_text() not in log
    assert shows_no_secret(site, log)


def check(config: dict[str, Any], tmp_path: Path, *more: str, **env: str) -> tuple[int, str]:
    """Status and output of `kars check`."""
    file = tmp_path / "kars.yaml"
    file.write_text(json.dumps(config))
    done = subprocess.run(
        [sys.executable, "-m", "kars_router", "check", str(file), *more],
        env={**os.environ, **ENV, **env},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_check_says_in_one_sentence_what_is_wrong(site: Site, tmp_path: Path) -> None:
    posting = {**BY_CREDENTIALS, "clientAuth": "client_secret_post"}
    good = site.config(**posting)
    right = {"CLIENT_ID": "posting", "CLIENT_SECRET": "post-secret"}
    assert check(good, tmp_path)[0] == 0
    assert site.told()["requests"] == []
    status, said = check(good, tmp_path, "--connect", **right)
    assert (status, "box: connected" in said) == (0, True), said
    for config, env, sentence in (
        (good, {"CLIENT_SECRET": "not-this-one"}, "oauth.clientSecretFromEnv: the authorization"),
        (site.config(**posting | {"scopes": ["mcp", "no"]}), right, "oauth.scopes: the authoriza"),
        (site.config(issuer=f"{site.issuer}/other", **posting), right, "oauth.issuer: http"),
        (site.config(issuer=site.issuer + "/", **posting), right, "is that of another issuer"),
        (site.config(issuer="http://127.0.0.1:1", **posting), right, "cannot be reached"),
    ):
        status, said = check(config, tmp_path, "--connect", **env)
        assert status == 3, said
        (line,) = [each for each in said.splitlines() if "not reached" in each]
        assert sentence in line
        assert "Traceback" not in said
        assert not [hidden for hidden in ("not-this-one", "post-secret") if hidden in said]
