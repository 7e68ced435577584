"""What the operator says of a custom resource: the shape of `status`.

Owns names and types, for the schemas of the resources; nothing is read into these classes. No
status holds a URL, since its query may be a secret.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from attrs import field, frozen

from kars_router.config.marks import NEEDED, Generation, Timestamp


class Truth(enum.StrEnum):
    """Whether a condition holds."""

    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


@frozen(kw_only=True)
class Condition:
    """One thing that is or is not so, in the form of Kubernetes.

    Attributes:
        type: what it is about.
        status: whether it is so.
        reason: why, in one word.
        message: why, for people.
        last_transition_time: since when.
        observed_generation: generation of the spec that it is about.
    """

    type: str = field(default="", metadata=NEEDED)
    status: Truth = field(default=Truth.UNKNOWN, metadata=NEEDED)
    reason: str = field(default="", metadata=NEEDED)
    message: str = field(default="", metadata=NEEDED)
    last_transition_time: Timestamp = field(default="", metadata=NEEDED)
    observed_generation: Generation | None = None


@frozen(kw_only=True)
class ServerState:
    """One server that a sandbox refers to.

    Attributes:
        name: name of the McpServer.
        namespace: its namespace.
        digest: digest of what its router is to do for it.
        egress: how the rule that lets the router reach it was found, in one word.
        reason: the same for people.
    """

    name: str = field(default="", metadata=NEEDED)
    namespace: str | None = None
    digest: str | None = None
    egress: str | None = None
    reason: str | None = None


@frozen(kw_only=True)
class McpServerStatus:
    """What became of an McpServer.

    Attributes:
        phase: all of it in one word.
        observed_generation: generation of the spec that it is about.
        conditions: `Ready` when the router of every sandbox that refers to it has it.
        digest: digest of the server, as routers say it.
    """

    further_keys: ClassVar[bool] = True

    phase: str | None = None
    observed_generation: Generation | None = None
    conditions: tuple[Condition, ...] = ()
    digest: str | None = None


@frozen(kw_only=True)
class ToolPolicyStatus:
    """What became of a ToolPolicy.

    Attributes:
        phase: all of it in one word.
        observed_generation: generation of the spec that it is about.
        conditions: `Ready` when the router of every sandbox that it is for has it.
        digest: digest of the policy, as routers say it.
    """

    further_keys: ClassVar[bool] = True

    phase: str | None = None
    observed_generation: Generation | None = None
    conditions: tuple[Condition, ...] = ()
    digest: str | None = None


@frozen(kw_only=True)
class KarsSandboxStatus:
    """What became of a KarsSandbox.

    Attributes:
        phase: all of it in one word.
        observed_generation: generation of the spec that it is about.
        conditions: `RefsResolved`, `EgressDerived`, `EgressTight`, `RouterEnforcing`, and `Ready`
            for all of them.
        namespace: where its pod is.
        digest: digest of all that its router is to enforce.
        servers: the servers that its router is given.
        servers_resolved: how many these are, and to how many it refers, as in `2/3`.
    """

    further_keys: ClassVar[bool] = True

    phase: str | None = None
    observed_generation: Generation | None = None
    conditions: tuple[Condition, ...] = ()
    namespace: str | None = None
    digest: str | None = None
    servers: tuple[ServerState, ...] = ()
    servers_resolved: str | None = None
