"""The forms of both grants, and what is taken for a token."""

from __future__ import annotations

import base64
import traceback
from typing import Any
from urllib.parse import parse_qs

import pytest
from attrs import evolve
from unit.transports.oauth.oauth_kit import SECRET, SERVER, SETTINGS

from kars_router.config.auth import ClientAuth, Grant
from kars_router.transports.oauth import grants
from kars_router.transports.oauth.endpoint import Document
from kars_router.transports.oauth.errors import TokenError
from kars_router.transports.oauth.secrets import Secrets

SECRETS = Secrets(
    client_id="router", client_secret=SECRET, keys={"clientSecret": "clientSecretFromEnv"}
)
EXCHANGE = evolve(SETTINGS, grant=Grant.TOKEN_EXCHANGE)
SUBJECT = Secrets(
    client_id="router",
    subject_token="ey.subject.token",
    keys={"subjectToken": "subjectTokenFromFile"},
)
GOOD = {"access_token": "tok_en-1.~+/==", "token_type": "bearer"}


def form_of(body: str) -> dict[str, str]:
    return {name: value for name, (value,) in parse_qs(body, strict_parsing=True).items()}


def test_client_credentials_by_basic_authentication() -> None:
    secrets = evolve(SECRETS, client_id="a:b", client_secret="p%q+r/")
    body, headers = grants.request(SETTINGS, secrets, scopes=("a", "b"), resource=SERVER)
    assert form_of(body) == {
        "grant_type": "client_credentials",
        "scope": "a b",
        "resource": SERVER,
    }
    scheme, _, pair = headers["authorization"].partition(" ")
    assert scheme == "Basic"
    assert base64.b64decode(pair) == b"a%3Ab:p%25q%2Br%2F"


def test_client_credentials_in_the_form() -> None:
    settings = evolve(SETTINGS, client_auth=ClientAuth.POST, audience="api")
    body, headers = grants.request(settings, SECRETS, scopes=(), resource=SERVER)
    assert headers == {}
    assert form_of(body) == {
        "grant_type": "client_credentials",
        "client_id": "router",
        "client_secret": SECRET,
        "resource": SERVER,
        "audience": "api",
    }


def test_token_exchange_of_a_client_without_a_secret() -> None:
    body, headers = grants.request(EXCHANGE, SUBJECT, scopes=("a",), resource=SERVER)
    assert headers == {}
    assert form_of(body) == {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
        "client_id": "router",
        "subject_token": "ey.subject.token",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "scope": "a",
        "resource": SERVER,
    }


@pytest.mark.parametrize(
    ("given", "lifetime"),
    [
        ({}, None),
        ({"expires_in": 60}, 60.0),
        ({"expires_in": "60"}, 60.0),
        ({"expires_in": 0.5}, 0.5),
        ({"expires_in": None}, None),
        ({"expires_in": True}, None),
        ({"expires_in": [1]}, None),
        ({"expires_in": "soon"}, None),
        ({"expires_in": float("inf")}, None),
        ({"expires_in": float("nan")}, None),
        ({"expires_in": 10**400}, None),
    ],
)
def test_a_token_and_its_lifetime(given: dict[str, Any], lifetime: float | None) -> None:
    issued = grants.read(SETTINGS, SECRETS, Document(200, GOOD | given, 0.0))
    assert (issued.value, issued.lifetime) == ("tok_en-1.~+/==", lifetime)
    assert "tok_en" not in repr(issued)


