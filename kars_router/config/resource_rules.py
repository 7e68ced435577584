"""Which fields of the custom resources go together; as `rules`, of which it is a part.

The same rules stand in the schemas of the custom resources, so an API server refuses what is
refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from kars_router.config.addresses import is_secure
from kars_router.config.mcpserver import McpServerSpec, ServerOAuth
from kars_router.config.rules import Broken, Given, Read, oauth_rules, server_rules
from kars_router.config.sandbox import EnvVar, Governance, ServerRef

MOST_SERVERS: Final = 8
# What a bundle would hold.
_CONTENT: Final = {
    "url": "url",
    "oauth": "oauth",
    "production_mode": "productionMode",
    "scopes": "scopes",
    "allowed_tools": "allowedTools",
    "display_name": "displayName",
    "managed": "managed",
}
_OF_AN_ENDPOINT: Final = {
    "url": "url",
    "oauth": "oauth",
    "production_mode": "productionMode",
    "scopes": "scopes",
    "bearer_from_env": "bearerFromEnv",
}
_OF_A_CLIENT: Final = {"client_id", "client_id_from_env", "client_secret_from_env"}


def mcp_server_rules(read: Read, given: Given) -> Broken:
    """The rules for one McpServer."""
    for excluding, excluded in (("bundle_ref", _CONTENT), ("managed", _OF_AN_ENDPOINT)):
        if excluding in given:
            key = "bundleRef" if excluding == "bundle_ref" else excluding
            yield from ((each, f"cannot stand beside {key}") for each in _given(excluded, given))
            return
    oauth = read.get("oauth")
    has_client = isinstance(oauth, ServerOAuth) and oauth.has_client
    # An issuer without a client only describes the server, so a token may stand beside it.
    yield from server_rules(read, given if has_client else given - {"oauth"})
    if has_client and isinstance(oauth, ServerOAuth) and oauth.scopes and "scopes" in given:
        yield "scopes", "cannot stand beside oauth.scopes"
    if read.get("production_mode"):
        url = read.get("url")
        if isinstance(url, str) and not url.lower().startswith("https://"):
            yield "url", "must begin with https:// where productionMode is true"
        if "oauth" not in given or (isinstance(oauth, ServerOAuth) and oauth.issuer is None):
            yield "oauth", "must name the issuer where productionMode is true"


def _given(names: Mapping[str, str], given: Given) -> list[str]:
    return [key for name, key in names.items() if name in given]


def server_oauth_rules(read: Read, given: Given) -> Broken:
    """The rules for how tokens for an McpServer are got."""
    if given & _OF_A_CLIENT or "grant" in given or "subject_token_from_env" in given:
        yield from oauth_rules(read, given)
    elif not is_secure(str(read.get("issuer") or "https://")):
        yield "issuer", "must begin with https://, for secrets are sent there"


def governance_rules(read: Read, given: Given) -> Broken:
    """The rules for what a sandbox may use."""
    refs = read.get("mcp_server_refs", ())
    if not isinstance(refs, tuple):
        return
    if refs and "mcp_server_ref" in given:
        yield "mcpServerRef", "cannot stand beside mcpServerRefs, which is the newer way to say it"
    if len(refs) > MOST_SERVERS:
        yield "mcpServerRefs", f"holds more than {MOST_SERVERS} servers"
    names = [each.name for each in refs]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield "mcpServerRefs", f"holds the name {name!r} more than once"


def server_ref_rules(_: Read, given: Given) -> Broken:
    """The rules for a reference to a server."""
    if "name" not in given:
        yield "name", "is missing: name the McpServer"


def env_var_rules(_: Read, given: Given) -> Broken:
    """The rules for a variable of a container."""
    if "name" not in given:
        yield "name", "is missing: name the variable"
    if {"value", "value_from"} <= given:
        yield "valueFrom", "cannot stand beside value"


RESOURCE_RULES: Mapping[type, Callable[[Read, Given], Broken]] = {
    McpServerSpec: mcp_server_rules,
    ServerOAuth: server_oauth_rules,
    Governance: governance_rules,
    ServerRef: server_ref_rules,
    EnvVar: env_var_rules,
}
