"""Which settings go together, and which ones are known but not supported.

Each rule yields `(key, sentence)` pairs. A rule sees what could be read of the mapping (`read`,
by attribute name) and which keys were given anything but their default, right or wrong (`given`),
so that one wrong value does not hide another mistake. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet

from kars_router.config.addresses import is_secure
from kars_router.config.auth import AgentAuth, Grant, Jwt, OAuth
from kars_router.config.marks import key_of
from kars_router.config.schema import Audit, Config, Fsync, Plugins, Server, Transport
from kars_router.config.toolpolicy import (
    AgtProfile,
    Approval,
    ApprovalMode,
    Budget,
    Effect,
    Period,
    RateLimit,
    Redact,
    Rule,
    SimpleApproval,
    ToolPolicy,
)

Read = Mapping[str, object]
Given = AbstractSet[str]
Broken = Iterator[tuple[str, str]]


# What belongs to requests over a network.
_OF_A_URL = {
    "bearer_from_env": "bearerFromEnv",
    "bearer_from_file": "bearerFromFile",
    "oauth": "oauth",
    "allowed_networks": "allowedNetworks",
    "headers": "headers",
    "ca_file": "caFile",
    "max_connections": "maxConnections",
}
_SCHEMES = {
    Transport.STREAMABLE_HTTP: ("http", "https"),
    Transport.SSE: ("http", "https"),
    Transport.WEBSOCKET: ("ws", "wss"),
}


def server_rules(read: Read, given: Given) -> Broken:
    """The rules for one server."""
    if "url" in given and "command" in given:
        yield "url", "cannot stand beside command: a server has one or the other"
    elif "url" not in given and "command" not in given:
        yield "url", "is missing: give the server's address, such as http://localhost:8931/mcp"
    elif "command" in given:
        yield from _command_rules(read, given)
    else:
        yield from _url_rules(read, given)
    if "bearer_from_env" in given and "bearer_from_file" in given:
        yield "bearerFromFile", "cannot stand beside bearerFromEnv: a server has one token"
    for name, key in (("bearer_from_env", "bearerFromEnv"), ("bearer_from_file", "bearerFromFile")):
        if name in given and "oauth" in given:
            yield "oauth", f"cannot stand beside {key}: a server has one token"


def _command_rules(read: Read, given: Given) -> Broken:
    transport = read.get("transport")
    if transport not in (None, Transport.AUTO, Transport.STDIO):
        yield "transport", f"cannot be {transport} with a command, which is spoken to over stdio"
    for name, key in _OF_A_URL.items():
        if name in given:
            yield key, "has no meaning with a command, which is given what it needs in args and env"


def _url_rules(read: Read, given: Given) -> Broken:
    for key in ("args", "env"):
        if key in given:
            yield key, "has no meaning without command"
    url, transport = read.get("url"), read.get("transport")
    scheme = url.partition(":")[0].lower() if isinstance(url, str) else ""
    if transport is Transport.STDIO:
        yield "transport", "cannot be stdio with a url; give a command instead"
    elif scheme and isinstance(transport, Transport) and transport in _SCHEMES:
        fitting = " or ".join(f"{each}://" for each in _SCHEMES[transport])
        if scheme not in _SCHEMES[transport]:
            yield (
                "transport",
                f"cannot be {transport} with a url that does not start with {fitting}",
            )
    if "ca_file" in given and scheme in ("http", "ws"):
        yield "caFile", f"has no effect on a URL without TLS; use {scheme}s"


def plugin_rules(read: Read, _: Given) -> Broken:
    """The rules for the plugins section."""
    blocked, required = read.get("blocked"), read.get("required")
    if isinstance(blocked, tuple) and isinstance(required, tuple):
        for name in sorted({*blocked} & {*required}):
            yield "blocked", f"names {name!r}, which required names as well"


def config_rules(read: Read, given: Given) -> Broken:
    """The rules for the whole configuration."""
    listen = read.get("listen", Config().listen)
    if listen == read.get("admin", Config().admin) and getattr(listen, "port", None) != 0:
        yield "admin", "must be another address than listen"
    yield from _names_twice(read, "policies")
    plugins = read.get("plugins")
    if "tools_lock" in given and isinstance(plugins, Plugins) and "pins" in plugins.blocked:
        yield "toolsLock", "has no effect while plugins.blocked names 'pins'"


def audit_rules(read: Read, given: Given) -> Broken:
    """The rules for the record of calls."""
    fsync = read.get("fsync", Fsync.INTERVAL)
    if "fsync_interval" in given and isinstance(fsync, Fsync) and fsync is not Fsync.INTERVAL:
        yield "fsyncInterval", f"has no meaning with the fsync {fsync}"


def oauth_rules(read: Read, given: Given) -> Broken:
    """The rules for how tokens for a server are got."""
    yield from _one_of(given, "client_id", "client_id_from_env")
    yield from _one_of(given, "client_secret_from_env", "client_secret_from_file")
    yield from _one_of(given, "subject_token_from_env", "subject_token_from_file")
    if not given & {"client_id", "client_id_from_env"}:
        yield "clientIdFromEnv", "is missing: name the variable with the client identifier"
    subject = given & {"subject_token_from_env", "subject_token_from_file"}
    if read.get("grant") is Grant.TOKEN_EXCHANGE:
        if not subject:
            yield "subjectTokenFromFile", "is missing: name the token that is to be exchanged"
    elif subject:
        yield "grant", "must be token-exchange where a subject token is named"
    elif not given & {"client_secret_from_env", "client_secret_from_file"}:
        yield "clientSecretFromEnv", "is missing: name the variable with the client's secret"
    if not is_secure(str(read.get("issuer") or "https://")):
        yield "issuer", "must begin with https://, for secrets are sent there"


def agent_auth_rules(_: Read, given: Given) -> Broken:
    """The rules for what agents have to show."""
    yield from _one_of(given, "token_from_env", "token_from_file")
    if "jwt" in given and given & {"token_from_env", "token_from_file"}:
        yield "jwt", "cannot stand beside a shared token"


def jwt_rules(read: Read, given: Given) -> Broken:
    """The rules for tokens that agents show."""
    yield from _one_of(given, "jwks_url", "jwks_file")
    if "jwks_file" not in given:
        name, key = ("jwks_url", "jwksUrl") if "jwks_url" in given else ("issuer", "issuer")
        if not is_secure(str(read.get(name) or "https://")):
            yield key, "must begin with https://, for keys that come from it are trusted"
    for key in ("issuer", "audience"):
        if key not in given:
            yield key, "is missing: without it, tokens that were made for others would be taken"


def rule_rules(read: Read, given: Given) -> Broken:
    """The rules for one rule of a policy."""
    effect = read.get("effect")
    if "effect" not in given and "effect" not in read:
        yield "effect", "is missing: say allow, deny, approve or redact"
    for name in ("approval", "redact"):
        if name in given and effect not in (None, name.replace("approval", "approve")):
            yield name, f"has no meaning with the effect {effect}"
    if not isinstance(read.get("arguments", {}), Mapping | None):
        yield "arguments", "must be a JSON Schema, which is a mapping"
    if "arguments" in given and effect not in (None, Effect.ALLOW, Effect.APPROVE):
        yield "arguments", f"has no meaning with the effect {effect}; use when"
    redact = read.get("redact")
    if effect is Effect.REDACT and isinstance(redact, Redact):
        if not (redact.kinds or redact.expressions or redact.fields):
            yield "redact", "names nothing to take out"
        elif not (redact.arguments or redact.results):
            yield "redact", "is for neither arguments nor results"


def rate_rules(_: Read, given: Given) -> Broken:
    """The rules for one rate limit."""
    if not given & {"calls", "concurrency"}:
        yield "calls", "is missing: give calls, concurrency or both"
    for key in ("window", "burst"):
        if key in given and "calls" not in given:
            yield key, "has no meaning without calls"


def budget_rules(read: Read, given: Given) -> Broken:
    """The rules for one budget."""
    if not given & {"calls", "result_bytes"}:
        yield "calls", "is missing: give calls, resultBytes or both"
    if "per" in given and read.get("period") is Period.SESSION:
        yield "per", "has no meaning with the period session, which is the agent's own"


def approval_rules(read: Read, _: Given) -> Broken:
    """The rules for the terms of an approval."""
    if read.get("via") == ():
        yield "via", "is empty, so that nobody could decide"


def simple_approval_rules(read: Read, given: Given) -> Broken:
    """The rules for the approval of kars' own format."""
    if read.get("mode") is ApprovalMode.ABOVE_THRESHOLD or "threshold" in given:
        yield "threshold", "is not supported; write a rule with the effect approve and a condition"


