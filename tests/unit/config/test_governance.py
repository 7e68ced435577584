"""Settings of credentials, policies, governance and the record: what is read, what is refused."""

# ruff: noqa: E501 (tables: a mistake and what is said of it stand on one line)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kars_router.config.auth import AgentAuth, ClientAuth, Grant
from kars_router.config.converter import structure_config, structure_server, to_plain
from kars_router.config.load import load, parse
from kars_router.config.problems import InvalidConfigError, InvalidError
from kars_router.config.schema import (
    Audit,
    AuditContent,
    Config,
    Fsync,
    Governance,
    OnAuditFailure,
    Server,
)
from kars_router.config.toolpolicy import (
    ApprovalMode,
    Channel,
    Default,
    Effect,
    Per,
    Period,
    SecretKind,
    ToolPolicy,
)
from kars_router.errors import ConfigError

URL = "https://mcp.example/mcp"
SECRET = {"clientId": "kars", "clientSecretFromEnv": "SECRET"}
EXCHANGE = {"clientId": "kars", "grant": "token-exchange", "subjectTokenFromFile": "/run/token"}
JWT = {"issuer": "https://login.example", "audience": ["https://router.example/mcp"]}

OAUTH: dict[str, Any] = {
    "issuer": "https://login.example/realms/kars",
    "grant": "token-exchange",
    "clientIdFromEnv": "CLIENT",
    "clientSecretFromFile": "/run/secret",
    "clientAuth": "client_secret_post",
    "scopes": ["tools.read", "tools.call"],
    "resource": "https://mcp.example/",
    "audience": "mcp",
    "subjectTokenFromEnv": "SUBJECT",
    "subjectTokenType": "urn:ietf:params:oauth:token-type:access_token",
    "pkce": "S256",
}
POLICY: dict[str, Any] = {
    "name": "browsing",
    "appliesTo": {"tool": "browser_*", "mcpServer": "web*", "sandboxMatchLabels": {"a/b": "c"}},
    "default": "approve",
    "rules": [
        {
            "name": "one",
            "effect": "approve",
            "priority": -5,
            "servers": ["web"],
            "tools": ["browser_*"],
            "resources": ["file:///*"],
            "prompts": ["ask"],
            "annotations": {"readOnlyHint": True, "destructiveHint": False},
            "when": "  args.url.startsWith('https://') ",
            "arguments": {"type": "object", "required": ["url"]},
            "reason": "ask first",
            "approval": {"expires": "1m", "via": ["operator"]},
        },
        {
            "effect": "redact",
            "redact": {
                "kinds": ["jwt"],
                "expressions": ["key-[0-9]+"],
                "fields": ["/a/*/b~1c", "/"],
                "arguments": True,
                "results": False,
            },
        },
    ],
    "rateLimits": [
        {"name": "r", "servers": ["web"], "tools": ["a"], "per": ["agent", "tool"], "calls": 5, "window": "1s", "burst": 9, "concurrency": 2}
    ],
    "budgets": [
        {"name": "b", "servers": ["web"], "tools": ["a"], "per": ["server"], "period": "day", "calls": 5, "resultBytes": "1MiB"}
    ],
    "resultBytes": "2MiB",
    "agtProfile": {"inline": {"version": 1, "policies": []}},
    "rateLimit": {"rps": 5, "burst": 10, "window": "2s"},
    "approval": {"mode": "always", "channel": "ops"},
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "servers": {"web": {"url": URL, "oauth": OAUTH, "allowedNetworks": ["10.0.0.0/8", "fd00::/8"]}},
    "agentAuth": {
        "jwt": {**JWT, "jwksUrl": "https://login.example/keys", "scopes": ["mcp"], "leeway": "5s"}
    },
    "policies": [POLICY, {}],
    "governance": {"deadline": "1s", "approval": "1h", "heldCalls": 3},
    "toolsLock": "/etc/kars/tools.lock.yaml",
    "audit": {
        "path": "/var/log/audit.jsonl",
        "content": "all",
        "fsync": "interval",
        "fsyncInterval": "5s",
        "rotate": "1MiB",
        "keep": 7,
        "checkpoint": 10,
        "onFailure": "allow",
        "signingKey": "/run/key.pem",
    },
}


