"""Every setting there is, as frozen values that can be compared and hashed.

Owns names, types and defaults. The keys of the file are these names in camelCase (`allowed_tools`
is `allowedTools`). Knows neither YAML nor converters: the `Annotated` marks only say how a plain
value is to be read. Durations are seconds; sizes are bytes. `docs/configuration.md` says the same
for those who write the file.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

from attrs import field, frozen

from kars_router.config.addresses import Address, hide_query
from kars_router.config.auth import AgentAuth, OAuth
from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import (
    NO_KEY,
    Command,
    Count,
    Duration,
    EnvName,
    Glob,
    HeaderName,
    HeaderValue,
    Host,
    Json,
    Name,
    Network,
    Origin,
    Secret,
    ServerKey,
    Size,
    Url,
)
from kars_router.config.toolpolicy import ToolPolicy
from kars_router.pinning import Pin

_NOTHING: FrozenMap[Any, Any] = FrozenMap()
_NO_AUTH = AgentAuth()
_AGENTS_HERE = Address("127.0.0.1", 8443)
_ADMIN_HERE = Address("127.0.0.1", 9090)


class Transport(enum.StrEnum):
    """How a server is spoken to.

    `AUTO` is stdio for a command and WebSocket for a `ws` or `wss` URL; of an `http` or `https` URL
    it is found out whether its server speaks Streamable HTTP or HTTP+SSE (`SSE`).
    """

    AUTO = "auto"
    STREAMABLE_HTTP = "streamable-http"
    SSE = "sse"
    WEBSOCKET = "websocket"
    STDIO = "stdio"


class SessionScope(enum.StrEnum):
    """Who shares an upstream session."""

    AGENT = "agent"
    SHARED = "shared"


class Era(enum.StrEnum):
    """Which era of MCP a server is spoken to in."""

    AUTO = "auto"
    HANDSHAKE = "handshake"
    STATELESS = "stateless"
    MIRROR = "mirror"


class OnSessionLoss(enum.StrEnum):
    """What happens to calls that were not executed when their session was lost."""

    REPLAY = "replay"
    FAIL = "fail"


class Listener(enum.StrEnum):
    """What speaks HTTP at the router's own addresses."""

    HYPERCORN = "hypercorn"
    LEAN = "lean"


