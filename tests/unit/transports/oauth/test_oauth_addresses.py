"""Where discovery looks, what it believes, and what a refusal says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kars_router.transports.oauth.addresses import (
    complaint,
    covers,
    issuer_metadata_urls,
    resource_metadata_urls,
    resource_of,
)
from kars_router.transports.oauth.challenge import MOST_SCOPES, Challenge, parse, union
from kars_router.transports.oauth.errors import harmless


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://H.test/mcp?key=secret", "https://h.test/mcp"),
        ("https://h.test/", "https://h.test"),
        ("https://h.test/a/", "https://h.test/a/"),
        ("wss://h.test:8443/ws", "https://h.test:8443/ws"),
        ("ws://127.0.0.1/ws", "http://127.0.0.1/ws"),
    ],
)
def test_a_server_is_a_resource_by_its_url_without_the_query(url: str, expected: str) -> None:
    assert resource_of(url) == expected


def test_metadata_of_a_server_is_looked_for_with_its_path_first() -> None:
    base = "https://h.test/.well-known/oauth-protected-resource"
    assert resource_metadata_urls("https://h.test/a/mcp") == (f"{base}/a/mcp", base)
    assert resource_metadata_urls("https://h.test") == (base,)


def test_metadata_of_an_issuer_is_looked_for_in_every_form() -> None:
    known = "https://h.test/.well-known"
    assert issuer_metadata_urls("https://h.test/") == (
        f"{known}/oauth-authorization-server",
        f"{known}/openid-configuration",
    )
    assert issuer_metadata_urls("https://h.test/realms/a") == (
        f"{known}/oauth-authorization-server/realms/a",
        f"{known}/openid-configuration/realms/a",
        "https://h.test/realms/a/.well-known/openid-configuration",
    )


@pytest.mark.parametrize(
    ("named", "fits"),
    [
        ("https://h.test/a/mcp", True),
        ("https://H.TEST:443/a/mcp/", True),
        ("https://h.test/a", True),
        ("https://h.test", True),
        ("https://h.test/a/m", False),
        ("https://h.test/a/mcp/more", False),
        ("https://h.test/b", False),
        ("https://other.test/a/mcp", False),
        ("https://h.test:8443/a/mcp", False),
        ("http://h.test/a/mcp", False),
        ("https://h.test/a/mcp?x=1", False),
        ("https://u@h.test/a/mcp", False),
        ("nonsense", False),
        (None, False),
        (7, False),
    ],
)
def test_metadata_has_to_be_about_the_server(named: object, fits: bool) -> None:
    assert covers(named, "https://h.test/a/mcp") is fits


@pytest.mark.parametrize(
    ("url", "near", "clause"),
    [
        ("https://as.test", "", ""),
        ("https://as.test", "https://mcp.test/mcp", ""),
        ("http://127.0.0.1:1234/x", "", ""),
        ("http://[::1]/x", "http://localhost:1/mcp", ""),
        ("http://as.test", "", "must start with https://"),
        ("wss://as.test", "", "must start with https://"),
        ("http://127.0.0.2.evil.test", "", "must start with https://"),
        ("http://localhost:9/x", "https://mcp.test/mcp", "is on loopback"),
        ("https://127.0.0.1/x", "https://mcp.test/mcp", "is on loopback"),
        ("https://10.0.0.1/x", "https://mcp.test/mcp", "has an address"),
        ("https://10.0.0.1/x", "https://10.0.0.1:8443/mcp", ""),
        ("https://10.0.0.1/x", "", ""),
        ("https://10.0.0.1./x", "https://10.0.0.1:8443/mcp", ""),
        # Other ways to write the same places.
        ("https://localhost./x", "https://mcp.test/mcp", "is on loopback"),
        ("https://a.localhost/x", "https://mcp.test/mcp", "is on loopback"),
        ("https://localhost。/x", "https://mcp.test/mcp", "is on loopback"),
        ("https://127.0.0.1./x", "https://mcp.test/mcp", "is on loopback"),
        ("https://[::ffff:127.0.0.1]/x", "https://mcp.test/mcp", "is on loopback"),
        ("https://127。0。0。1/x", "https://mcp.test/mcp", "is no valid URL"),
        ("https://10.0.0.1./x", "https://mcp.test/mcp", "has an address"),
        ("http://localhost.:9/x", "http://a.localhost:1/mcp", ""),
        # Names of the cluster are for servers in it.
        ("https://idp.auth.svc/x", "https://mcp.test/mcp", "is a name of the own network"),
        ("https://idp/x", "https://mcp.test/mcp", "is a name of the own network"),
        ("https://idp.auth.svc/x", "https://8.8.8.8/mcp", "is a name of the own network"),
        ("https://idp.auth.svc/x", "http://mcp.tools.svc:8931/mcp", ""),
        ("https://idp.auth.svc/x", "http://10.0.0.1:8931/mcp", ""),
        ("https://idp.auth.svc/x", "http://127.0.0.1:8931/mcp", ""),
        ("https://idp.auth.svc/x", "", ""),
        ("https://u:p@as.test", "", "is no valid URL"),
        ("https://as.test/#x", "", "is no valid URL"),
        ("https://as.test/a b", "", "is no valid URL"),
        ("file:///etc/passwd", "", "is no valid URL"),
        (None, "", "is missing"),
        (["https://as.test"], "", "is missing"),
    ],
)
def test_secrets_go_to_safe_addresses_only(url: object, near: str, clause: str) -> None:
    said = complaint(url, near=near)
    assert said.startswith(clause)
    assert bool(said) is bool(clause)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", Challenge()),
        ("Basic realm=x", Challenge()),
        ("Bearer", Challenge()),
        ('bearer error="invalid_token"', Challenge(error="invalid_token")),
        (
            'Basic realm="a, b", Bearer error=insufficient_scope, scope="a b  a"',
            Challenge(error="insufficient_scope", scopes=("a", "b")),
        ),
        (
            'Bearer realm="r",resource_metadata = "https://h/\\"x", Basic error="no"',
            Challenge(resource_metadata='https://h/"x'),
        ),
        ('Bearer scope="a \u00e9 \x07 b\\"c d"', Challenge(scopes=("a", "d"))),
        ('DPoP scope="x", Bearer scope="y", Bearer scope="z"', Challenge(scopes=("y",))),
        ('Bearer scope="x", scope="y"', Challenge(scopes=("x",))),
    ],
)
def test_what_a_refusal_says(value: str, expected: Challenge) -> None:
    assert parse(value) == expected


@given(st.text())
def test_no_refusal_is_too_strange(value: str) -> None:
    for scope in parse(f"Bearer {value}").scopes:
        assert scope.isprintable()
        assert " " not in scope


def test_a_server_cannot_make_the_list_of_scopes_any_longer() -> None:
    many = tuple(f"s{n}" for n in range(100))
    assert len(parse(f'Bearer scope="{" ".join(many)}"').scopes) == MOST_SCOPES
    assert union(("a", "s1"), many)[:3] == ("a", "s1", "s0")
    assert len(union(("a", "s1"), many)) == MOST_SCOPES
    assert union(many, ("more",)) == many


def test_text_of_others_is_made_harmless() -> None:
    assert harmless("a\x1b[31mb\u202ec\n") == "a?[31mb?c?"
    assert harmless("no: hush-hush", ["hush-hush"]) == "no: ***"
    assert harmless("x" * 500) == "x" * 160 + "..."
    assert harmless({"a": 1}) == ""