@pytest.mark.parametrize(
    ("status", "content", "sentence", "key"),
    [
        (200, {"token_type": "Bearer"}, "refused: missing_token", ""),
        (200, GOOD | {"access_token": 7}, "refused: missing_token", ""),
        (200, GOOD | {"access_token": ""}, "cannot be sent", ""),
        (200, GOOD | {"access_token": "a b"}, "cannot be sent", ""),
        (200, GOOD | {"access_token": "a\r\nx: y"}, "cannot be sent", ""),
        (200, GOOD | {"access_token": "a" * 20_000}, "cannot be sent", ""),
        (200, GOOD | {"token_type": "DPoP"}, "of the type DPoP", ""),
        (200, {"access_token": "x"}, "of the type unknown", ""),
        (200, GOOD | {"expires_in": 0}, "already expired", ""),
        (200, GOOD | {"expires_in": -5}, "already expired", ""),
        (200, GOOD | {"expires_in": -(10**400)}, "already expired", ""),
        (200, {"error": "invalid_client"}, "check the client's identifier", ""),
        (401, {"error": "invalid_client"}, "refused: invalid_client", ""),
        (400, {"error": "invalid_scope"}, "ask for scopes", "scopes"),
        (400, {"error": "invalid_target"}, "set resource", "resource"),
        (400, {"error": "unsupported_grant_type"}, "does not offer", "grant"),
        (400, {"error": "weird\x1b[0m"}, "with status 400", ""),
        (400, {"error": {"code": 1}}, "with status 400", ""),
        (302, {}, "with status 302", ""),
        (500, {}, "with status 500", ""),
    ],
)
def test_what_is_no_token(status: int, content: Any, sentence: str, key: str) -> None:
    with pytest.raises(TokenError, match=sentence) as caught:
        grants.read(SETTINGS, SECRETS, Document(status, content, 3.0))
    if key:
        assert caught.value.key == key


def test_the_remedy_names_the_setting_that_is_in_use() -> None:
    for secrets, code, key in (
        (SUBJECT, "invalid_grant", "subjectTokenFromFile"),
        (SECRETS, "invalid_grant", ""),
        (SECRETS, "invalid_client", "clientSecretFromEnv"),
        (SUBJECT, "invalid_client", "clientId"),
    ):
        with pytest.raises(TokenError) as caught:
            grants.read(EXCHANGE, secrets, Document(400, {"error": code}, 0.0))
        assert caught.value.key == key, code


def test_an_exchange_has_to_bring_an_access_token() -> None:
    kind = "urn:ietf:params:oauth:token-type:"
    for name in ("access_token", "jwt"):
        content = GOOD | {"issued_token_type": kind + name}
        assert grants.read(EXCHANGE, SUBJECT, Document(200, content, 0.0)).value
    content = GOOD | {"issued_token_type": f"{kind}refresh_token"}
    with pytest.raises(TokenError, match="no access token but"):
        grants.read(EXCHANGE, SUBJECT, Document(200, content, 0.0))


def test_nothing_of_a_secret_is_ever_shown() -> None:
    said = f"who is \x1b]0;{SECRET}\x07 and ey.subject.token?" + "x" * 500
    secrets = evolve(SECRETS, subject_token="ey.subject.token")
    content = {"error": "invalid_client", "error_description": said, "access_token": "tok-en"}
    with pytest.raises(TokenError) as caught:
        grants.read(SETTINGS, secrets, Document(401, content, 0.0))
    shown = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + repr(secrets)
    for secret in (SECRET, "ey.subject.token", "tok-en", "\x1b"):
        assert secret not in shown
    assert "(who is ?]0;***? and ***?xxx" in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "content",
    [
        GOOD | {"error": "invalid_client", "error_description": "got {}"},
        GOOD | {"token_type": "{}"},
        GOOD | {"issued_token_type": "{}"},
    ],
    ids=["description", "token type", "issued type"],
)
def test_a_secret_is_not_shown_in_any_form_in_which_it_was_sent(content: dict[str, str]) -> None:
    secrets = Secrets(
        client_id="me", client_secret="p@ss/w+rd==", subject_token="ey.subject.token="
    )
    _, headers = grants.request(EXCHANGE, secrets, scopes=(), resource="")
    sent = ["p@ss/w+rd==", "p%40ss%2Fw%2Brd%3D%3D", headers["authorization"].split()[1]]
    for each in (*sent, "ey.subject.token=", "ey.subject.token%3D", GOOD["access_token"]):
        answer = {name: value.format(each) for name, value in content.items()}
        with pytest.raises(TokenError) as caught:
            grants.read(EXCHANGE, secrets, Document(200, answer, 0.0))
        shown = str(caught.value)
        assert each not in shown
        assert "***" in shown