def lines(raw: object) -> list[str]:
    with pytest.raises(InvalidError) as caught:
        structure_config(raw)
    return [problem.line for problem in caught.value.problems]


def oauth_lines(oauth: object, **keys: object) -> list[str]:
    with pytest.raises(InvalidConfigError) as caught:
        structure_server({"url": URL, "oauth": oauth, **keys})
    return list(caught.value.problems)


def policy_lines(policy: object) -> list[str]:
    return lines({"policies": [policy]})


def test_everything_can_be_set() -> None:
    config = structure_config(EVERYTHING)
    oauth = config.servers["web"].oauth
    assert oauth is not None
    assert (oauth.grant, oauth.client_auth) == (Grant.TOKEN_EXCHANGE, ClientAuth.POST)
    assert (oauth.client_id_from_env, oauth.client_secret_from_file) == (
        "CLIENT",
        Path("/run/secret"),
    )
    assert oauth.scopes == ("tools.read", "tools.call")
    assert config.servers["web"].allowed_networks == ("10.0.0.0/8", "fd00::/8")
    jwt = config.agent_auth.jwt
    assert jwt is not None
    assert (jwt.issuer, jwt.audience, jwt.leeway) == (JWT["issuer"], tuple(JWT["audience"]), 5)
    assert config.governance == Governance(deadline=1, approval=3600, held_calls=3)
    assert config.tools_lock == Path("/etc/kars/tools.lock.yaml")
    assert config.audit == Audit(
        path=Path("/var/log/audit.jsonl"),
        content=AuditContent.ALL,
        fsync=Fsync.INTERVAL,
        fsync_interval=5,
        rotate=1 << 20,
        keep=7,
        checkpoint=10,
        on_failure=OnAuditFailure.ALLOW,
        signing_key=Path("/run/key.pem"),
    )


def test_a_whole_policy() -> None:
    policy, empty = structure_config(EVERYTHING).policies
    assert empty == ToolPolicy()
    assert (policy.default, empty.default) == (Default.APPROVE, Default.DENY)
    assert policy.applies_to.sandbox_match_labels == {"a/b": "c"}
    first, second = policy.rules
    assert (first.effect, first.priority) == (Effect.APPROVE, -5)
    assert first.annotations == {"readOnlyHint": True, "destructiveHint": False}
    assert first.when == "args.url.startsWith('https://')"
    assert first.arguments == {"type": "object", "required": ("url",)}
    assert (first.approval.expires, first.approval.via) == (60, (Channel.OPERATOR,))
    assert second.redact.kinds == (SecretKind.JWT,)
    assert second.redact.fields == ("/a/*/b~1c", "/")
    assert policy.rate_limits[0].per == (Per.AGENT, Per.TOOL)
    assert policy.budgets[0].period is Period.DAY
    assert policy.approval.mode is ApprovalMode.ALWAYS
    assert policy.rate_limit is not None
    assert (policy.rate_limit.rps, policy.rate_limit.window) == (5, 2)


def test_everything_goes_back_to_what_it_was() -> None:
    config = structure_config(EVERYTHING)
    assert structure_config(to_plain(config)) == config
    assert hash(config) == hash(structure_config(EVERYTHING))


def test_nothing_is_the_default() -> None:
    config = structure_config({"servers": {"web": {"url": URL}}})
    assert config.agent_auth == AgentAuth()
    assert (config.audit, config.tools_lock, config.policies) == (None, None, ())
    assert config.servers["web"] == Server(url=URL)
    assert structure_config({"audit": {}}).audit == Audit()
    assert structure_config({"audit": None, "toolsLock": None}) == Config()


