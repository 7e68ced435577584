"""Finding the authorization server of a server, and its token endpoint.

Owns what is believed of metadata. Must not know tokens or secrets.

Source: RFC 9728 section 3, RFC 8414 section 3, OpenID Connect Discovery 1.0 section 4; MCP
2025-11-25 and 2026-07-28 "Authorization / Authorization Server Discovery".
"""

from __future__ import annotations

from typing import Final

from attrs import frozen

from kars_router.transports.oauth.addresses import (
    complaint,
    covers,
    issuer_metadata_urls,
    origin_of,
    resource_metadata_urls,
)
from kars_router.transports.oauth.endpoint import Document, Endpoint
from kars_router.transports.oauth.errors import TokenError, harmless

_ISSUER: Final = "the authorization server"
_SERVER: Final = "the server's own metadata"


@frozen(kw_only=True)
class Found:
    """What a server says of who issues tokens for it.

    Attributes:
        issuer: the authorization server.
        resource: the server's name there.
    """

    issuer: str
    resource: str


@frozen(kw_only=True)
class AuthorizationServer:
    """What is needed of the metadata of an authorization server.

    Attributes:
        issuer: its name, exactly as its metadata gives it.
        token_endpoint: where tokens are issued.
    """

    issuer: str
    token_endpoint: str


async def find_issuer(
    endpoint: Endpoint, server: str, *, hint: str = "", resource: str = ""
) -> Found | None:
    """Asks a server who issues tokens for it.

    Args:
        endpoint: makes the requests.
        server: the server's name as a resource, see `addresses.resource_of`.
        hint: where its metadata is, as its refusal says; untrusted. It counts if it is of the
            server's own origin.
        resource: the name that is configured for it; "" if there is none.

    Returns:
        None if there is no metadata.

    Raises:
        TokenError: it cannot be asked, or what it says cannot be believed.
    """
    own = [hint] if hint and not complaint(hint) and origin_of(hint) == origin_of(server) else []
    for url in [*own, *resource_metadata_urls(server)]:
        document = await _fetch(endpoint, url, _SERVER)
        if document is None:
            continue
        content = document.content
        named = content.get("resource")
        if not covers(named, server) and (not resource or named != resource):
            raise TokenError(
                f"{_SERVER} is about another resource ({harmless(named) or 'none'}), so that "
                "tokens for it would be somebody else's; correct the server's url, or set resource",
                key="resource",
            )
        issuers = content.get("authorization_servers")
        if not isinstance(issuers, list) or not issuers:
            raise TokenError(f"{_SERVER} names no authorization server; set issuer", key="issuer")
        if len(issuers) > 1:
            raise TokenError(
                f"{_SERVER} names several authorization servers; set issuer to the one that knows "
                "this client",
                key="issuer",
            )
        if wrong := complaint(issuers[0], near=server):
            raise TokenError(
                f"the issuer in {_SERVER} ({harmless(issuers[0])}) {wrong}; set issuer",
                key="issuer",
            )
        return Found(issuer=issuers[0], resource=resource or str(named))
    return None


async def find_token_endpoint(endpoint: Endpoint, issuer: str) -> AuthorizationServer:
    """Asks an authorization server where it issues tokens.

    Args:
        endpoint: makes the requests.
        issuer: its name, which has been checked.

    Raises:
        TokenError: it cannot be asked, or what it says cannot be believed.
    """
    for url in issuer_metadata_urls(issuer):
        document = await _fetch(endpoint, url, _ISSUER)
        if document is None:
            continue
        content = document.content
        if content.get("issuer") != issuer:
            raise TokenError(
                f"the metadata of {harmless(issuer)} is that of another issuer "
                f"({harmless(content.get('issuer')) or 'none'}); set issuer to exactly what the "
                "authorization server calls itself",
                key="issuer",
            )
        target = content.get("token_endpoint")
        if wrong := complaint(target, near=issuer):
            raise TokenError(
                f"the token endpoint in the metadata of {harmless(issuer)} {wrong}", key="issuer"
            )
        return AuthorizationServer(issuer=issuer, token_endpoint=str(target))
    raise TokenError(
        f"{harmless(issuer)} has no metadata of an authorization server; correct issuer",
        key="issuer",
    )


async def _fetch(endpoint: Endpoint, url: str, what: str) -> Document | None:
    """A document; None if it is not there, so that the next address is worth a try."""
    document = await endpoint.get(url, what)
    if document.status >= 500 or document.status in (408, 429):
        raise TokenError(
            f"{what} answered the request for its metadata with status {document.status}",
            retry_after=document.retry_after,
        )
    if document.status != 200:
        return None
    if not document.content:
        raise TokenError(f"{what} answered with something else than a JSON object of up to 64 KiB")
    return document