class LogLevel(enum.StrEnum):
    """The least important lines that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(enum.StrEnum):
    """How log lines look."""

    JSON = "json"
    CONSOLE = "console"
    AUTO = "auto"


@frozen(kw_only=True)
class Timeouts:
    """Patience with one server, in seconds.

    Attributes:
        connect: for a connection, TLS included; then the attempt has failed and nothing was sent.
        call: for the answer to one request; then it ends with fate `unknown`.
        idle: for an agent's upstream session that no call uses; then it is deleted, and the next
            call opens a new one and says so to the agent.
        input: for an agent, or the person behind it, to answer what a server asks in the middle of
            a call; the call's own time stands still meanwhile.
    """

    connect: Duration = 5.0
    call: Duration = 300.0
    idle: Duration = 3600.0
    input: Duration = 600.0


@frozen(kw_only=True)
class Server:
    """One upstream MCP server; also the shape of `McpServer.spec`.

    Attributes:
        url: where it is (`http`, `https`, `ws` or `wss`); None only for a `command`.
        command: the program that is started for each session, and its first arguments; it is
            spoken to over stdio.
        args: its further arguments.
        env: its variables, over the few that it inherits.
        era: `handshake` (revisions up to 2025-11-25), `stateless` (2026-07-28), `auto`, which asks
            the server, or `mirror`, which speaks to a server of both as each agent does.
        transport: how it is spoken to.
        allowed_tools: patterns of the tools that agents may see and call; none means no tool.
        allowed_resources: patterns of the URIs that agents may list and read; None means all if
            any tool is allowed, none otherwise.
        allowed_prompts: patterns of the prompts that agents may list and get; None likewise.
        bearer_from_env: name of the variable that holds the bearer token.
        bearer_from_file: file that holds the bearer token; excludes `bearer_from_env`.
        oauth: how tokens for it are got from an authorization server; excludes the two above.
        headers: further request headers.
        allowed_networks: private networks that the URL's name may lead to, as CIDR blocks.
        ca_file: certificate authorities (PEM) to trust for this server beside the system's.
        session_scope: one upstream session for each agent session, or one for all.
        on_session_loss: whether calls that were not executed are made again.
        timeouts: patience, in seconds.
        max_connections: most connections open at once, at least 1.
        listen_silence: seconds that a GET stream may be silent before it is probed with a ping.
        pins: the accepted definitions by tool, from `tools_lock`; None if no lock is named. Not
            a key of the file.
    """

    url: Url | None = field(default=None, repr=lambda url: repr(url and hide_query(url)))
    command: Command = ()
    args: tuple[str, ...] = field(default=(), repr=False)
    env: FrozenMap[str, Secret] = field(default=_NOTHING, repr=False)
    era: Era = Era.AUTO
    transport: Transport = Transport.AUTO
    allowed_tools: tuple[Glob, ...] = ()
    allowed_resources: tuple[Glob, ...] | None = None
    allowed_prompts: tuple[Glob, ...] | None = None
    bearer_from_env: EnvName | None = None
    bearer_from_file: Path | None = None
    oauth: OAuth | None = None
    headers: FrozenMap[HeaderName, HeaderValue] = field(default=_NOTHING, repr=False)
    allowed_networks: tuple[Network, ...] = ()
    ca_file: Path | None = None
    session_scope: SessionScope = SessionScope.AGENT
    on_session_loss: OnSessionLoss = OnSessionLoss.REPLAY
    timeouts: Timeouts = Timeouts()
    max_connections: Count = 64
    listen_silence: Duration = 600.0
    pins: FrozenMap[str, Pin] | None = field(default=None, repr=False, metadata=NO_KEY)


@frozen(kw_only=True)
class Plugins:
    """What is loaded and how it is set up.

    Attributes:
        blocked: names of plugins that are not loaded, built-in ones included.
        required: names of plugins without which the router does not start.
        options: a mapping for each plugin that wants one; its meaning is the plugin's own.
    """

    blocked: tuple[Name, ...] = ()
    required: tuple[Name, ...] = ()
    options: FrozenMap[Name, FrozenMap[str, Json]] = _NOTHING


class AuditContent(enum.StrEnum):
    """What an audit record holds of a call beside digests."""

    DIGEST = "digest"
    ARGUMENTS = "arguments"
    ALL = "all"


class Fsync(enum.StrEnum):
    """When records are forced to the disk; the operating system has them before a call goes on."""

    ALWAYS = "always"
    INTERVAL = "interval"
    NEVER = "never"


class OnAuditFailure(enum.StrEnum):
    """What becomes of calls that cannot be recorded."""

    DENY = "deny"
    ALLOW = "allow"


@frozen(kw_only=True)
class Audit:
    """The record of all calls.

    Attributes:
        path: the file; older ones stand beside it with a number.
        content: what is recorded of arguments and results beside their digests.
        fsync: when the file is forced to the disk.
        fsync_interval: seconds between two times, with `interval`.
        rotate: bytes after which a new file is begun; the chain goes on in it.
        keep: how many older files are kept; None for all.
        checkpoint: records after which the chain is signed; also done at each rotation and stop.
        on_failure: what becomes of calls that cannot be recorded.
        signing_key: the Ed25519 key (PEM); None for one in the state directory, made if need be.
    """

    path: Path = Path("audit.jsonl")
    content: AuditContent = AuditContent.DIGEST
    fsync: Fsync = Fsync.INTERVAL
    fsync_interval: Duration = 1.0
    rotate: Size = 64 << 20
    keep: Count | None = None
    checkpoint: Count = 256
    on_failure: OnAuditFailure = OnAuditFailure.DENY
    signing_key: Path | None = None


@frozen(kw_only=True)
class Governance:
    """Patience with those who decide on calls.

    Attributes:
        deadline: seconds for each governor, before and after a call; then it has said no.
        approval: seconds for a person to decide, unless the policy says otherwise; then the answer
            is no.
        held_calls: calls that wait for a person at once; one more is denied.
    """

    deadline: Duration = 5.0
    approval: Duration = 900.0
    held_calls: Count = 64


@frozen(kw_only=True)
class Limits:
    """Bounds on what agents and servers can make the router hold.

    Attributes:
        agent_sessions: agent sessions at once; one more is refused.
        concurrent_calls: calls in flight at once over all servers; one more is refused.
        parked_calls: calls of stateless agents that wait for input at once; one agent may hold
            half of them. Beyond that, what a server asks is refused, and its call goes on.
        request_bytes: body of one agent request; a longer one gets 413.
        event_bytes: one event of a server's stream, or one message over WebSocket or stdio; a
            longer one ends the stream, and over stdio it fails its call.
        response_bytes: one whole response of a server; a longer one fails its call.
        tools: tools kept over all pages of one server's list; the rest is left out.
    """

    agent_sessions: Count = 100
    concurrent_calls: Count = 256
    parked_calls: Count = 64
    request_bytes: Size = 4 << 20
    event_bytes: Size = 16 << 20
    response_bytes: Size = 64 << 20
    tools: Count = 5000


@frozen(kw_only=True)
class Sessions:
    """How long agent sessions live, in seconds.

    Attributes:
        idle: without a request, a call in flight or an open stream; then the session ends.
        lifetime: since it was opened, however busy it is.
        parked: for a call of a stateless agent that waits for input, until it is cancelled.
    """

    idle: Duration = 3600.0
    lifetime: Duration = 7 * 86_400.0
    parked: Duration = 600.0


@frozen(kw_only=True)
class Log:
    """What is logged.

    Attributes:
        level: the least important lines that are written.
        format: one JSON object a line, or text; `auto` is text on a terminal only.
    """

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@frozen(kw_only=True)
class Config:
    """A whole configuration.

    Attributes:
        listen: where agents are served.
        admin: where health, metrics and status are served; None for nowhere.
        listener: what speaks HTTP at both addresses.
        servers: the upstream servers by name.
        agent_auth: what agents have to show; nothing by default, on loopback.
        policies: rules that calls have to pass, first those of the list, then those of plugins.
        governance: patience with governors and with people who decide.
        tools_lock: file with the tool definitions that were accepted; others are withheld.
        plugins: what is loaded.
        audit: where calls are recorded; None for nowhere.
        state: directory of the session key and the session records; None if neither the file
            nor the environment says where, so that nothing outlives the process.
        allowed_hosts: Host values accepted beside the loopback ones.
        allowed_origins: Origins accepted beside none at all.
        limits: bounds.
        sessions: life of agent sessions.
        shutdown_grace: seconds from the request to stop until what is left is cut off.
        log: what is logged.
        reload: whether a changed file is applied while running.
    """

    listen: Address = _AGENTS_HERE
    admin: Address | None = _ADMIN_HERE
    listener: Listener = Listener.HYPERCORN
    servers: FrozenMap[ServerKey, Server] = _NOTHING
    agent_auth: AgentAuth = _NO_AUTH
    policies: tuple[ToolPolicy, ...] = ()
    governance: Governance = Governance()
    tools_lock: Path | None = None
    plugins: Plugins = Plugins()
    audit: Audit | None = None
    state: Path | None = None
    allowed_hosts: tuple[Host, ...] = ()
    allowed_origins: tuple[Origin, ...] = ()
    limits: Limits = Limits()
    sessions: Sessions = Sessions()
    shutdown_grace: Duration = 25.0
    log: Log = Log()
    reload: bool = True

    @property
    def pins(self) -> dict[str, dict[str, str]] | None:
        """Digests of the accepted definitions by server and tool; None if no lock is named."""
        if self.tools_lock is None:
            return None
        return {
            name: {tool: pin.digest for tool, pin in (server.pins or {}).items()}
            for name, server in self.servers.items()
        }
