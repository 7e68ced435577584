"""Which addresses discovery looks at, and which of them are to be trusted.

Pure, but for the domain of the cluster that the process is in.

Source: RFC 8414 sections 2 and 3, RFC 9728 sections 3 and 7, RFC 8707 section 2, OpenID Connect
Discovery 1.0 section 4; MCP 2025-11-25 and 2026-07-28 "Authorization".
"""

from __future__ import annotations

import ipaddress
from typing import Final
from urllib.parse import SplitResult, urlsplit, urlunsplit

import httpx

from kars_router.config.addresses import parse_url
from kars_router.transports.dial import guard_for
from kars_router.transports.guard import Address, HostKind

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


def _place_of(url: str) -> tuple[str, HostKind, Address | None]:
    """The host as it is connected to, what it says, and the address if it is one.

    Dots of other scripts, a dot at the end, and IPv4 within IPv6 are ways to write the same host.

    Raises:
        ValueError: it cannot be a host.
    """
    try:
        raw = httpx.URL(url).raw_host.decode("ascii")
    except httpx.InvalidURL as error:
        raise ValueError(str(error)) from error
    guard = guard_for(raw)
    if guard.literal is None:
        return guard.host.removesuffix("."), guard.kind, None
    address = ipaddress.ip_address(guard.literal)
    return guard.literal, guard.kind, getattr(address, "ipv4_mapped", None) or address


def complaint(url: object, *, near: str = "") -> str:
    """What is wrong with an address that a token or a secret would be sent to; "" if nothing is.

    Args:
        url: where to; untrusted.
        near: the address that named it, if it was not configured. Only what is on loopback itself
            may lead there, to an address without a name only what is there itself, and to a name
            of the own network only what is in it: anything else would have the router talk to its
            neighbours.
    """
    if not isinstance(url, str):
        return "is missing"
    try:
        scheme = urlsplit(parse_url(url)).scheme
        host, kind, address = _place_of(url)
    except ValueError:
        return "is no valid URL"
    here = _is_here(kind, address)
    if scheme not in _PORTS or (scheme == "http" and not here):
        return "must start with https://, as secrets are sent there"
    if not near:
        return ""
    host_near, kind_near, address_near = _place_of(near)
    near_here = _is_here(kind_near, address_near)
    if here and not near_here:
        return "is on loopback, where only a server on loopback may send the router"
    if address is not None and not here and host != host_near:
        return "has an address in place of a name"
    outside = address_near.is_global if address_near else kind_near is not HostKind.PRIVATE
    if kind is HostKind.PRIVATE and outside and not near_here:
        return "is a name of the own network, where only a server of it may send the router"
    return ""


def _is_here(kind: HostKind, address: Address | None) -> bool:
    return address.is_loopback if address is not None else kind is HostKind.LOOPBACK


def _join(parts: SplitResult, path: str) -> str:
    return urlunsplit((parts.scheme, parts.netloc, path, "", ""))
