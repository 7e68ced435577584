"""The built-in plugin: who gets a token, who shares one, and what is said when there is none."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from attrs import evolve
from unit.transports.oauth.oauth_kit import (
    SECRET,
    SERVER,
    SETTINGS,
    TOKEN_URL,
    Answer,
    World,
    new_world,
)

from kars_router.builtins.oauth import kars_credentials
from kars_router.errors import UserError
from kars_router.hookspecs import LiveCredentials
from kars_router.model import ServerInfo
from kars_router.transports.oauth import credentials as oauth
from kars_router.transports.oauth.credentials import source_for


@contextmanager
def using(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Has real credentials ask this world."""
    monkeypatch.setenv("SECRET", SECRET)
    with monkeypatch.context() as patch:
        patch.setattr(oauth, "default_transports", lambda *_: world.transport)
        yield


def credentials(name: str = "s", url: str = SERVER, **changes: object) -> LiveCredentials:
    settings = evolve(SETTINGS, **changes)  # type: ignore[arg-type]
    found = kars_credentials(ServerInfo(name=name, url=url, oauth=settings))
    assert isinstance(found, LiveCredentials)
    return found


def test_servers_without_it_get_nothing() -> None:
    assert kars_credentials(ServerInfo(name="s", url=SERVER)) is None


async def test_headers_and_their_renewal(monkeypatch: pytest.MonkeyPatch) -> None:
    world = new_world()
    with using(world, monkeypatch):
        found = credentials()
        first = await found.headers(refresh=False)
        assert first == {"authorization": "Bearer token-1"}
        assert not found.stale(first, urgent=False)
        second = await found.renew(first, status=401, challenge="")
        assert second == {"authorization": "Bearer token-2"}
        assert found.stale(first, urgent=True)
        assert "token-2" not in repr(found)


async def test_the_same_client_of_the_same_resource_shares_a_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = new_world()
    with using(world, monkeypatch):
        same = [
            credentials("a", resource=SERVER),
            credentials("b", "https://other.test/mcp", resource=SERVER),
        ]
        other = [credentials("c"), credentials("d", scopes=("x",)), credentials("e", SERVER + "2")]
        shown = [await each.headers(refresh=False) for each in (*same, *other)]
    assert len({frozenset(headers.items()) for headers in shown[:2]}) == 1
    assert world.issued == 4


async def test_a_source_lives_as_long_as_a_server_that_uses_it() -> None:
    first = source_for(SETTINGS, SERVER)
    assert source_for(SETTINGS, f"{SERVER}?key=x") is first
    alive = weakref.ref(first)
    del first
    gc.collect()
    assert alive() is None


async def test_what_is_wrong_names_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    world = new_world()
    world.rules[TOKEN_URL] = Answer(status=401, json={"error": "invalid_client"})
    with using(world, monkeypatch):
        found = credentials("web")
        with pytest.raises(UserError) as caught:
            await found.headers(refresh=False)
        assert str(caught.value) == (
            "servers.web.oauth.clientSecretFromEnv: the authorization server refused: "
            "invalid_client; check the client's identifier, its secret and clientAuth"
        )
        # The error below may hold a request, and the secret in it.
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__
        world.rules[TOKEN_URL] = Answer(broken=True)
        with pytest.raises(UserError, match=r"servers\.web\.oauth\.clientSecretFromEnv"):
            await found.renew({}, status=401, challenge="")
        del found, caught
        gc.collect()
        with pytest.raises(UserError) as other:
            await credentials("web", scopes=("x",)).headers(refresh=False)
    assert str(other.value) == (
        "servers.web.oauth: the token endpoint at https://as.test:443 cannot be reached: "
        "ConnectError: connecting: refused"
    )