def test_the_schema_of_arguments_may_hold_null() -> None:
    rule = {"effect": "allow", "arguments": {"const": None}}
    (policy,) = structure_config({"policies": [{"rules": [rule]}]}).policies
    assert policy.rules[0].arguments == {"const": None}


@pytest.mark.parametrize("oauth", [SECRET, EXCHANGE, {**EXCHANGE, **SECRET}])
def test_grants_that_have_what_they_need(oauth: dict[str, object]) -> None:
    assert structure_server({"url": URL, "oauth": oauth}).oauth is not None


@pytest.mark.parametrize(
    ("oauth", "said"),
    [
        ({}, [
            "oauth.clientIdFromEnv: is missing: name the variable with the client identifier",
            "oauth.clientSecretFromEnv: is missing: name the variable with the client's secret",
        ]),
        ({**SECRET, "clientIdFromEnv": "A"}, ["oauth.clientIdFromEnv: cannot stand beside clientId"]),
        ({**SECRET, "clientSecretFromFile": "a"}, ["oauth.clientSecretFromFile: cannot stand beside clientSecretFromEnv"]),
        ({**EXCHANGE, "subjectTokenFromEnv": "A"}, ["oauth.subjectTokenFromFile: cannot stand beside subjectTokenFromEnv"]),
        ({**SECRET, "grant": "token-exchange"}, ["oauth.subjectTokenFromFile: is missing: name the token that is to be exchanged"]),
        ({**SECRET, "subjectTokenFromEnv": "A"}, ["oauth.grant: must be token-exchange where a subject token is named"]),
        ({**SECRET, "grant": "password"}, ["oauth.grant: must be one of client-credentials, token-exchange, not 'password'"]),
        ({**SECRET, "issuer": "http://h/"}, ["oauth.issuer: must begin with https://, for secrets are sent there"]),
        ({**SECRET, "clientAuth": "none"}, ["oauth.clientAuth: must be one of client_secret_basic, client_secret_post, not 'none'"]),
        ({**SECRET, "pkce": "plain"}, ["oauth.pkce: must be one of S256, not 'plain'"]),
        ({**SECRET, "scopes": ["a b"]}, ["oauth.scopes[0]: must be a scope: printable ASCII without spaces and quotes"]),
        ({**SECRET, "scopes": ["ü"]}, ["oauth.scopes[0]: must be a scope: printable ASCII without spaces and quotes"]),
        ({**SECRET, "issuer": "wss://h/"}, ["oauth.issuer: must start with http:// or https://"]),
        ({**SECRET, "issuer": "https://a:b@h/"}, ["oauth.issuer: must not hold a user or a password; name the token with bearerFromEnv instead"]),
        ({**SECRET, "resource": "x"}, ["oauth.resource: must be an absolute URI without a fragment"]),
        ({**SECRET, "clientSecretFromEnv": "5551234"}, ["oauth.clientSecretFromEnv: must be the name of an environment variable, never the token itself"]),
        ({**SECRET, "isuer": "x"}, ["oauth.isuer: is not a known key (did you mean 'issuer'?)"]),
    ],
)  # fmt: skip
def test_mistakes_in_oauth(oauth: dict[str, object], said: list[str]) -> None:
    assert oauth_lines(oauth) == said


@pytest.mark.parametrize(
    ("key", "value"), [("bearerFromEnv", "TOKEN"), ("bearerFromFile", "token")]
)
def test_a_server_has_one_token(key: str, value: str) -> None:
    said = oauth_lines(SECRET, **{key: value})
    assert said == [f"oauth: cannot stand beside {key}: a server has one token"]


