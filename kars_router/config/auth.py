"""Settings of who proves to be whom: the router towards servers, agents towards the router.

Owns names, types and defaults, as `schema` does for the rest.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Final

from attrs import frozen

from kars_router.config.marks import Duration, EnvName, HttpUrl, Name, Network, Scope, Uri

JWT_TYPE: Final = "urn:ietf:params:oauth:token-type:jwt"


class Grant(enum.StrEnum):
    """How a token is got (RFC 6749 section 4.4, RFC 8693)."""

    CLIENT_CREDENTIALS = "client-credentials"
    TOKEN_EXCHANGE = "token-exchange"  # noqa: S105 - a grant's name


class ClientAuth(enum.StrEnum):
    """How the router proves to the token endpoint who it is (RFC 6749 section 2.3.1)."""

    BASIC = "client_secret_basic"
    POST = "client_secret_post"


class Pkce(enum.StrEnum):
    """Accepted for manifests that say it; these grants have no code that it could protect."""

    S256 = "S256"


@frozen(kw_only=True)
class OAuth:
    """How tokens for one server are got.

    Attributes:
        issuer: the authorization server; None to take the one that the server's own metadata
            names (RFC 9728).
        grant: how a token is got.
        client_id: the router's client identifier.
        client_id_from_env: name of the variable that holds it; excludes `client_id`.
        client_secret_from_env: name of the variable that holds the client's secret.
        client_secret_from_file: file that holds it, read again when it changes; excludes the other.
        client_auth: how both are sent.
        scopes: what is asked for.
        resource: the server, as the authorization server knows it (RFC 8707); None for its URL.
        audience: further name of the server, for authorization servers that want one.
        subject_token_from_env: name of the variable with the token that is exchanged.
        subject_token_from_file: file that holds it, such as a projected service account token;
            excludes the other.
        subject_token_type: what kind of token that is (RFC 8693 section 3).
        ca_file: certificate authorities (PEM) to trust for the authorization server beside the
            system's.
        allowed_networks: networks that its name may lead to although they are not public.
        pkce: has no effect.
    """

    issuer: HttpUrl | None = None
    grant: Grant = Grant.CLIENT_CREDENTIALS
    client_id: Name | None = None
    client_id_from_env: EnvName | None = None
    client_secret_from_env: EnvName | None = None
    client_secret_from_file: Path | None = None
    client_auth: ClientAuth = ClientAuth.BASIC
    scopes: tuple[Scope, ...] = ()
    resource: Uri | None = None
    audience: str | None = None
    subject_token_from_env: EnvName | None = None
    subject_token_from_file: Path | None = None
    subject_token_type: str = JWT_TYPE
    ca_file: Path | None = None
    allowed_networks: tuple[Network, ...] = ()
    pkce: Pkce = Pkce.S256


@frozen(kw_only=True)
class Jwt:
    """Tokens of an authorization server that agents show.

    Attributes:
        issuer: who must have issued them; compared as a string.
        jwks_url: where its keys are; None to take them from its metadata.
        jwks_file: file that holds them; excludes `jwks_url`.
        audience: one of these must be in the token; the router's own URL, as agents know it.
        scopes: all of these must be in the token.
        leeway: seconds that clocks may differ.
    """

    issuer: HttpUrl = ""
    jwks_url: HttpUrl | None = None
    jwks_file: Path | None = None
    audience: tuple[str, ...] = ()
    scopes: tuple[Scope, ...] = ()
    leeway: Duration = 60.0


@frozen(kw_only=True)
class AgentAuth:
    """What agents have to show; nothing if all are None.

    Attributes:
        token_from_env: name of the variable that holds the token that all agents share.
        token_from_file: file that holds it, read again when it changes; excludes the other.
        jwt: tokens of an authorization server; excludes a shared token.
    """

    token_from_env: EnvName | None = None
    token_from_file: Path | None = None
    jwt: Jwt | None = None
