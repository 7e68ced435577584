"""Tokens of an authorization server, for servers with `oauth` in their configuration."""

from __future__ import annotations

from kars_router.config.auth import OAuth
from kars_router.hookspecs import Credentials, hookimpl
from kars_router.model import ServerInfo


@hookimpl(trylast=True)
def kars_credentials(server: ServerInfo) -> Credentials | None:
    """Tokens where the server's configuration says how to get them."""
    if not isinstance(server.oauth, OAuth):
        return None
    # Late: this is loaded with every router, and few servers want tokens.
    from kars_router.transports.oauth.credentials import OAuthCredentials

    return OAuthCredentials(server, server.oauth)
