"""Requests for tokens and what comes of them: client credentials, and token exchange.

Owns forms and their answers. Must not know when tokens are got, or where from.

Source: RFC 6749 sections 2.3.1, 4.4, 5; RFC 8693 section 2; RFC 8707 section 2; OAuth 2.1.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec
from attrs import field, frozen

from kars_router.config.auth import JWT_TYPE, ClientAuth, Grant, OAuth
from kars_router.transports.oauth.endpoint import Document
from kars_router.transports.oauth.errors import TokenError, harmless
from kars_router.transports.oauth.secrets import Secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from oauthlib.oauth2 import OAuth2Error

# oauthlib is imported where it is used: it takes longer than the rest of the plugins together, and
# most configurations have no use for it.

_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
_ACCESS_TOKEN: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a type's name
_USABLE: Final = re.compile(r"[A-Za-z0-9._~+/-]+=*\Z")  # RFC 6750 section 2.1
_LONGEST_TOKEN: Final = 16 * 1024
_FIELDS: Final = ("access_token", "token_type", "scope", "error", "error_description")
_FOREVER: Final = 1e12  # seconds; a whole number may be too large for a float
_CODE: Final = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
# What to change, by the error code of RFC 6749 section 5.2, RFC 8693 and RFC 8707.
_REMEDIES: Final = {
    "invalid_client": ("clientSecret", "check the client's identifier, its secret and clientAuth"),
    "unauthorized_client": ("grant", "allow this client the grant at the authorization server"),
    "unsupported_grant_type": ("grant", "the authorization server does not offer this grant"),
    "invalid_scope": ("scopes", "ask for scopes that this client may have"),
    "invalid_target": ("resource", "set resource to what the authorization server knows"),
    "invalid_grant": ("subjectToken", "check the subject token, its audience and its age"),
}


@frozen(kw_only=True)
class Issued:
    """A token as it was issued.

    Attributes:
        value: the token.
        lifetime: seconds for which it is good; None if that was not said.
    """

    value: str = field(repr=False)
    lifetime: float | None


def request(
    settings: OAuth, secrets: Secrets, *, scopes: tuple[str, ...], resource: str
) -> tuple[str, dict[str, str]]:
    """The form and the headers that ask for a token.

    Args:
        settings: which grant, and how the client proves who it is.
        secrets: what it proves that with.
        scopes: what to ask for; empty to leave that to the authorization server.
        resource: the server that the token is for.
    """
    from oauthlib.oauth2 import BackendApplicationClient

    client = BackendApplicationClient(secrets.client_id)
    fields: dict[str, Any] = {"resource": resource, "audience": settings.audience}
    headers = {}
    in_form = True
    if settings.grant is Grant.TOKEN_EXCHANGE:
        client.grant_type = _EXCHANGE
        fields |= {
            "subject_token": secrets.subject_token,
            "subject_token_type": settings.subject_token_type,
            "requested_token_type": _ACCESS_TOKEN,
        }
    if secrets.client_secret and settings.client_auth is ClientAuth.BASIC:
        in_form = False
        headers["authorization"] = f"Basic {secrets.basic()}"
    elif secrets.client_secret:
        fields["client_secret"] = secrets.client_secret
    body: str = client.prepare_request_body(
        scope=list(scopes) or None, include_client_id=in_form, **fields
    )
    return body, headers


def read(settings: OAuth, secrets: Secrets, answer: Document) -> Issued:
    """The token in the answer.

    Raises:
        TokenError: there is none that the router could use.
    """
    from oauthlib.oauth2 import BackendApplicationClient, OAuth2Error

    content = answer.content
    # Text only: the library takes what it is given at its word.
    fields = {name: said for name in _FIELDS if isinstance(said := content.get(name), str)}
    value = fields.get("access_token", "")
    shown = functools.partial(harmless, secrets=[*secrets.values(), value])
    if answer.status != 200 and "error" not in fields:
        raise _unexplained(answer)
    try:
        client = BackendApplicationClient(secrets.client_id)
        client.parse_request_body_response(msgspec.json.encode(fields).decode())
    except OAuth2Error as error:
        # Not chained: the error holds the answer, and that may hold a token.
        raise _refusal(secrets, shown, answer, error) from None
    if len(value) > _LONGEST_TOKEN or not _USABLE.match(value):
        raise TokenError("the authorization server answered with a token that cannot be sent")
    kind = content.get("token_type")
    if not isinstance(kind, str) or kind.lower() != "bearer":
        raise TokenError(
            f"the authorization server issued a token of the type {shown(kind) or 'unknown'}, "
            "and the router sends bearer tokens only"
        )
    if settings.grant is Grant.TOKEN_EXCHANGE:
        issued = content.get("issued_token_type", _ACCESS_TOKEN)
        if issued not in (_ACCESS_TOKEN, JWT_TYPE):
            raise TokenError(
                f"the authorization server issued no access token but {shown(issued)}",
                key="grant",
            )
    return Issued(value=value, lifetime=_lifetime(content.get("expires_in")))


def _unexplained(answer: Document) -> TokenError:
    return TokenError(
        f"the token endpoint answered with status {answer.status}",
        retry_after=answer.retry_after,
        moved=answer.status < 500 and answer.status not in (401, 403, 408, 429),
    )


def _refusal(
    secrets: Secrets, shown: Callable[[str | None], str], answer: Document, error: OAuth2Error
) -> TokenError:
    code = str(error.error)
    if not _CODE.match(code):
        return _unexplained(answer)
    said = shown(error.description)
    name, remedy = _REMEDIES.get(code, ("", ""))
    if code == "invalid_grant" and not secrets.subject_token:
        name, remedy = "", ""
    if name == "clientSecret" and not secrets.client_secret:
        name = "clientId"
    text = f"the authorization server refused: {code}"
    text += f" ({said})" if said else ""
    text += f"; {remedy}" if remedy else ""
    return TokenError(
        text, key=secrets.keys.get(name, name), code=code, retry_after=answer.retry_after
    )


def _lifetime(value: object) -> float | None:
    # Some write the number as text.
    if isinstance(value, str) and re.match(r"[0-9]{1,9}\Z", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if value <= 0:
        raise TokenError("the authorization server issued a token that has already expired")
    return float(value) if value < _FOREVER else None
