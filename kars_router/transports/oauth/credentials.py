"""Tokens of an authorization server as the credentials of one server.

Owns who shares a token: servers with the same settings that are the same resource. Must not know
how tokens are got, which is `tokens`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from weakref import WeakValueDictionary

import trio
from attrs import define, field

from kars_router.config.auth import OAuth
from kars_router.errors import UserError
from kars_router.model import ServerInfo
from kars_router.transports.oauth.addresses import resource_of
from kars_router.transports.oauth.endpoint import default_transports
from kars_router.transports.oauth.errors import TokenError
from kars_router.transports.oauth.tokens import Token, TokenSource

_Sources = WeakValueDictionary[tuple[OAuth, str], TokenSource]

# Of one run of Trio, as locks and times are.
_SOURCES: Final[trio.lowlevel.RunVar[_Sources]] = trio.lowlevel.RunVar("kars_oauth_sources")


def source_for(settings: OAuth, url: str) -> TokenSource:
    """The one source of tokens for these settings and this server.

    Args:
        settings: what is configured.
        url: the server's URL.
    """
    try:
        sources = _SOURCES.get()
    except LookupError:
        sources = WeakValueDictionary()
        _SOURCES.set(sources)
    # With issuer and resource given, nothing depends on the server's own address.
    named = bool(settings.issuer and settings.resource)
    key = (settings, "" if named else resource_of(url))
    source = sources.get(key)
    if source is None:
        transports = default_transports(settings.ca_file, settings.allowed_networks)
        source = TokenSource(settings, url, transports)
        sources[key] = source
    return source


@define
class OAuthCredentials:
    """What authenticates the router to a server with `oauth` settings; a `LiveCredentials`.

    Attributes:
        server: the server.
        settings: its settings.
    """

    server: ServerInfo
    settings: OAuth
    _source: TokenSource | None = field(default=None, init=False, repr=False)

    async def headers(self, *, refresh: bool) -> Mapping[str, str]:
        """See `Credentials.headers`."""
        try:
            source = self._shared()
            token = await source.get()
            if refresh and token is not None:
                token = await source.renew(token.value, status=401, said="")
        except TokenError as error:
            raise self._sentence(error) from None
        return _headers(token)

    async def renew(
        self, refused: Mapping[str, str], *, status: int, challenge: str
    ) -> Mapping[str, str]:
        """See `LiveCredentials.renew`."""
        try:
            token = await self._shared().renew(_value(refused), status=status, said=challenge)
        except TokenError as error:
            raise self._sentence(error) from None
        return _headers(token)

    def stale(self, headers: Mapping[str, str], *, urgent: bool) -> bool:
        """See `LiveCredentials.stale`."""
        return self._shared().stale(_value(headers), urgent=urgent)

    def _shared(self) -> TokenSource:
        if self._source is None:
            self._source = source_for(self.settings, self.server.url)
        return self._source

    def _sentence(self, error: TokenError) -> UserError:
        key = f".{error.key}" if error.key else ""
        return UserError(f"servers.{self.server.name}.oauth{key}: {error}")


def _headers(token: Token | None) -> Mapping[str, str]:
    return {"authorization": f"Bearer {token.value}"} if token is not None else {}


def _value(headers: Mapping[str, str]) -> str:
    return headers.get("authorization", "").removeprefix("Bearer ")
