"""Which fields of the custom resources go together; as `rules`, of which it is a part.

The same rules stand in the schemas of the custom resources, so an API server refuses what is
refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from kars_router.config.addresses import is_secure
from kars_router.config.marks import key_of
from kars_router.config.mcpserver import Managed, McpServerSpec, ServerOAuth
from kars_router.config.rules import Broken, Given, Read, oauth_rules, policy_rules, server_rules
from kars_router.config.sandbox import Agent, Byo, EnvVar, Governance, Router, ServerRef
from kars_router.config.toolpolicyspec import (
    BundleRef,
    PolicyApproval,
    PolicyApprovalMode,
    PolicyProfile,
    ToolPolicySpec,
)

MOST_SERVERS: Final = 8
# What stands in the place of an endpoint, and what it excludes.
CONTENT: Final = (
    "url",
    "oauth",
    "production_mode",
    "scopes",
    "allowed_tools",
    "display_name",
    "managed",
)
ENDPOINT: Final = ("url", "oauth", "production_mode", "scopes", "bearer_from_env")
# What only has a meaning where tokens are got.
OF_A_CLIENT: Final = (
    "client_id",
    "client_id_from_env",
    "client_secret_from_env",
    "grant",
    "subject_token_from_env",
)


def mcp_server_rules(read: Read, given: Given) -> Broken:
    """The rules for one McpServer."""
    for excluding, excluded in (("bundle_ref", CONTENT), ("managed", ENDPOINT)):
        if excluding in given:
            key = key_of(excluding)
            yield from (
                (key_of(each), f"cannot stand beside {key}") for each in excluded if each in given
            )
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


def server_oauth_rules(read: Read, given: Given) -> Broken:
    """The rules for how tokens for an McpServer are got."""
    if not given.isdisjoint(OF_A_CLIENT):
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
    yield from _names_twice("mcpServerRefs", refs)


def managed_rules(_: Read, given: Given) -> Broken:
    """The rules for a server that kars runs."""
    if "preset" not in given:
        yield "preset", "is missing: name the server"


def bundle_ref_rules(_: Read, given: Given) -> Broken:
    """The rules for a signed artifact."""
    for name in ("registry", "repository", "digest", "artifact_type"):
        if name not in given:
            yield key_of(name), "is missing"


def container_rules(read: Read, _: Given) -> Broken:
    """The rules for a container."""
    env = read.get("env")
    if isinstance(env, tuple):
        yield from _names_twice("env", env)


def server_ref_rules(_: Read, given: Given) -> Broken:
    """The rules for a reference to a server."""
    if "name" not in given:
        yield "name", "is missing: name the McpServer"


def env_var_rules(read: Read, given: Given) -> Broken:
    """The rules for a variable of a container."""
    if not isinstance(read.get("value_from"), Mapping | None):
        yield "valueFrom", "must be a mapping, as in a pod"
    if "name" not in given:
        yield "name", "is missing: name the variable"
    if {"value", "value_from"} <= given:
        yield "valueFrom", "cannot stand beside value"


def profile_rules(_: Read, given: Given) -> Broken:
    """The rules for a profile in kars' own format."""
    if {"inline", "bundle_ref"} <= given:
        yield "bundleRef", "cannot stand beside inline"
    elif "bundle_ref" in given:
        yield "bundleRef", "is not supported; put the profile in inline"
    elif "inline" not in given:
        yield "inline", "is missing: put the profile here"


def policy_approval_rules(read: Read, given: Given) -> Broken:
    """The rules for the approval of kars' own format."""
    if read.get("mode") is PolicyApprovalMode.ABOVE_THRESHOLD or "threshold" in given:
        yield "threshold", "is not supported; write a rule with the effect approve and a condition"


def _names_twice(key: str, listed: Iterable[EnvVar | ServerRef]) -> Broken:
    names = [each.name for each in listed]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield key, f"holds the name {name!r} more than once"


RESOURCE_RULES: Mapping[type, Callable[[Read, Given], Broken]] = {
    McpServerSpec: mcp_server_rules,
    ServerOAuth: server_oauth_rules,
    Governance: governance_rules,
    ServerRef: server_ref_rules,
    EnvVar: env_var_rules,
    Managed: managed_rules,
    BundleRef: bundle_ref_rules,
    Agent: container_rules,
    Router: container_rules,
    Byo: container_rules,
    PolicyProfile: profile_rules,
    PolicyApproval: policy_approval_rules,
    ToolPolicySpec: policy_rules,
}