def test_a_command_is_given_no_tokens() -> None:
    (line,) = oauth_lines(SECRET, url=None, command="npx")
    assert line.startswith("oauth: has no meaning with a command")


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        ({"agentAuth": {"tokenFromEnv": "A", "tokenFromFile": "a"}}, "agentAuth.tokenFromFile: cannot stand beside tokenFromEnv"),
        ({"agentAuth": {"tokenFromEnv": "A", "jwt": JWT}}, "agentAuth.jwt: cannot stand beside a shared token"),
        ({"agentAuth": {"tokenFromFile": "a", "jwt": JWT}}, "agentAuth.jwt: cannot stand beside a shared token"),
        ({"agentAuth": {"jwt": {**JWT, "issuer": None}}}, "agentAuth.jwt.issuer: is missing: without it, tokens that were made for others would be taken"),
        ({"agentAuth": {"jwt": {**JWT, "audience": []}}}, "agentAuth.jwt.audience: is missing: without it, tokens that were made for others would be taken"),
        ({"agentAuth": {"jwt": {**JWT, "jwksUrl": "https://h/", "jwksFile": "a"}}}, "agentAuth.jwt.jwksFile: cannot stand beside jwksUrl"),
        ({"agentAuth": {"jwt": {**JWT, "jwksUrl": "ws://h/"}}}, "agentAuth.jwt.jwksUrl: must start with http:// or https://"),
        ({"agentAuth": {"jwt": {**JWT, "jwksUrl": "http://h/"}}}, "agentAuth.jwt.jwksUrl: must begin with https://, for keys that come from it are trusted"),
        ({"agentAuth": {"jwt": {**JWT, "issuer": "http://h/"}}}, "agentAuth.jwt.issuer: must begin with https://, for keys that come from it are trusted"),
        ({"agentAuth": {"token": "x"}}, "agentAuth.token: is not a known key"),
        ({"audit": {"fsync": "always", "fsyncInterval": "5s"}}, "audit.fsyncInterval: has no meaning with the fsync always"),
        ({"audit": {"fsync": "sometimes"}}, "audit.fsync: must be one of always, interval, never, not 'sometimes'"),
        ({"audit": {"path": ""}}, "audit.path: must be a path, which is neither empty nor holds control characters"),
        ({"audit": {"keep": 0}}, "audit.keep: must be from 1 to 1000000, not 0"),
        ({"audit": True}, "audit: must be a mapping, not true"),
        ({"governance": {"deadline": 0}}, "governance.deadline: must be longer than 0 and shorter than 366 days, not 0"),
        ({"toolsLock": 5}, "toolsLock: must be a string, not 5"),
        ({"policies": [{"name": "a"}, {}, {"name": "a"}]}, "policies: holds the name 'a' more than once"),
        ({"servers": {"web": {"url": URL, "allowedNetworks": ["10.0.0.1/8"]}}}, "servers.web.allowedNetworks[0]: has bits beyond its prefix; write 10.0.0.0/8"),
        ({"servers": {"web": {"url": URL, "allowedNetworks": ["example.com"]}}}, "servers.web.allowedNetworks[0]: must be a network such as 10.0.0.0/8, not 'example.com'"),
        ({"servers": {"web": {"url": URL, "allowedNetworks": [10]}}}, "servers.web.allowedNetworks[0]: must be a string, not 10"),
    ],
)  # fmt: skip
def test_mistakes(raw: object, line: str) -> None:
    assert lines(raw) == [line]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({}, "effect: is missing: say allow, deny, approve or redact"),
        ({"effect": "block"}, "effect: must be one of allow, deny, approve, redact, not 'block'"),
        ({"effect": "allow", "approval": {"expires": "1m"}}, "approval: has no meaning with the effect allow"),
        ({"effect": "deny", "redact": {"arguments": True}}, "redact: has no meaning with the effect deny"),
        ({"effect": "deny", "arguments": {"type": "object"}}, "arguments: has no meaning with the effect deny; use when"),
        ({"effect": "redact", "arguments": {"type": "object"}}, "arguments: has no meaning with the effect redact; use when"),
        ({"effect": "allow", "arguments": [1]}, "arguments: must be a JSON Schema, which is a mapping"),
        ({"effect": "redact", "redact": {"kinds": []}}, "redact: names nothing to take out"),
        ({"effect": "redact", "redact": {"results": False}}, "redact: is for neither arguments nor results"),
        ({"effect": "redact", "redact": {"kinds": ["all"]}}, "redact.kinds[0]: must be one of bearer, jwt, aws, azure, github, google, slack, openai, private-key, password, url-credentials, not 'all'"),
        ({"effect": "redact", "redact": {"expressions": ["("]}}, "redact.expressions[0]: is no regular expression: missing ), unterminated subpattern at position 0"),
        ({"effect": "redact", "redact": {"expressions": ["(?\a)"]}}, "redact.expressions[0]: is no regular expression: unknown extension ?? at position 1"),
        ({"effect": "redact", "redact": {"expressions": ["[[a]"]}}, "redact.expressions[0]: is no regular expression: Possible nested set at position 1"),
        ({"effect": "redact", "redact": {"expressions": ["a{99999999999}"]}}, "redact.expressions[0]: is no regular expression that can be compiled"),
        ({"effect": "redact", "redact": {"expressions": ["a*"]}}, "redact.expressions[0]: matches the empty string, so that it would match everywhere"),
        ({"effect": "redact", "redact": {"fields": ["a"]}}, "redact.fields[0]: must be a JSON pointer: each step is / and a name, ~ is ~0, / is ~1"),
        ({"effect": "redact", "redact": {"fields": ["/~2"]}}, "redact.fields[0]: must be a JSON pointer: each step is / and a name, ~ is ~0, / is ~1"),
        ({"effect": "approve", "approval": {"via": []}}, "approval.via: is empty, so that nobody could decide"),
        ({"effect": "approve", "approval": {"via": ["mail"]}}, "approval.via[0]: must be one of operator, elicitation, not 'mail'"),
        ({"effect": "allow", "priority": 10**6 + 1}, "priority: must be a whole number from -1000000 to 1000000, not 1000001"),
        ({"effect": "allow", "priority": True}, "priority: must be a whole number from -1000000 to 1000000, not true"),
        ({"effect": "allow", "when": " "}, "when: must have 1 to 4096 characters"),
        ({"effect": "allow", "when": "x" * 4097}, "when: must have 1 to 4096 characters"),
        ({"effect": "allow", "annotations": {"readOnlyHint": "yes"}}, "annotations.readOnlyHint: must be true or false, not 'yes'"),
    ],
)  # fmt: skip
def test_mistakes_in_a_rule(rule: dict[str, object], line: str) -> None:
    assert policy_lines({"rules": [rule]}) == [f"policies[0].rules[0].{line}"]


