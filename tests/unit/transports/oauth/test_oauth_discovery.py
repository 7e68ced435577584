"""What is believed of metadata, and what is made of a network that fails."""

from __future__ import annotations

import re
from typing import Any

import pytest
from trio.testing import MockClock
from unit.transports.oauth.oauth_kit import (
    ISSUER,
    ISSUER_METADATA,
    SERVER,
    SERVER_METADATA,
    Answer,
    World,
    metadata,
    new_endpoint,
    new_world,
    resource,
)

from kars_router.transports.oauth.discovery import Found, find_issuer, find_token_endpoint
from kars_router.transports.oauth.errors import TokenError

ROOT_METADATA = "https://mcp.test/.well-known/oauth-protected-resource"
HINTED = "https://mcp.test/meta"


async def issuer_of(world: World, **options: Any) -> Found | None:
    async with new_endpoint(world) as endpoint:
        found = await find_issuer(endpoint, SERVER, **options)
    assert world.open == 0
    return found


async def test_a_server_says_who_issues_its_tokens() -> None:
    world = new_world()
    assert await issuer_of(world) == Found(issuer=ISSUER, resource=SERVER)
    assert world.urls() == [SERVER_METADATA]


async def test_the_root_is_asked_where_the_path_has_nothing() -> None:
    world = World({ROOT_METADATA: resource(resource="https://mcp.test")})
    assert await issuer_of(world) == Found(issuer=ISSUER, resource="https://mcp.test")
    assert world.urls() == [SERVER_METADATA, ROOT_METADATA]
    assert await issuer_of(World()) is None


async def test_a_refusal_says_where_to_look_first() -> None:
    world = new_world()
    world.rules[HINTED] = resource("https://hinted.test")
    found = await issuer_of(world, hint=HINTED)
    assert found is not None
    assert found.issuer == "https://hinted.test"
    for elsewhere in ("https://evil.test/meta", "http://mcp.test/meta", "nonsense", "http://[::1"):
        world.asked.clear()
        found = await issuer_of(world, hint=elsewhere)
        assert found is not None
        assert found.issuer == ISSUER
        assert world.urls() == [SERVER_METADATA]


@pytest.mark.parametrize(
    ("changes", "sentence", "key"),
    [
        ({"resource": "https://mcp.test/other"}, "is about another resource", "resource"),
        ({"resource": None}, r"another resource \(none\)", "resource"),
        ({"authorization_servers": []}, "names no authorization server", "issuer"),
        ({"authorization_servers": "https://as.test"}, "names no authorization", "issuer"),
        ({"authorization_servers": [ISSUER, "https://b.test"]}, "names several", "issuer"),
        ({"authorization_servers": ["http://as.test"]}, "must start with https", "issuer"),
        ({"authorization_servers": ["http://127.0.0.1/"]}, "is on loopback", "issuer"),
        ({"authorization_servers": [{"url": ISSUER}]}, "is missing", "issuer"),
    ],
)
async def test_metadata_of_a_server_that_is_not_believed(
    changes: dict[str, Any], sentence: str, key: str
) -> None:
    world = World({SERVER_METADATA: resource(**changes)})
    with pytest.raises(TokenError, match=sentence) as caught:
        await issuer_of(world)
    assert caught.value.key == key


async def test_a_configured_name_of_the_server_may_be_any() -> None:
    world = World({SERVER_METADATA: resource(resource="urn:mcp")})
    found = await issuer_of(world, resource="urn:mcp")
    assert found is not None
    assert found.resource == "urn:mcp"


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_an_issuer_is_asked_in_every_form(place: int) -> None:
    issuer = "https://as.test/realms/a"
    urls = [
        "https://as.test/.well-known/oauth-authorization-server/realms/a",
        "https://as.test/.well-known/openid-configuration/realms/a",
        "https://as.test/realms/a/.well-known/openid-configuration",
    ]
    world = World({urls[place]: metadata(issuer)})
    async with new_endpoint(world) as endpoint:
        found = await find_token_endpoint(endpoint, issuer)
    assert (found.issuer, found.token_endpoint) == (issuer, f"{issuer}/token")
    assert world.urls() == urls[: place + 1]


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (metadata("https://evil.test"), r"another issuer \(https://evil.test\)"),
        (metadata(f"{ISSUER}/"), "exactly what the authorization server calls itself"),
        (metadata(issuer_="x", token_endpoint=None), "token endpoint .* is missing"),
        (metadata(token_endpoint="http://as.test/token"), "must start with https"),
        (metadata(token_endpoint="http://localhost/token"), "is on loopback"),
        (metadata(token_endpoint="https://169.254.169.254/"), "has an address"),
        (Answer(status=404), "has no metadata"),
        (Answer(status=302, headers={"location": "https://evil.test/"}), "has no metadata"),
        (Answer(body=b"<html>"), "something else than a JSON object"),
        (Answer(body=b"[" * 60_000), "something else than a JSON object"),
        (Answer(json=[]), "something else than a JSON object"),
        (metadata(padding="x" * 65_536), "something else than a JSON object"),
        (Answer(status=503, headers={"retry-after": "7"}), "with status 503"),
        (Answer(broken=True), "at https://as.test:443 cannot be reached"),
        (Answer(seconds=4), "did not answer within 3 s"),
    ],
)
async def test_metadata_of_an_issuer_that_is_not_believed(
    autojump_clock: MockClock, answer: Answer, sentence: str
) -> None:
    world = World({ISSUER_METADATA: answer})
    with pytest.raises(TokenError, match=sentence) as caught:
        async with new_endpoint(world) as endpoint:
            await find_token_endpoint(endpoint, ISSUER)
    assert world.open == 0
    assert caught.value.__cause__ is None
    assert caught.value.retry_after == (7.0 if answer.status == 503 else 0.0)
    assert not [url for url in world.urls() if re.search("evil|localhost|169", url)]


async def test_metadata_may_be_as_large_as_the_limit() -> None:
    world = World({ISSUER_METADATA: metadata(padding="x" * 60_000)})
    async with new_endpoint(world) as endpoint:
        found = await find_token_endpoint(endpoint, ISSUER)
    assert found.issuer == ISSUER
