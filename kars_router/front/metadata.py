"""What agents can learn of the tokens that they need: the metadata of a protected resource.

Owns its paths and what it says. Must not know keys or tokens. It is the same for servers that
exist and for others, since anybody may ask for it.

Source: RFC 9728, sections 2, 3 and 5; MCP 2026-07-28 "Authorization".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import urlsplit

from kars_router.config.auth import Jwt
from kars_router.front.exchange import Exchange

WELL_KNOWN: Final = "/.well-known/oauth-protected-resource"
_ENDPOINT: Final = re.compile(r"/mcp(?:/[a-z0-9-]{1,63})?\Z")
_WHOLE: Final = "/mcp"
_HOST: Final = re.compile(r"[A-Za-z0-9.\-]+(?::\d{1,5})?\Z|\[[0-9A-Fa-f:.]+\](?::\d{1,5})?\Z")
_SCHEMES: Final = ("http", "https")


def is_about(path: str) -> str | None:
    """The path of the resource whose metadata is at a path: "" for all; None if nothing is."""
    if not path.startswith(WELL_KNOWN):
        return None
    rest = path.removeprefix(WELL_KNOWN).removesuffix("/")
    return rest if not rest or _ENDPOINT.match(rest) else None


def location(exchange: Exchange, settings: Jwt) -> str:
    """Where the metadata of what a request asked for is; "" if that cannot be said.

    Args:
        exchange: the request; its Host was accepted.
        settings: the tokens that are wanted.
    """
    origin = _origin(exchange, settings.audience)
    path = exchange.path.removesuffix("/")
    # The decoded path may hold anything, which must not get into a header.
    return origin and f"{origin}{WELL_KNOWN}{path if _ENDPOINT.match(path) else _WHOLE}"


def describe(exchange: Exchange, about: str, settings: Jwt) -> dict[str, Any]:
    """The metadata, as plain data.

    Args:
        exchange: the request for it; its Host was accepted.
        about: the path of the resource, as from `is_about`.
        settings: the tokens that are wanted.
    """
    found: dict[str, Any] = {
        "resource": _resource(_origin(exchange, settings.audience), about, settings.audience),
        "authorization_servers": [settings.issuer],
        "bearer_methods_supported": ["header"],
        "resource_name": "kars-router",
    }
    if settings.scopes:
        found["scopes_supported"] = list(settings.scopes)
    return found


def _resource(origin: str, about: str, audience: Iterable[str]) -> str:
    """What a token for a path is asked for: a name that is in its audience then, if there is one.

    Clients take the resource's own address, or one that it lies under (the SDKs).
    """
    url = origin + (about or _WHOLE)
    above = [each for each in audience if f"{url}/".startswith(f"{each.rstrip('/')}/")]
    urls = [each for each in audience if _split(each)[0] in _SCHEMES]
    return max(above, key=len, default=None) or (urls[0] if urls else url)


def _origin(exchange: Exchange, audience: Iterable[str]) -> str:
    host = exchange.header(b"host").lower()
    if not _HOST.match(host):
        return ""
    for each in audience:
        scheme, netloc = _split(each)
        if netloc == host and scheme in _SCHEMES:
            # Behind a proxy with TLS only the operator knows the scheme that agents use.
            return f"{scheme}://{host}"
    return f"{exchange.scope.get('scheme', 'http')}://{host}"


def _split(name: str) -> tuple[str, str]:
    """Scheme and host of an audience, which need not be a URL."""
    try:
        parts = urlsplit(name)
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc.lower()
