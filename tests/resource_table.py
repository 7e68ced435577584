"""Manifests of the custom resources, and who accepts them: the reader, an API server, or both."""

from __future__ import annotations

from typing import Any, Final

Manifest = dict[str, Any]

URL: Final = "http://browser.tools.svc.cluster.local:8931/mcp"
HTTPS: Final = "https://mcp.example.com/mcp"
_BUNDLE: Final = {
    "registry": "registry.example.com",
    "repository": "bundles/one",
    "digest": f"sha256:{'0' * 64}",
    "artifactType": "application/vnd.example+yaml",
}
_CLIENT: Final = {"clientIdFromEnv": "CLIENT_ID", "clientSecretFromEnv": "CLIENT_SECRET"}


def manifest(kind: str, spec: Any, name: str = "one", **metadata: Any) -> Manifest:
    return {
        "apiVersion": "kars.azure.com/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, **metadata},
        "spec": spec,
    }


def server(**spec: Any) -> Manifest:
    return manifest("McpServer", {"url": URL, **spec})


def sandbox(**spec: Any) -> Manifest:
    return manifest("KarsSandbox", spec)


def governed(**governance: Any) -> Manifest:
    return sandbox(governance=governance)


def policy(**spec: Any) -> Manifest:
    return manifest("ToolPolicy", spec)


def rule(**keys: Any) -> Manifest:
    return policy(rules=[keys])


