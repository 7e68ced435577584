"""Settings of a KarsSandbox: the agent's pod, its router and what both may use.

Owns names, types and defaults of `KarsSandbox.spec`. It has many more fields in kars, so most
sections here take keys that are not known and leave them alone.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import evolve, field, frozen

from kars_router.config.frozenmap import FrozenMap
from kars_router.config.marks import (
    NEEDED,
    Image,
    Json,
    Label,
    ObjectName,
    Quantity,
    ServerKey,
    Variable,
)
from kars_router.config.schema import LogLevel

_NOTHING: FrozenMap[Any, Any] = FrozenMap()


@frozen(kw_only=True)
class Resources:
    """What a container asks for and what it may use at most.

    Attributes:
        requests: what is kept for it, by resource.
        limits: what it may use at most, by resource.
    """

    requests: FrozenMap[str, Quantity] = _NOTHING
    limits: FrozenMap[str, Quantity] = _NOTHING


@frozen(kw_only=True)
class EnvVar:
    """One environment variable of a container.

    Attributes:
        name: its name.
        value: its value; excludes `value_from`.
        value_from: where its value is, as in a pod.
    """

    name: Variable = field(default="", metadata=NEEDED)
    value: str | None = None
    value_from: Json | None = None


@frozen(kw_only=True)
class Agent:
    """The agent's container. What kars has here beside that is left alone.

    Attributes:
        image: its image; None for the one of `runtime`.
        command: what is run instead of the image's entry point.
        args: arguments of it.
        env: its variables.
        resources: what it asks for and may use; `resources` of the sandbox if it is empty.
        working_dir: the directory that it starts in; None for the image's.
    """

    further_keys: ClassVar[bool] = True

    image: Image | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()
    resources: Resources = Resources()
    working_dir: str | None = None


@frozen(kw_only=True)
class Router:
    """The router's container.

    Attributes:
        image: its image; None for the operator's.
        resources: what it asks for and may use; the operator's defaults if it is empty.
        log_level: the least important lines that it writes; None for the operator's.
        env: variables with the tokens that servers name in `bearerFromEnv` and `oauth`, usually
            from a Secret. The agent does not get them.
    """

    image: Image | None = None
    resources: Resources = Resources()
    log_level: LogLevel | None = None
    env: tuple[EnvVar, ...] = ()


@frozen(kw_only=True)
class Byo:
    """An agent of one's own, as kars has it; left alone where `agent` says the same.

    Attributes:
        image: its image.
        command: what is run instead of the image's entry point.
        args: arguments of it.
        env: its variables.
    """

    further_keys: ClassVar[bool] = True

    image: Image | None = None
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[EnvVar, ...] = ()


@frozen(kw_only=True)
class OpenClaw:
    """The OpenClaw runtime of kars.

    Attributes:
        image: its image.
    """

    further_keys: ClassVar[bool] = True

    image: Image | None = None


@frozen(kw_only=True)
class Runtime:
    """Which agent runs, as kars has it; only what names an image is read.

    Attributes:
        kind: the kind of the agent, a name of kars.
        byo: an agent of one's own.
        openclaw: the OpenClaw runtime.
    """

    further_keys: ClassVar[bool] = True

    kind: str | None = None
    byo: Byo | None = None
    openclaw: OpenClaw | None = None


@frozen(kw_only=True)
class ServerRef:
    """A reference to an McpServer.

    Attributes:
        name: its name, which is also the server's name at the router.
        namespace: its namespace; None for the sandbox's. In another one, the server must admit the
            sandbox's namespace in `allowedSandboxes.namespaces`.
    """

    further_keys: ClassVar[bool] = True

    name: ServerKey = field(default="", metadata=NEEDED)
    namespace: Label | None = None


@frozen(kw_only=True)
class PolicyRef:
    """A reference to a ToolPolicy in the sandbox's namespace.

    Attributes:
        name: its name.
    """

    further_keys: ClassVar[bool] = True

    name: ObjectName | None = None


@frozen(kw_only=True)
class Governance:
    """What the sandbox may use, and under which policy.

    Attributes:
        tool_policy_ref: the policy that its calls have to pass, beside those that select it.
        mcp_server_refs: the servers that it may use, at most 8, each name once.
        mcp_server_ref: one server; the older way to say it. Excludes `mcp_server_refs`.
    """

    further_keys: ClassVar[bool] = True

    tool_policy_ref: PolicyRef = PolicyRef()
    mcp_server_refs: tuple[ServerRef, ...] = ()
    mcp_server_ref: ServerRef | None = None


@frozen(kw_only=True)
class KarsSandboxSpec:
    """An agent with its router in one pod.

    Attributes:
        agent: the agent's container.
        router: the router's container.
        runtime: which agent runs, as kars has it.
        resources: what the agent's container asks for and may use.
        governance: what it may use, and under which policy.
        suspended: whether no pod runs; everything else stays.
    """

    further_keys: ClassVar[bool] = True

    agent: Agent = Agent()
    router: Router = Router()
    runtime: Runtime = Runtime()
    resources: Resources = Resources()
    governance: Governance = Governance()
    suspended: bool = False

    @property
    def server_refs(self) -> tuple[ServerRef, ...]:
        """The servers that it refers to, in either way, in the order of the list."""
        single = self.governance.mcp_server_ref
        return self.governance.mcp_server_refs or ((single,) if single else ())

    @property
    def policy_name(self) -> str:
        """The ToolPolicy that it names; empty for none."""
        return self.governance.tool_policy_ref.name or ""

    @property
    def container(self) -> Agent:
        """The agent's container with what other fields of kars say of it.

        `agent` wins over `runtime`, field by field.
        """
        agent, byo = self.agent, self.runtime.byo or Byo()
        openclaw = self.runtime.openclaw or OpenClaw()
        return evolve(
            agent,
            image=agent.image or byo.image or openclaw.image,
            command=agent.command or byo.command,
            args=agent.args or byo.args,
            env=agent.env or byo.env,
            resources=self.resources if agent.resources == Resources() else agent.resources,
        )