@pytest.mark.parametrize(
    ("policy", "line"),
    [
        ({"default": "redact"}, "default: must be one of deny, approve, allow, not 'redact'"),
        ({"default": "denied"}, "default: must be one of deny, approve, allow, not 'denied'"),
        ({"bundleRef": {"registry": "x"}}, "bundleRef: is not supported; put the rules here"),
        ({"commerce": {"dailyCap": 1}}, "commerce: is not supported; write rules with conditions on the amount instead"),
        ({"approval": {"mode": "aboveThreshold"}}, "approval.threshold: is not supported; write a rule with the effect approve and a condition"),
        ({"approval": {"threshold": 5}}, "approval.threshold: is not supported; write a rule with the effect approve and a condition"),
        ({"agtProfile": {}}, "agtProfile.inline: is missing: put the profile here"),
        ({"agtProfile": {"inline": [1]}}, "agtProfile.inline: must be the profile, as text or as a mapping"),
        ({"rateLimits": [{}]}, "rateLimits[0].calls: is missing: give calls, concurrency or both"),
        ({"rateLimits": [{"concurrency": 1, "window": "5s"}]}, "rateLimits[0].window: has no meaning without calls"),
        ({"rateLimits": [{"concurrency": 1, "burst": 5}]}, "rateLimits[0].burst: has no meaning without calls"),
        ({"budgets": [{"period": "session"}]}, "budgets[0].calls: is missing: give calls, resultBytes or both"),
        ({"budgets": [{"period": "session", "calls": 1, "per": ["agent"]}]}, "budgets[0].per: has no meaning with the period session, which is the agent's own"),
        ({"rules": [{"effect": "deny", "name": "a"}, {"effect": "deny", "name": "a"}]}, "rules: holds the name 'a' more than once"),
        ({"rateLimits": [{"calls": 1, "name": "a"}, {"calls": 2, "name": "a"}]}, "rateLimits: holds the name 'a' more than once"),
        ({"budgets": [{"calls": 1, "name": "a"}, {"calls": 2, "name": "a"}]}, "budgets: holds the name 'a' more than once"),
        ({"resultBytes": 5}, "resultBytes: must be at least 1KiB and at most 1024GiB, not 5"),
    ],
)  # fmt: skip
def test_mistakes_in_a_policy(policy: dict[str, object], line: str) -> None:
    assert policy_lines(policy) == [f"policies[0].{line}"]