def policy_rules(read: Read, given: Given) -> Broken:
    """The rules for one policy."""
    if "bundle_ref" in given:
        yield "bundleRef", "is not supported; put the rules here"
    if "commerce" in given:
        yield "commerce", "is not supported; write rules with conditions on the amount instead"
    for key in ("rules", "rate_limits", "budgets"):
        yield from _names_twice(read, key)


def profile_rules(read: Read, given: Given) -> Broken:
    """The rules for a profile in kars' own format."""
    if "inline" not in given:
        yield "inline", "is missing: put the profile here"
    elif not isinstance(read.get("inline", ""), str | Mapping):
        yield "inline", "must be the profile, as text or as a mapping"


def _one_of(given: Given, first: str, second: str) -> Broken:
    if first in given and second in given:
        yield key_of(second), f"cannot stand beside {key_of(first)}"


def _names_twice(read: Read, attribute: str) -> Broken:
    # Decisions, records and what is counted across restarts go by these names.
    listed = read.get(attribute, ())
    names = [each.name for each in listed if each.name] if isinstance(listed, tuple) else []
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield key_of(attribute), f"holds the name {name!r} more than once"


RULES: Mapping[type, Callable[[Read, Given], Broken]] = {
    Server: server_rules,
    Plugins: plugin_rules,
    Config: config_rules,
    Audit: audit_rules,
    OAuth: oauth_rules,
    AgentAuth: agent_auth_rules,
    Jwt: jwt_rules,
    Rule: rule_rules,
    RateLimit: rate_rules,
    Budget: budget_rules,
    Approval: approval_rules,
    SimpleApproval: simple_approval_rules,
    AgtProfile: profile_rules,
    ToolPolicy: policy_rules,
}
