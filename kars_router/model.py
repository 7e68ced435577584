"""Frozen values that the layers pass to each other.

Pure: knows no I/O, no clock, no environment. Bytes fields that hold JSON are kept as the peer
wrote them, so that unknown fields and number spellings survive the hop.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec
from attrs import field, frozen


class Fate(enum.StrEnum):
    """What is known of a call's effect on its server."""

    NOT_EXECUTED = "not_executed"
    EXECUTED = "executed"
    UNKNOWN = "unknown"


class Phase(enum.StrEnum):
    """How far a message had got when something went wrong."""

    CONNECT = "connect"  # no connection yet: nothing was sent
    HANDSHAKE = "handshake"  # initialize did not succeed
    SEND = "send"  # while the request was being written
    AWAIT = "await"  # the request was written, no response status had come
    STREAM = "stream"  # a response had begun
    LISTEN = "listen"  # the GET stream
    RESULT = "result"  # an answer came and its content is being judged


class Sent(enum.StrEnum):
    """How much of a message the network had accepted."""

    NO = "no"
    PARTLY = "partly"
    YES = "yes"


class Discreet:
    """A struct of msgspec whose `repr` leaves something out.

    What each call makes anew is such a struct: a value of attrs takes five times as long to make.

    Attributes:
        unsaid: the fields that hold what agents and servers say.
    """

    __slots__ = ()
    __struct_fields__: ClassVar[tuple[str, ...]]
    unsaid: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        """What rich shows of it; a struct's own would show everything."""
        said = (name for name in self.__struct_fields__ if name not in self.unsaid)
        return [(name, getattr(self, name)) for name in said]

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.__rich_repr__())
        return f"{type(self).__name__}({shown})"


@frozen(kw_only=True)
class Failure:
    """A failed exchange with an upstream, as `kars_classify_loss` sees it.

    Attributes:
        server: name of the server in the configuration.
        phase: how far the exchange had got.
        sent: how much of the message the network had accepted.
        status: HTTP status, or None if no response came.
        body: at most the first 512 characters of the response body.
        rpc_code: code of the JSON-RPC error, if the failure is one.
        rpc_error: the error object as JSON, if a refusing HTTP response held one; at most 64 KiB.
        had_session: whether a session id was sent with the message.
        begun: whether the server had begun to act, because it had asked for input before.
        method: the JSON-RPC method, or the HTTP method for GET and DELETE.
        detail: one clause for the log; never shown to an agent.
        code: short stable name of the kind of failure (`connect`, `http_status`, ...).
    """

    server: str
    phase: Phase
    sent: Sent = Sent.NO
    status: int | None = None
    body: str = ""
    rpc_code: int | None = None
    rpc_error: bytes = field(default=b"", repr=False)
    had_session: bool = False
    begun: bool = False
    method: str = ""
    detail: str = ""
    code: str = "transport"

    def summary(self) -> str:
        """One line for the log."""
        parts = [self.detail or self.code]
        if self.status is not None:
            parts.append(f"status {self.status}")
        if self.rpc_code is not None:
            parts.append(f"JSON-RPC error {self.rpc_code}")
        if self.body:
            parts.append(f"body {self.body[:160]!r}")
        return f"{self.server}: {', '.join(parts)}"


@frozen
class LossVerdict:
    """An opinion on whether a failure means that the session is gone.

    Attributes:
        lost: True or False; a classifier without an opinion returns None instead of a verdict.
        reason: one clause, shown in the log and (if lost) to the agent.
        source: name of the plugin that said so; filled in by the host.
        tentative: whether a loss rests on words that may be an agent's own, quoted by the server;
            the session is then pinged, and lost only if the ping is refused in the same way.
    """

    lost: bool
    reason: str
    source: str = ""
    tentative: bool = False


@frozen
class SessionReset:
    """What the agent is told once after a session's state was lost."""

    generation: int
    reason: str


@frozen
class Tool:
    """A tool as the agent may see it.

    Attributes:
        server: the server that offers it.
        name: its name on that server.
        public_name: its name on `/mcp`.
        definition: the definition as the server sent it, decoded.
        own: the definition under its own name, as JSON.
        public: the same under its public name.
    """

    server: str
    name: str
    public_name: str
    definition: Mapping[str, Any] = field(repr=False, eq=False)
    own: bytes = field(repr=False)
    public: bytes = field(repr=False)


class ToolCall(Discreet, msgspec.Struct, frozen=True, kw_only=True):
    """One tools/call on its way through the router.

    Attributes:
        agent: opaque identifier of the agent session; not the session id on the wire.
        server: the server that offers the tool.
        tool: the tool's name on that server.
        params: the `params` object as JSON, with the tool's own name in it.
        client: `clientInfo.name` that the agent declared; untrusted.
    """

    agent: str
    server: str
    tool: str
    params: bytes
    client: str = ""

    unsaid = ("params",)


class Ruling(enum.StrEnum):
    """What a governor says of a call; the later ones here beat the earlier ones."""

    ALLOW = "allow"
    APPROVE = "approve"
    DENY = "deny"


