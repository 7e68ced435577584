"""The rules of `rules` and `resource_rules`, as an API server evaluates them.

Each is an expression of CEL that has to be true of an object of its class; null counts as absent
there. They must agree with the rules in Python, and tests hold them to it. Nothing here evaluates
anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from attrs import frozen

from kars_router.config.headers import FORBIDDEN
from kars_router.config.mcpserver import McpServerSpec, ServerOAuth
from kars_router.config.patterns import HEADER_NAME
from kars_router.config.sandbox import EnvVar, Governance
from kars_router.config.toolpolicy import Budget, RateLimit, Rule
from kars_router.config.toolpolicyspec import PolicyProfile, ToolPolicySpec


@frozen
class Validation:
    """One rule.

    Attributes:
        rule: the expression.
        message: what is said if it is false.
    """

    rule: str
    message: str


def _all(*parts: str) -> str:
    return " && ".join(f"({part})" for part in parts)


def _some(*keys: str) -> str:
    """Whether a list is there with something in it."""
    return _all(*(f"has(self.{key}) && size(self.{key}) > 0" for key in keys))


def _implies(condition: str, *then: str) -> str:
    return f"!({condition}) || ({_all(*then)})"


def _not_beside(condition: str, *excluded: str) -> str:
    return _implies(condition, *(f"!({each})" for each in excluded))


_PRODUCTION: Final = "has(self.productionMode) && self.productionMode"
_CLIENT: Final = "has(self.oauth) && (has(self.oauth.clientId) || has(self.oauth.clientIdFromEnv))"
_IS_SCHEME: Final = "self.url.matches('^({}):')"
_HTTPS: Final = "[hH][tT][tT][pP][sS]"
_HTTP: Final = f"{_HTTPS}?"
_WS: Final = "[wW][sS][sS]?"
_FORBIDDEN: Final = ", ".join(f"'{name}'" for name in sorted(FORBIDDEN))

_SERVER: Final = (
    Validation(
        "has(self.url) || has(self.bundleRef) || has(self.managed)",
        "url is missing: give the server's address",
    ),
    Validation(
        _not_beside(
            "has(self.bundleRef)",
            "has(self.url)",
            "has(self.oauth)",
            _PRODUCTION,
            _some("scopes"),
            _some("allowedTools"),
            "has(self.displayName)",
            "has(self.managed)",
        ),
        "bundleRef cannot stand beside what the bundle would hold: url, oauth, productionMode, "
        "scopes, allowedTools, displayName, managed",
    ),
    Validation(
        _not_beside(
            "has(self.managed)",
            "has(self.url)",
            "has(self.oauth)",
            _PRODUCTION,
            _some("scopes"),
            "has(self.bearerFromEnv)",
        ),
        "managed cannot stand beside url, oauth, productionMode, scopes and bearerFromEnv",
    ),
    Validation(
        _implies(f"{_PRODUCTION} && has(self.url)", _IS_SCHEME.format(_HTTPS)),
        "url must begin with https:// where productionMode is true",
    ),
    Validation(
        _implies(_PRODUCTION, "has(self.oauth) && has(self.oauth.issuer)"),
        "oauth must name the issuer where productionMode is true",
    ),
    Validation(
        _not_beside("has(self.url)", "has(self.transport) && self.transport == 'stdio'"),
        "transport cannot be stdio with a url",
    ),
    Validation(
        _implies(
            "has(self.url) && has(self.transport) && self.transport == 'websocket'",
            _IS_SCHEME.format(_WS),
        ),
        "transport cannot be websocket with a url that does not start with ws:// or wss://",
    ),
    Validation(
        _implies(
            "has(self.url) && has(self.transport) && self.transport in ['sse', 'streamable-http']",
            _IS_SCHEME.format(_HTTP),
        ),
        "transport cannot be sse or streamable-http with a url that does not start with http:// "
        "or https://",
    ),
    Validation(
        _not_beside("has(self.bearerFromEnv)", _CLIENT),
        "oauth with a client cannot stand beside bearerFromEnv: a server has one token",
    ),
    Validation(
        _not_beside(
            _CLIENT,
            f"{_some('scopes')} && has(self.oauth.scopes) && size(self.oauth.scopes) > 0",
        ),
        "scopes cannot stand beside oauth.scopes",
    ),
    Validation(
        _implies(
            "has(self.headers)",
            f'self.headers.all(name, name.matches("^{HEADER_NAME}$") && '
            f"!(name.lowerAscii() in [{_FORBIDDEN}]) && "
            "!name.lowerAscii().startsWith('mcp-'))",
        ),
        "headers cannot set what the protocol, the connection or the credentials set",
    ),
    Validation(
        _implies(
            "has(self.headers)",
            "self.headers.all(one, "
            "self.headers.exists_one(other, other.lowerAscii() == one.lowerAscii()))",
        ),
        "headers gives a name twice: case does not matter here",
    ),
)

_ISSUED: Final = (
    "has(self.clientId) || has(self.clientIdFromEnv) || has(self.clientSecretFromEnv) || "
    "has(self.subjectTokenFromEnv) || (has(self.grant) && self.grant != 'client-credentials')"
)
_EXCHANGE: Final = "has(self.grant) && self.grant == 'token-exchange'"
_OAUTH: Final = (
    Validation(
        "!(has(self.clientId) && has(self.clientIdFromEnv))",
        "clientIdFromEnv cannot stand beside clientId",
    ),
    Validation(
        _implies(_ISSUED, "has(self.clientId) || has(self.clientIdFromEnv)"),
        "clientIdFromEnv is missing: name the variable with the client identifier",
    ),
    Validation(
        f"({_EXCHANGE}) == has(self.subjectTokenFromEnv)",
        "grant must be token-exchange where a subject token is named, and the other way round",
    ),
    Validation(
        _implies(f"({_ISSUED}) && !({_EXCHANGE})", "has(self.clientSecretFromEnv)"),
        "clientSecretFromEnv is missing: name the variable with the client's secret",
    ),
    Validation(
        _implies(
            "has(self.issuer)",
            f"self.issuer.matches('^({_HTTPS}:|{_HTTP}://"
            r"(([A-Za-z0-9_-]+[.])*[lL][oO][cC][aA][lL][hH][oO][sS][tT][.]?"
            r"|127[.][0-9.]+|[[]::1[]])(:[0-9]+)?([/?]|$))')",
        ),
        "issuer must begin with https://, for secrets are sent there",
    ),
)

_ACTS: Final = (
    "has(self.redact.kinds) && size(self.redact.kinds) == 0 && "
    "!(has(self.redact.expressions) && size(self.redact.expressions) > 0) && "
    "!(has(self.redact.fields) && size(self.redact.fields) > 0)"
)
_NO_WHERE: Final = (
    "!(has(self.redact.arguments) && self.redact.arguments) && "
    "has(self.redact.results) && !self.redact.results"
)
# What is written out as it is by default says nothing.
_APPROVAL: Final = "has(self.approval) && (has(self.approval.expires) || has(self.approval.via))"
_REDACT: Final = (
    "has(self.redact) && (has(self.redact.kinds)"
    " || (has(self.redact.expressions) && size(self.redact.expressions) > 0)"
    " || (has(self.redact.fields) && size(self.redact.fields) > 0)"
    " || (has(self.redact.arguments) && self.redact.arguments)"
    " || (has(self.redact.results) && !self.redact.results))"
)
_RULE: Final = (
    Validation(
        _implies(_APPROVAL, "self.effect == 'approve'"),
        "approval has a meaning with the effect approve only",
    ),
    Validation(
        _implies(_REDACT, "self.effect == 'redact'"),
        "redact has a meaning with the effect redact only",
    ),
    Validation(
        _implies("has(self.arguments)", "self.effect in ['allow', 'approve']"),
        "arguments has a meaning with the effects allow and approve only; use when",
    ),
    Validation(_not_beside("has(self.redact)", _ACTS), "redact names nothing to take out"),
    Validation(
        _not_beside("has(self.redact)", _NO_WHERE),
        "redact is for neither arguments nor results",
    ),
)


def _once(key: str) -> Validation:
    return Validation(
        _implies(
            f"has(self.{key})",
            f"self.{key}.all(one, !has(one.name) || self.{key}.exists_one(other, "
            "has(other.name) && other.name == one.name))",
        ),
        f"{key} holds a name more than once",
    )


VALIDATIONS: Final[Mapping[type, tuple[Validation, ...]]] = {
    McpServerSpec: _SERVER,
    ServerOAuth: _OAUTH,
    Governance: (
        Validation(
            _not_beside("has(self.mcpServerRef)", _some("mcpServerRefs")),
            "mcpServerRef cannot stand beside mcpServerRefs, which is the newer way to say it",
        ),
    ),
    EnvVar: (
        Validation(
            "!(has(self.value) && has(self.valueFrom))", "valueFrom cannot stand beside value"
        ),
    ),
    ToolPolicySpec: tuple(_once(key) for key in ("rules", "rateLimits", "budgets")),
    PolicyProfile: (
        Validation(
            f"({_some('inline')}) != has(self.bundleRef)",
            "inline or bundleRef: give the profile in one of the two ways",
        ),
    ),
    Rule: _RULE,
    RateLimit: (
        Validation(
            "has(self.calls) || has(self.concurrency)",
            "calls is missing: give calls, concurrency or both",
        ),
        Validation(
            _implies("has(self.window) || has(self.burst)", "has(self.calls)"),
            "window and burst have no meaning without calls",
        ),
    ),
    Budget: (
        Validation(
            "has(self.calls) || has(self.resultBytes)",
            "calls is missing: give calls, resultBytes or both",
        ),
        Validation(
            _not_beside(_some("per"), "has(self.period) && self.period == 'session'"),
            "per has no meaning with the period session, which is the agent's own",
        ),
    ),
}