# Accepted by both. The first of each kind have every field that kars' own manifests have.
VALID: Final[dict[str, Manifest]] = {
    "a server as kars has it": manifest(
        "McpServer",
        {
            "url": URL,
            "allowedTools": ["browser_navigate", "browser_click"],
            "allowedSandboxes": {"matchLabels": {"kars.azure.com/sandbox": "browser"}},
            "productionMode": False,
            "displayName": "A browser (headless)",
        },
        "browser",
        labels={"kars.azure.com/sandbox": "browser"},
    ),
    "a server with tokens as kars has it": server(
        url=HTTPS,
        productionMode=True,
        oauth={
            "issuer": "https://login.example.com/tenant/v2.0",
            "audience": "api://tools",
            "resource": "api://tools",
            "pkce": "S256",
        },
        scopes=["read:repo"],
        allowedTools=["*"],
        allowedSandboxes={"matchLabels": {"app.kubernetes.io/component": "research"}},
        bearerFromEnv=None,
        bundleRef=None,
        managed=None,
    ),
    "an issuer beside a token": server(
        url=HTTPS, oauth={"issuer": "https://login.example.com"}, bearerFromEnv="TOKEN"
    ),
    "a server in a bundle": manifest(
        "McpServer",
        {"bundleRef": _BUNDLE, "allowedSandboxes": {"matchLabels": {}}, "productionMode": False},
    ),
    "a server that kars runs": manifest(
        "McpServer", {"managed": {"preset": "playwright"}, "allowedTools": ["*"]}
    ),
    "a server with everything of ours": server(
        url="HTTPS://MCP.Example.com:8443/mcp?x=1",
        era="mirror",
        transport="streamable-http",
        allowedTools=["browser_*", "[a-c]?", "[!]x]", "[]]"],
        allowedResources=["file:///srv/*"],
        allowedPrompts=[],
        oauth={**_CLIENT, "scopes": ["a", "b"], "clientAuth": "client_secret_post"},
        headers={"X-Tenant": "blue", "x-other": "a b"},
        allowedNetworks=["10.0.0.0/8", "fd00::/8"],
        sessionScope="shared",
        onSessionLoss="fail",
        timeouts={"connect": "2s", "call": "1h", "idle": 60, "input": "1m30s"},
        maxConnections=8,
        listenSilence="90s",
        allowedSandboxes={"namespaces": ["team-a", "*"]},
    ),
    "tokens that are exchanged": server(
        url=HTTPS,
        oauth={
            "clientId": "router",
            "grant": "token-exchange",
            "subjectTokenFromEnv": "SUBJECT",
            "issuer": "http://localhost:9000",
        },
        scopes=["tools"],
    ),
    "a WebSocket": server(url="ws://tools:80/mcp", transport="websocket"),
    "an IPv6 address": server(url="http://[fd00::1]:8931/mcp"),
    "nothing but nulls": server(**dict.fromkeys(["timeouts", "headers", "oauth", "scopes"])),
    "a sandbox as kars has it": manifest(
        "KarsSandbox",
        {
            "runtime": {"kind": "OpenClaw", "openclaw": {"config": {"agent": {"model": "m"}}}},
            "agent": {"instructions": "You drive a browser.", "tools": ["web_search"]},
            "sandbox": {
                "isolation": "enhanced",
                "seccompProfile": "kars-strict",
                "readOnlyRootFilesystem": True,
                "writablePaths": ["/sandbox", "/tmp"],
            },
            "inferenceRef": {"name": "browser-inference"},
            "memoryRef": {"name": "browser-memory"},
            "governance": {
                "enabled": True,
                "toolPolicyRef": {"name": "kars-default"},
                "mcpServerRefs": [{"name": "playwright"}],
                "trustThreshold": 0,
                "trustedPeers": "a:b",
                "registryMode": "local",
            },
            "networkPolicy": {
                "defaultDeny": True,
                "egressMode": "Strict",
                "allowedEndpoints": [{"host": "github.com", "port": 443}],
            },
            "azureServices": [{"service": "ai-foundry", "permissions": ["inference"]}],
            "resources": {
                "requests": {"cpu": "500m", "memory": "1Gi"},
                "limits": {"cpu": 2, "memory": "4Gi"},
            },
            "suspended": False,
        },
        "browser",
    ),
    "an agent of one's own as kars has it": sandbox(
        runtime={
            "kind": "BYO",
            "byo": {
                "image": "registry.example.com/agent:v1",
                "contractVersion": "v1",
                "command": ["python"],
                "args": ["-m", "agent"],
                "env": [
                    {"name": "LOG.LEVEL", "value": "INFO"},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}},
                ],
            },
        },
        inferenceRef={"name": "one"},
    ),
    "an agent of another runtime as kars has it": sandbox(
        runtime={
            "kind": "Hermes",
            "hermes": {
                "agentCode": {"git": {"url": "https://example.com/x"}},
                "extraEnv": {"A": "b"},
            },
        },
        governance={"mcpServerRef": {"name": "playwright"}},
    ),
    "a sandbox with everything of ours": sandbox(
        agent={
            "image": "registry.example.com/agent@sha256:" + "0" * 64,
            "command": ["python"],
            "args": ["-m", "agent", ""],
            "env": [{"name": "A", "value": ""}],
            "resources": {"limits": {"cpu": "1.5", "memory": "1Gi", "nvidia.com/gpu": 1}},
            "workingDir": "/srv",
        },
        router={
            "image": "registry.example.com/router:1",
            "resources": {"requests": {"cpu": "100m"}},
            "logLevel": "debug",
            "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}],
        },
        governance={"mcpServerRefs": [{"name": "a", "namespace": "tools"}, {"name": "b"}]},
        suspended=True,
    ),
    "an empty sandbox": sandbox(),
    "eight servers": governed(mcpServerRefs=[{"name": f"s{index}"} for index in range(8)]),
    "an empty list beside the old reference": governed(
        mcpServerRefs=[], mcpServerRef={"name": "one"}
    ),
    "a policy as kars has it": policy(
        appliesTo={
            "tool": "web.fetch",
            "mcpServer": "",
            "sandboxMatchLabels": {"kars.azure.com/sandbox": "demo"},
        },
        approval={"mode": "always", "channel": "telegram"},
        rateLimit={"rps": 2, "burst": 5, "window": "1m"},
        agtProfile={"inline": "version: 1\npolicies: []\n"},
        displayName="Fetching",
        commerce=None,
    ),
    "a policy that kars' example calls automatic": policy(
        appliesTo={"tool": "web_search", "sandboxMatchLabels": {"a": "b"}},
        approval={"mode": "auto"},
    ),
    "a policy with everything of ours": policy(
        default="allow",
        rules=[
            {
                "name": "held",
                "effect": "approve",
                "priority": -5,
                "servers": ["mail"],
                "tools": ["send_*"],
                "annotations": {"readOnlyHint": False},
                "when": "args.amount > 10",
                "arguments": {"type": "object", "required": ["to"]},
                "reason": "A person has to look at it.",
                "approval": {"expires": "10m", "via": ["operator"]},
            },
            {"effect": "redact", "redact": {"fields": ["/a/*/b~1c"], "arguments": True}},
            {"effect": "deny", "resources": ["file:///etc/*"], "prompts": ["x"]},
        ],
        rateLimits=[{"name": "slow", "calls": 3, "window": "10s", "per": ["agent", "tool"]}],
        budgets=[
            {"name": "day", "resultBytes": "4MiB", "per": ["server"]},
            {"name": "session", "calls": 100, "period": "session"},
        ],
        resultBytes=1_048_576,
    ),
    "an empty policy": policy(),
    "sections written out as they are by default": rule(
        effect="deny",
        approval={},
        redact={"expressions": [], "fields": [], "arguments": False, "results": True},
    ),
}

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
        server(bundleRef=_BUNDLE),
        "spec.url",
        "bundleRef cannot stand beside",
    ),
    "a bundle beside tools": (
        manifest("McpServer", {"bundleRef": _BUNDLE, "allowedTools": ["*"]}),
        "spec.allowedTools",
        "bundleRef cannot stand beside",
    ),
    "a bundle without a digest": (
        manifest("McpServer", {"bundleRef": {**_BUNDLE, "digest": ""}}),
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
        server(bearerFromEnv="TOKEN", oauth=dict(_CLIENT)),
        "spec.oauth",
        "a server has one token",
    ),
    "scopes in two places": (
        server(scopes=["a"], oauth={**_CLIENT, "scopes": ["b"]}),
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
        server(oauth={**_CLIENT, "clientId": "a"}),
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
    "a tool twice": (
        server(allowedTools=["a", "b", "a"]),
        "spec.allowedTools",
        "spec.allowedTools",
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
        policy(agtProfile={"inline": "version: 1", "bundleRef": _BUNDLE}),
        "spec.agtProfile.bundleRef",
        "inline or bundleRef",
    ),
}