@frozen(kw_only=True)
class ApprovalTerms:
    """Terms on which a call is held for a person.

    Attributes:
        expires: seconds until the answer is no; None for the router's own patience.
        operator: whether it may be decided at the admin address.
        elicitation: whether it may be decided by who is behind the agent.
    """

    expires: float | None = None
    operator: bool = True
    elicitation: bool = True


@frozen(kw_only=True)
class Decision:
    """What one governor, or all of them together, said of a call.

    Attributes:
        ruling: allow, approve or deny.
        reason: one sentence for the model and the record. It must not quote arguments.
        rule: name of the rule that decided; "" if there is none.
        code: stable name of the kind of denial (`denied`, `rate_limited`, `budget_spent`, ...).
        source: name of the plugin that decided; filled in by the host.
        retry_after: seconds after which the same call may pass; None if it may not.
        terms: on which it is held, with `approve`.
        notes: other things that were found on the way, for the record and for `kars policy test`.
    """

    ruling: Ruling = field(converter=Ruling)  # "deny" must not pass for an answer that is none
    reason: str = ""
    rule: str = ""
    code: str = "denied"
    source: str = ""
    retry_after: float | None = None
    terms: ApprovalTerms = ApprovalTerms()
    notes: tuple[str, ...] = ()


@frozen(kw_only=True)
class GovernedCall:
    """A request of an agent to a server, as governors and transformers see it.

    Attributes:
        id: unique for each call in the life of all records; the same in every record of the call.
        agent: opaque identifier of the agent session; not the session id on the wire.
        client: what its client calls itself; untrusted.
        subject: who the agent proved to be; "" if it had to prove nothing.
        scopes: what its token allows.
        server: the server's configured name.
        method: `tools/call`, `resources/read`, `prompts/get` or `completion/complete`; "" for what
            a server says outside of any of them.
        name: the tool or prompt under the server's own name, or the URI.
        arguments: the decoded arguments; empty if there are none. Must not be changed.
        params: the `params` object as JSON.
        annotations: the hints of the tool's definition; what the server says of itself.
        time: when it came, in seconds of Unix time.
    """

    id: str
    agent: str
    server: str
    method: str
    name: str
    arguments: Mapping[str, Any] = field(factory=dict, repr=False)
    params: bytes = field(default=b"{}", repr=False)
    annotations: Mapping[str, Any] = field(factory=dict)
    client: str = ""
    subject: str = ""
    scopes: tuple[str, ...] = ()
    time: float = 0.0


@frozen(kw_only=True)
class CallEnd:
    """How a governed call ended, as governors see it.

    Attributes:
        decision: what was decided of it in the end; an approval given is an `allow`.
        fate: what is known of its effect.
        code: `ok`, or the stable name of what went wrong.
        result: the server's result as JSON, after transformers; None if there is none.
        error: its JSON-RPC error object as JSON, after transformers; None if there is none.
        seconds: from its arrival to its end.
    """

    decision: Decision
    fate: Fate
    code: str = "ok"
    result: bytes | None = field(default=None, repr=False)
    error: bytes | None = field(default=None, repr=False)
    seconds: float = 0.0


@frozen(kw_only=True)
class ServerInfo:
    """What plugins may know of a configured server.

    Attributes:
        name: its name in the configuration.
        allowed_tools: the globs that admit tools; empty admits none.
        bearer_from_env: name of the environment variable with its bearer token, or "".
        bearer_from_file: path of the file with its bearer token, or "".
        url: where it is; "" for a program. May hold secrets in its query.
        oauth: how tokens for it are got (a `kars_router.config.auth.OAuth`), or None.
        pins: digests of the accepted definitions by tool; None if nothing is pinned.
        allowed_networks: private networks that the URL's name may lead to, as CIDR blocks.
    """

    name: str
    allowed_tools: tuple[str, ...] = ()
    bearer_from_env: str = ""
    bearer_from_file: str = ""
    url: str = field(default="", repr=False)
    oauth: Any = None
    pins: Mapping[str, str] | None = None
    allowed_networks: tuple[str, ...] = ()


@frozen(kw_only=True)
class SessionInfo:
    """One upstream session, as plugins see it.

    Attributes:
        server: the server's name.
        agent: opaque identifier of the agent session it belongs to; "" if it is shared.
        generation: 1 for the first session on behalf of this agent, one more for each next.
        key: unique for each upstream session in the life of the process.
    """

    server: str
    agent: str
    generation: int
    key: str


class CallOutcome(Discreet, msgspec.Struct, frozen=True, kw_only=True):
    """How a call ended.

    Attributes:
        fate: what is known of its effect.
        code: `ok`, or the stable name of what went wrong (design 5.4).
        result: the server's `result` as JSON, if there is one.
        error: the server's JSON-RPC `error` as JSON, if there is one.
        message: a sentence for the model when there is neither.
        retryable: whether the same call may simply be made again.
        reset: what to tell the agent about lost state, if anything.
        retry_after: seconds after which it may be, if that is known.
    """

    fate: Fate
    code: str = "ok"
    result: bytes | None = None
    error: bytes | None = None
    message: str = ""
    retryable: bool = False
    reset: SessionReset | None = None
    retry_after: float | None = None

    unsaid = ("result", "error")
