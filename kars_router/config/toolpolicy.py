"""Settings of a ToolPolicy: an entry of `policies`, and `ToolPolicy.spec` of the custom resource.

Owns names, types and defaults, as `schema` does for the rest. What rules mean is the business of
the plugin that enforces them.
"""

from __future__ import annotations

import enum
from typing import Any

from attrs import field, frozen

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import (
    NEEDED,
    Count,
    Duration,
    Glob,
    Json,
    Name,
    Pointer,
    Priority,
    Regex,
    Sentence,
    Size,
)

_NOTHING: FrozenMap[Any, Any] = FrozenMap()
_ANY: tuple[str, ...] = ("*",)


class Effect(enum.StrEnum):
    """What a rule does with the calls that it matches."""

    ALLOW = "allow"
    DENY = "deny"
    APPROVE = "approve"
    REDACT = "redact"


class Default(enum.StrEnum):
    """What happens to calls that no rule matches."""

    DENY = "deny"
    APPROVE = "approve"
    ALLOW = "allow"


class Channel(enum.StrEnum):
    """Where a held call may be decided."""

    OPERATOR = "operator"
    ELICITATION = "elicitation"


class Per(enum.StrEnum):
    """What has a limit of its own."""

    AGENT = "agent"
    SERVER = "server"
    TOOL = "tool"


class Period(enum.StrEnum):
    """For how long a budget lasts; days are those of UTC."""

    SESSION = "session"
    DAY = "day"


class SecretKind(enum.StrEnum):
    """Secrets that are found by their shape."""

    BEARER = "bearer"
    JWT = "jwt"
    AWS = "aws"
    AZURE = "azure"
    GITHUB = "github"
    GOOGLE = "google"
    SLACK = "slack"
    OPENAI = "openai"
    PRIVATE_KEY = "private-key"
    PASSWORD = "password"  # noqa: S105 - a kind's name
    URL_CREDENTIALS = "url-credentials"


class ApprovalMode(enum.StrEnum):
    """When every call of a policy needs a person's approval."""

    NEVER = "never"
    ALWAYS = "always"
    ABOVE_THRESHOLD = "aboveThreshold"


@frozen(kw_only=True)
class Approval:
    """Terms on which a call is held.

    Attributes:
        expires: seconds until the answer is no; None for `governance.approval`.
        via: where it may be decided. An agent without a person behind it answers elicitations by
            itself, so leave that channel out for such.
    """

    expires: Duration | None = None
    via: tuple[Channel, ...] = (Channel.OPERATOR, Channel.ELICITATION)


@frozen(kw_only=True)
class Redact:
    """What is taken out of calls and results.

    Attributes:
        kinds: secrets known by their shape; empty for none.
        expressions: further ones, as regular expressions of RE2; what they match is replaced.
        fields: JSON pointers (RFC 6901) into the arguments or the structured result, whose values
            are replaced; `*` stands for any one member or element.
        arguments: whether it is done to arguments.
        results: whether it is done to results, errors and notifications.
    """

    kinds: tuple[SecretKind, ...] = tuple(SecretKind)
    expressions: tuple[Regex, ...] = ()
    fields: tuple[Pointer, ...] = ()
    arguments: bool = False
    results: bool = True


@frozen(kw_only=True)
class Rule:
    """One rule. It matches when everything that it names fits.

    Attributes:
        name: shown in decisions and records; None for its place in the list.
        effect: what it does.
        priority: higher ones are asked first; among equals, the order of the list.
        servers: patterns of servers.
        tools: patterns of tools, as their server calls them.
        resources: patterns of the URIs of resources that are read.
        prompts: patterns of prompts. A rule that names none of these three matches all of them; one
            that names some matches only those.
        annotations: hints of the tool's definition (`readOnlyHint`, ...) that must be so. A server
            may lie about them.
        when: a CEL expression that must be true.
        arguments: a JSON Schema that the arguments must satisfy for an `allow` or `approve` to
            hold; otherwise the call is denied.
        reason: a sentence for the model and the record.
        approval: terms, with `approve`.
        redact: what is taken out, with `redact`.
    """

    name: Name | None = None
    effect: Effect = field(default=Effect.DENY, metadata=NEEDED)
    priority: Priority = 0
    servers: tuple[Glob, ...] = _ANY
    tools: tuple[Glob, ...] = ()
    resources: tuple[Glob, ...] = ()
    prompts: tuple[Glob, ...] = ()
    annotations: FrozenMap[Name, bool] = _NOTHING
    when: Sentence | None = None
    arguments: Json | None = None
    reason: Sentence | None = None
    approval: Approval = Approval()
    redact: Redact = Redact()


