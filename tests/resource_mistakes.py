"""Manifests of the custom resources that the reader and an API server refuse, and how."""

from __future__ import annotations

from typing import Final

from resource_table import (
    BUNDLE,
    CLIENT,
    HTTPS,
    URL,
    Manifest,
    governed,
    manifest,
    policy,
    rule,
    sandbox,
    server,
)

# Refused by both: the manifest, where the reader says it is wrong, and a part of the words of an
# API server. Where the schema's form says no, these are the API server's own.
INVALID: Final[dict[str, tuple[Manifest, str, str]]] = {
    "no spec": (
        {key: value for key, value in server().items() if key != "spec"},
        "spec.url",
        "spec",
    ),
    "no url": (manifest("McpServer", {"allowedTools": ["*"]}), "spec.url", "url is missing"),
    "a url that is null": (server(url=None), "spec.url", "url is missing"),
    "a url of another scheme": (server(url="ftp://example.com"), "spec.url", "spec.url"),
    "a url with a user": (server(url="https://me:pw@example.com/"), "spec.url", "spec.url"),
    "a url with a fragment": (server(url="https://example.com/#a"), "spec.url", "spec.url"),
    "a url with port 0": (server(url="https://example.com:0/"), "spec.url", "spec.url"),
    "a url with a port beyond": (server(url="https://example.com:65536"), "spec.url", "spec.url"),
    "a program": (server(command="npx"), "spec.command", "spec.command"),
    "a file of the router": (
        server(bearerFromFile="/var/run/token"),
        "spec.bearerFromFile",
        "spec.bearerFromFile",
    ),
    "a file of the router for tokens": (
        server(oauth={"clientId": "a", "clientSecretFromFile": "/etc/shadow"}),
        "spec.oauth.clientSecretFromFile",
        "spec.oauth.clientSecretFromFile",
    ),
    "a misspelt key": (server(allowedTool=["*"]), "spec.allowedTool", "spec.allowedTool"),
    "a name with dots": (
        manifest("McpServer", {"url": URL}, "my.server"),
        "metadata.name",
        "a McpServer has a name of 1 to 63",
    ),
    "a long name of a sandbox": (
        manifest("KarsSandbox", {}, "a" * 59),
        "metadata.name",
        "a KarsSandbox has a name of 1 to 58",
    ),
    "production without https": (
        server(productionMode=True, oauth={"issuer": "https://login.example.com"}),
        "spec.url",
        "url must begin with https://",
    ),
    "production without an issuer": (
        server(url=HTTPS, productionMode=True),
        "spec.oauth",
        "oauth must name the issuer",
    ),
    "production with an empty oauth": (
        server(url=HTTPS, productionMode=True, oauth={}),
        "spec.oauth",
        "oauth must name the issuer",
    ),
    "another PKCE": (server(oauth={"pkce": "plain"}), "spec.oauth.pkce", "spec.oauth.pkce"),
    "a bundle beside a url": (
        server(bundleRef=BUNDLE),
        "spec.url",
        "bundleRef cannot stand beside",
    ),
    "a bundle beside tools": (
        manifest("McpServer", {"bundleRef": BUNDLE, "allowedTools": ["*"]}),
        "spec.allowedTools",
        "bundleRef cannot stand beside",
    ),
    "a bundle without a digest": (
        manifest("McpServer", {"bundleRef": {**BUNDLE, "digest": ""}}),
        "spec.bundleRef.digest",
        "spec.bundleRef.digest",
    ),
    "a managed server beside a token": (
        manifest("McpServer", {"managed": {"preset": "everything"}, "bearerFromEnv": "TOKEN"}),
        "spec.bearerFromEnv",
        "managed cannot stand beside",
    ),
    "a managed server that nobody knows": (
        manifest("McpServer", {"managed": {"preset": "chrome"}}),
        "spec.managed.preset",
        "spec.managed.preset",
    ),
    "stdio": (server(transport="stdio"), "spec.transport", "transport cannot be stdio"),
    "a WebSocket over http": (
        server(transport="websocket"),
        "spec.transport",
        "transport cannot be websocket",
    ),
    "SSE over a WebSocket": (
        server(url="wss://example.com", transport="sse"),
        "spec.transport",
        "transport cannot be sse",
    ),
    "two tokens": (
        server(bearerFromEnv="TOKEN", oauth=dict(CLIENT)),
        "spec.oauth",
        "a server has one token",
    ),
    "scopes in two places": (
        server(scopes=["a"], oauth={**CLIENT, "scopes": ["b"]}),
        "spec.scopes",
        "scopes cannot stand beside",
    ),
    "a client without a secret": (
        server(oauth={"clientId": "a"}),
        "spec.oauth.clientSecretFromEnv",
        "clientSecretFromEnv is missing",
    ),
    "a secret without a client": (
        server(oauth={"clientSecretFromEnv": "A"}),
        "spec.oauth.clientIdFromEnv",
        "clientIdFromEnv is missing",
    ),
    "two clients": (
        server(oauth={**CLIENT, "clientId": "a"}),
        "spec.oauth.clientIdFromEnv",
        "cannot stand beside clientId",
    ),
    "an exchange of nothing": (
        server(oauth={"clientId": "a", "grant": "token-exchange"}),
        "spec.oauth.subjectTokenFromFile",
        "grant must be token-exchange",
    ),
    "an issuer without TLS": (
        server(oauth={"issuer": "http://login.example.com"}),
        "spec.oauth.issuer",
        "issuer must begin with https://",
    ),
    "a token in place of its name": (
        server(bearerFromEnv="ghp_x/y"),
        "spec.bearerFromEnv",
        "spec.bearerFromEnv",
    ),
    "a header of the router's own": (
        server(headers={"Authorization": "Bearer x"}),
        "spec.headers.Authorization",
        "headers cannot set",
    ),
    "a header of the protocol": (
        server(headers={"Mcp-Session-Id": "x"}),
        "spec.headers.Mcp-Session-Id",
        "headers cannot set",
    ),
    "a header twice": (
        server(headers={"X-A": "x", "x-a": "y"}),
        "spec.headers.x-a",
        "headers gives a name twice",
    ),
    "a header's value with a line break": (
        server(headers={"X-A": "x\ny"}),
        "spec.headers.X-A",
        "spec.headers.X-A",
    ),
    "half a bracket": (
        server(allowedTools=["[a"]),
        "spec.allowedTools[0]",
        "spec.allowedTools[0]",
    ),
    "no time": (server(timeouts={"call": "0s"}), "spec.timeouts.call", "spec.timeouts.call"),
    "a time without a unit": (
        server(timeouts={"call": "5"}),
        "spec.timeouts.call",
        "spec.timeouts.call",
    ),
    "no connections": (server(maxConnections=0), "spec.maxConnections", "spec.maxConnections"),
    "a namespace that is none": (
        server(allowedSandboxes={"namespaces": ["team_a"]}),
        "spec.allowedSandboxes.namespaces[0]",
        "spec.allowedSandboxes.namespaces[0]",
    ),
    "both references": (
        governed(mcpServerRef={"name": "a"}, mcpServerRefs=[{"name": "b"}]),
        "spec.governance.mcpServerRef",
        "mcpServerRef cannot stand beside",
    ),
    "nine servers": (
        governed(mcpServerRefs=[{"name": f"s{index}"} for index in range(9)]),
        "spec.governance.mcpServerRefs",
        "spec.governance.mcpServerRefs",
    ),
    "a server twice": (
        governed(mcpServerRefs=[{"name": "a"}, {"name": "a", "namespace": "b"}]),
        "spec.governance.mcpServerRefs",
        "spec.governance.mcpServerRefs",
    ),
    "a reference to nothing": (
        governed(mcpServerRefs=[{"namespace": "a"}]),
        "spec.governance.mcpServerRefs[0].name",
        "spec.governance.mcpServerRefs",
    ),
    "a namespace in a name": (
        governed(mcpServerRefs=[{"name": "a/b"}]),
        "spec.governance.mcpServerRefs[0].name",
        "spec.governance.mcpServerRefs[0].name",
    ),
    "a variable twice": (
        sandbox(agent={"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}),
        "spec.agent.env",
        "spec.agent.env",
    ),
    "a variable with two values": (
        sandbox(router={"env": [{"name": "A", "value": "1", "valueFrom": {}}]}),
        "spec.router.env[0].valueFrom",
        "valueFrom cannot stand beside value",
    ),
    "a value from a string": (
        sandbox(router={"env": [{"name": "A", "valueFrom": "x"}]}),
        "spec.router.env[0].valueFrom",
        "spec.router.env",
    ),
    "an image with a space": (
        sandbox(agent={"image": "a b"}),
        "spec.agent.image",
        "spec.agent.image",
    ),
    "an amount that is none": (
        sandbox(resources={"limits": {"cpu": "-1"}}),
        "spec.resources.limits.cpu",
        "spec.resources.limits.cpu",
    ),
    "a name of a policy": (policy(name="x"), "spec.name", "spec.name"),
    "a rule without an effect": (
        rule(tools=["a"]),
        "spec.rules[0].effect",
        "spec.rules[0].effect",
    ),
    "an effect that is none": (
        rule(effect="permit"),
        "spec.rules[0].effect",
        "spec.rules[0].effect",
    ),
    "terms of an approval beside allow": (
        rule(effect="allow", approval={"expires": "5m"}),
        "spec.rules[0].approval",
        "approval has a meaning",
    ),
    "an approval by nobody": (
        rule(effect="approve", approval={"via": []}),
        "spec.rules[0].approval.via",
        "spec.rules[0].approval.via",
    ),
    "redaction beside deny": (
        rule(effect="deny", redact={"arguments": True}),
        "spec.rules[0].redact",
        "redact has a meaning",
    ),
    "redaction of nothing": (
        rule(effect="redact", redact={"kinds": []}),
        "spec.rules[0].redact",
        "redact names nothing",
    ),
    "redaction nowhere": (
        rule(effect="redact", redact={"results": False}),
        "spec.rules[0].redact",
        "redact is for neither",
    ),
    "arguments beside deny": (
        rule(effect="deny", arguments={"type": "object"}),
        "spec.rules[0].arguments",
        "arguments has a meaning",
    ),
    "arguments that are no schema": (
        rule(effect="allow", arguments="x"),
        "spec.rules[0].arguments",
        "spec.rules[0].arguments",
    ),
    "a pointer without its slash": (
        rule(effect="redact", redact={"fields": ["a"]}),
        "spec.rules[0].redact.fields[0]",
        "spec.rules[0].redact.fields[0]",
    ),
    "two rules of one name": (
        policy(rules=[{"effect": "deny", "name": "a"}, {"effect": "allow", "name": "a"}]),
        "spec.rules",
        "rules holds a name more than once",
    ),
    "two limits of one name": (
        policy(rateLimits=[{"name": "a", "calls": 1}, {"calls": 2}, {"name": "a", "calls": 3}]),
        "spec.rateLimits",
        "rateLimits holds a name more than once",
    ),
    "two budgets of one name": (
        policy(budgets=[{"name": "a", "calls": 1}, {"name": "a", "calls": 3}]),
        "spec.budgets",
        "budgets holds a name more than once",
    ),
    "a limit of nothing": (
        policy(rateLimits=[{"window": "10s"}]),
        "spec.rateLimits[0].calls",
        "calls is missing",
    ),
    "a window without calls": (
        policy(rateLimits=[{"concurrency": 1, "window": "10s"}]),
        "spec.rateLimits[0].window",
        "window and burst have no meaning",
    ),
    "a budget of nothing": (
        policy(budgets=[{"period": "day"}]),
        "spec.budgets[0].calls",
        "calls is missing",
    ),
    "a session's budget per tool": (
        policy(budgets=[{"calls": 1, "period": "session", "per": ["tool"]}]),
        "spec.budgets[0].per",
        "per has no meaning",
    ),
    "a size too small": (policy(resultBytes=1000), "spec.resultBytes", "spec.resultBytes"),
    "an empty profile": (policy(agtProfile={}), "spec.agtProfile.inline", "inline or bundleRef"),
    "a profile in two ways": (
        policy(agtProfile={"inline": "version: 1", "bundleRef": BUNDLE}),
        "spec.agtProfile.bundleRef",
        "inline or bundleRef",
    ),
}
