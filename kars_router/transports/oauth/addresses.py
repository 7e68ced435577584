"""Which addresses discovery looks at, and which of them are to be trusted. Pure.

Source: RFC 8414 sections 2 and 3, RFC 9728 sections 3 and 7, RFC 8707 section 2, OpenID Connect
Discovery 1.0 section 4; MCP 2025-11-25 and 2026-07-28 "Authorization".
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

from kars_router.config.addresses import parse_url

_PORTS: Final = {"http": 80, "https": 443}
_SECURE: Final = {"ws": "http", "wss": "https"}
_RESOURCE: Final = "/.well-known/oauth-protected-resource"
_ISSUER: Final = "/.well-known/oauth-authorization-server"
_OPENID: Final = "/.well-known/openid-configuration"


def resource_of(url: str) -> str:
    """The name of a server as a resource: its URL without query, as http or https.

    Args:
        url: the server's configured URL, which is valid.
    """
    parts = urlsplit(url)
    scheme = parts.scheme.lower()
    path = "" if parts.path == "/" else parts.path
    return urlunsplit((_SECURE.get(scheme, scheme), parts.netloc.lower(), path, "", ""))


def resource_metadata_urls(resource: str) -> tuple[str, ...]:
    """Where a server's own metadata may be; with its path first, then without."""
    parts = urlsplit(resource)
    path = parts.path.rstrip("/")
    found = (_join(parts, _RESOURCE + path), _join(parts, _RESOURCE))
    return found if path else found[1:]


def issuer_metadata_urls(issuer: str) -> tuple[str, ...]:
    """Where the metadata of an authorization server may be, in the order of the MCP revisions."""
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    found = (_join(parts, _ISSUER + path), _join(parts, _OPENID + path))
    return (*found, _join(parts, path + _OPENID)) if path else found


def covers(resource: object, server: str) -> bool:
    """Whether the resource that metadata is about is the server, or a part of its site above it.

    Args:
        resource: what the metadata says; untrusted.
        server: see `resource_of`.
    """
    if not isinstance(resource, str):
        return False
    try:
        theirs = urlsplit(resource_of(parse_url(resource)))
    except ValueError:
        return False
    ours = urlsplit(server)
    above = theirs.path.rstrip("/") + "/"
    return (
        origin_of(resource) == origin_of(server)
        and not urlsplit(resource).query
        and (ours.path.rstrip("/") + "/").startswith(above)
    )


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host and port, comparable; the URL is valid."""
    parts = urlsplit(url)
    scheme = _SECURE.get(parts.scheme, parts.scheme)
    return scheme, (parts.hostname or "").lower(), parts.port or _PORTS[scheme]


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine whatever the network says."""
    host = (urlsplit(url).hostname or "").lower()
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def complaint(url: object, *, near: str = "") -> str:
    """What is wrong with an address that a token or a secret would be sent to; "" if nothing is.

    Args:
        url: where to; untrusted.
        near: the address that named it, if it was not configured. Only what is on loopback itself
            may lead there, and to an address without a name only what is there itself: anything
            else would have the router talk to its neighbours.
    """
    if not isinstance(url, str):
        return "is missing"
    try:
        parts = urlsplit(parse_url(url))
    except ValueError:
        return "is no valid URL"
    here = is_loopback(url)
    if parts.scheme not in _PORTS or (parts.scheme == "http" and not here):
        return "must start with https://, as secrets are sent there"
    if here and near and not is_loopback(near):
        return "is on loopback, where only a server on loopback may send the router"
    if near and not here and _is_address(url) and origin_of(url)[1] != origin_of(near)[1]:
        return "has an address in place of a name"
    return ""


def _is_address(url: str) -> bool:
    try:
        ipaddress.ip_address(urlsplit(url).hostname or "")
    except ValueError:
        return False
    return True


def _join(parts: SplitResult, path: str) -> str:
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))