@frozen(kw_only=True)
class RateLimit:
    """A bound on how often, or on how many at once.

    Attributes:
        name: shown when it denies; None for its place in the list.
        servers: patterns of servers that it counts.
        tools: patterns of tools that it counts.
        per: what has a bucket of its own; empty for one bucket.
        calls: calls in a window; None for no bound.
        window: seconds.
        burst: calls that may come at once; None for `calls`.
        concurrency: calls in flight at once; None for no bound.
    """

    name: Name | None = None
    servers: tuple[Glob, ...] = _ANY
    tools: tuple[Glob, ...] = _ANY
    per: tuple[Per, ...] = ()
    calls: Count | None = None
    window: Duration = 60.0
    burst: Count | None = None
    concurrency: Count | None = None


@frozen(kw_only=True)
class Budget:
    """A bound on how much in all.

    Attributes:
        name: shown when it denies; None for its place in the list.
        servers: patterns of servers that it counts.
        tools: patterns of tools that it counts.
        per: what has a budget of its own, with `day`.
        period: how long it lasts; one of a session is the agent's own.
        calls: calls; None for no bound.
        result_bytes: bytes of results; None for no bound. The call that goes beyond it is the last.
    """

    name: Name | None = None
    servers: tuple[Glob, ...] = _ANY
    tools: tuple[Glob, ...] = _ANY
    per: tuple[Per, ...] = ()
    period: Period = Period.DAY
    calls: Count | None = None
    result_bytes: Size | None = None


@frozen(kw_only=True)
class AppliesTo:
    """Which calls a policy is for.

    Attributes:
        tool: pattern of tools.
        mcp_server: pattern of servers.
        sandbox_match_labels: which sandboxes; heeded where sandboxes are known, by the operator.
    """

    tool: Glob = "*"
    mcp_server: Glob = "*"
    sandbox_match_labels: FrozenMap[str, str] = _NOTHING


@frozen(kw_only=True)
class AgtProfile:
    """A profile in kars' own format.

    Attributes:
        inline: it, as YAML text or as a mapping.
    """

    inline: Json = ""


@frozen(kw_only=True)
class SimpleRate:
    """The rate limit of kars' ToolPolicy.

    Attributes:
        rps: calls in a second, on average.
        burst: calls that may come at once.
        window: seconds over which the average is taken.
    """

    rps: Count = 1
    burst: Count | None = None
    window: Duration = 1.0


@frozen(kw_only=True)
class SimpleApproval:
    """The approval of kars' ToolPolicy.

    Attributes:
        mode: when every call of the policy is held.
        threshold: not in this release; always None.
        channel: a name for people; nothing is sent there.
    """

    mode: ApprovalMode = ApprovalMode.NEVER
    threshold: Json | None = None
    channel: str | None = None


@frozen(kw_only=True)
class ToolPolicy:
    """Rules that calls have to pass.

    Of the rules that match a call, the one with the highest priority counts, the first one among
    equals; every matching `redact` is done beside that.

    Attributes:
        name: shown in decisions and records; None for its place in the list.
        applies_to: which calls it is for; it has no opinion on others.
        default: what happens to calls that no rule matches: `deny`, `approve` or `allow`.
        rules: the rules.
        rate_limits: bounds on how often.
        budgets: bounds on how much in all.
        result_bytes: longest result; a longer one is withheld. None for no bound.
        agt_profile: a profile in kars' own format.
        rate_limit: one bound over all calls of the policy, for each agent.
        approval: whether every call of the policy that is not denied is held.
        bundle_ref: not in this release; always None.
        commerce: not in this release; always None.
    """

    name: Name | None = None
    applies_to: AppliesTo = AppliesTo()
    default: Default = Default.DENY
    rules: tuple[Rule, ...] = ()
    rate_limits: tuple[RateLimit, ...] = ()
    budgets: tuple[Budget, ...] = ()
    result_bytes: Size | None = None
    agt_profile: AgtProfile | None = None
    rate_limit: SimpleRate | None = None
    approval: SimpleApproval = SimpleApproval()
    bundle_ref: Json | None = None
    commerce: Json | None = None
