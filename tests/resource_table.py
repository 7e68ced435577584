"""Manifests of the custom resources that somebody accepts: the reader, an API server, or both.

Those that both refuse are in resource_mistakes.py.
"""

from __future__ import annotations

from typing import Any, Final

Manifest = dict[str, Any]

URL: Final = "http://browser.tools.svc.cluster.local:8931/mcp"
HTTPS: Final = "https://mcp.example.com/mcp"
BUNDLE: Final = {
    "registry": "registry.example.com",
    "repository": "bundles/one",
    "digest": f"sha256:{'0' * 64}",
    "artifactType": "application/vnd.example+yaml",
}
CLIENT: Final = {"clientIdFromEnv": "CLIENT_ID", "clientSecretFromEnv": "CLIENT_SECRET"}


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
        {"bundleRef": BUNDLE, "allowedSandboxes": {"matchLabels": {}}, "productionMode": False},
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
        oauth={**CLIENT, "scopes": ["a", "b"], "clientAuth": "client_secret_post"},
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
    # As in a file, this means the same as once.
    "words that are listed twice": server(
        url=HTTPS,
        oauth=CLIENT,
        scopes=["a", "b", "a"],
        allowedTools=["a", "b", "a"],
        allowedResources=["file:///*", "file:///*"],
        allowedPrompts=["x", "x"],
        allowedNetworks=["10.0.0.0/8", "10.0.0.0/8"],
        allowedSandboxes={"namespaces": ["*", "*"]},
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
        policy(agtProfile={"bundleRef": BUNDLE}),
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