# What an API server accepts and the reader refuses; docs/custom-resources.md names each. The
# operator says so in the condition Ready.
REFUSED_BY_THE_READER: Final[dict[str, tuple[Manifest, str]]] = {
    "money: not in this release": (
        policy(commerce={"dailyCap": "USD 100.00", "counterpartyAllowlist": ["did:web:a"]}),
        "spec.commerce",
    ),
    "approval above a threshold: not in this release": (
        policy(approval={"mode": "aboveThreshold", "threshold": "USD 10.00"}),
        "spec.approval.threshold",
    ),
    "a profile in a bundle: not in this release": (
        policy(agtProfile={"bundleRef": _BUNDLE}),
        "spec.agtProfile.bundleRef",
    ),
    "an expression that cannot be compiled": (
        rule(effect="redact", redact={"expressions": ["("]}),
        "spec.rules[0].redact.expressions[0]",
    ),
    "a host that cannot be one": (server(url="http://-a-/"), "spec.url"),
    "a network that is none": (
        server(allowedNetworks=["10.0.0.1/8"]),
        "spec.allowedNetworks[0]",
    ),
    "a time of more than a year": (
        server(timeouts={"call": "367d"}),
        "spec.timeouts.call",
    ),
    "a size out of bounds in words": (policy(resultBytes="1B"), "spec.resultBytes"),
}

# What the reader accepts and an API server refuses.
REFUSED_BY_THE_API: Final[dict[str, tuple[Manifest, str]]] = {
    "a fraction of seconds as a number": (
        server(timeouts={"call": 2.5}),
        "spec.timeouts.call",
    ),
    "a default written out where it has no meaning": (
        rule(effect="deny", approval={"via": ["operator", "elicitation"]}),
        "approval has a meaning",
    ),
    "null in place of a word": (server(era=None), "spec.era"),
    "a list beyond the schema's bound": (
        server(allowedTools=[f"t{index}" for index in range(1025)]),
        "spec.allowedTools",
    ),
}

# What the reader refuses and an API server drops, although it is asked to be strict: it is below
# something that keeps keys which nobody knows.
DROPPED_BY_THE_API: Final[dict[str, tuple[Manifest, str]]] = {
    "a misspelt key of the router": (
        sandbox(router={"loglevel": "debug", "logLevel": "info"}),
        "spec.router.loglevel",
    ),
}