def test_values_that_may_be_secrets_are_not_repeated() -> None:
    said = oauth_lines({**SECRET, "clientSecretFromEnv": 5_551_234, "issuer": 5_551_234})
    assert len(said) == 2
    assert "5551234" not in str(said)


# What is outside the file


def test_named_variables_have_to_hold_something() -> None:
    text = (
        "servers:\n"
        "  web:\n"
        f"    url: {URL}\n"
        "    oauth: {grant: token-exchange, clientIdFromEnv: A, clientSecretFromEnv: B, subjectTokenFromEnv: C}\n"
        "agentAuth: {tokenFromEnv: D}\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse(text, environ={"C": ""})
    assert caught.value.problems == (
        "servers.web.oauth.clientIdFromEnv: the variable A is not set",
        "servers.web.oauth.clientSecretFromEnv: the variable B is not set",
        "servers.web.oauth.subjectTokenFromEnv: the variable C is empty",
        "agentAuth.tokenFromEnv: the variable D is not set",
    )
    assert parse(text, environ=dict.fromkeys("ABCD", "x")).agent_auth.token_from_env == "D"


def test_an_unknown_key_names_no_variable() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(f"servers: {{web: {{url: '{URL}', fooFromEnv: TOKEN}}}}", environ={})
    assert caught.value.problems == ("servers.web.fooFromEnv: is not a known key",)


def test_every_path_starts_from_the_directory_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "kars.yaml").write_text(
        "servers:\n"
        "  web:\n"
        f"    url: {URL}\n"
        "    oauth: {grant: token-exchange, clientId: k, clientSecretFromFile: a, subjectTokenFromFile: b}\n"
        "agentAuth: {jwt: {issuer: https://h, audience: [x], jwksFile: keys.json}}\n"
        "audit: {signingKey: ~/key.pem}\n"
    )
    config = load(tmp_path / "kars.yaml", environ={"HOME": "/home/kars"})
    oauth, jwt, audit = config.servers["web"].oauth, config.agent_auth.jwt, config.audit
    assert oauth is not None
    assert jwt is not None
    assert audit is not None
    assert oauth.client_secret_from_file == tmp_path / "a"
    assert oauth.subject_token_from_file == tmp_path / "b"
    assert jwt.jwks_file == tmp_path / "keys.json"
    assert audit.path == tmp_path / "audit.jsonl"
    assert audit.signing_key == Path("/home/kars/key.pem")
    shared = parse("servers: {a: {url: 'http://h'}}\nagentAuth: {tokenFromFile: t}", base=tmp_path)
    assert shared.agent_auth.token_from_file == tmp_path / "t"
